#include "gpu/kernels.cuh"

SVDRD_INSTANTIATE(float)

namespace svdrd {
namespace cuda {

std::string refusal(int device) {
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return describe(chosen);
  // Of all kernels, or of none, there is code that the device can run.
  cudaFuncAttributes attributes;
  const cudaError_t found = cudaFuncGetAttributes(
      &attributes, reinterpret_cast<const void*>(run<teams::WarpTeam<8>, false, SvdProblem<float>>));
  (void)cudaGetLastError();
  return found == cudaSuccess ? "" : describe(found);
}

}  // namespace cuda
}  // namespace svdrd
