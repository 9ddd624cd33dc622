#include "gpu/kernels.cuh"

SVDRD_INSTANTIATE(double)
