#include "cuda.cuh"

SVDRD_INSTANTIATE(double)
