// The interface of svdrd's CUDA kernels: raw pointers to contiguous row-major batches in the device's memory, no torch.
//
// launch() puts the operation on a stream and returns; what cannot be launched throws. Every matrix is treated on its
// own: the result of one item has the same bits whatever else is in the batch. An item that holds NaN or Inf gives NaN
// for that item alone. The problems (gpu/jacobi/items.h) are those of cpu/svdrd.h, for matrices with min(m, n) <= 64.
//
// gpu/kernels.cuh implements it for GPUs, checks/emulation.cpp on the host, in host memory, for tests without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "gpu/jacobi/items.h"

namespace svdrd {
namespace cuda {

using teams::LossProblem;
using teams::Operation;
using teams::PolarBackwardProblem;
using teams::PolarProblem;
using teams::Shape;
using teams::SvdProblem;

constexpr int most_columns = 64;  // the smaller side
constexpr int most_rows = 1 << 16;

// Below this every GPU has the shared memory.
constexpr int64_t memory_everywhere = 48 * 1024;
constexpr int block_lanes = 256;

// The lanes of the team that works on a matrix. It depends on nothing but the problem, since the lanes decide about the
// order of sums, hence about bits.
template <typename T>
SVDRD_BOTH int lanes_for(Operation operation, const Shape& shape) {
  const int rows = shape.rows(), columns = shape.columns();
  int lanes = block_lanes;
  if (columns <= 8 && rows <= 32) {
    lanes = 8;
  } else if (columns <= 16 && rows <= 64) {
    lanes = 32;
  } else if (columns <= 32 && rows <= 128) {
    lanes = 64;
  }
  return teams::carve<T>(nullptr, operation, shape, lanes).bytes <= memory_everywhere ? lanes : block_lanes;
}

// Bytes of the device's memory that launch() wants as its workspace, aligned to 256: 0 where shared memory suffices.
template <typename Problem>
int64_t workspace_bytes(const Problem& problem, int device);

template <typename Problem>
void launch(const Problem& problem, void* workspace, int device, void* stream);

// Why nothing can be launched on the device; empty if it can.
std::string refusal(int device);

}  // namespace cuda
}  // namespace svdrd

// Instantiates every operation of an implementation in one element type.
#define SVDRD_INSTANTIATE(T) \
  namespace svdrd { \
  namespace cuda { \
  template int64_t workspace_bytes(const SvdProblem<T>&, int); \
  template int64_t workspace_bytes(const PolarProblem<T>&, int); \
  template int64_t workspace_bytes(const PolarBackwardProblem<T>&, int); \
  template int64_t workspace_bytes(const LossProblem<T>&, int); \
  template void launch(const SvdProblem<T>&, void*, int, void*); \
  template void launch(const PolarProblem<T>&, void*, int, void*); \
  template void launch(const PolarBackwardProblem<T>&, void*, int, void*); \
  template void launch(const LossProblem<T>&, void*, int, void*); \
  } \
  }
