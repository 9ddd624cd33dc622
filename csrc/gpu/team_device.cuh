// Teams of lanes on a GPU (see gpu/team.h): part of a warp, a warp, or a block of threads. The only code that knows of warps.
#pragma once

#include "gpu/team.h"

namespace svdrd {
namespace teams {

constexpr unsigned all_lanes = 0xffffffffu;

template <typename V>
__device__ inline V shuffled(const V& value, int distance) {
  static_assert(sizeof(V) % sizeof(float) == 0, "a warp exchanges words");
  V other;
  if constexpr (sizeof(V) % sizeof(double) == 0 && alignof(V) == alignof(double)) {
    const double* from = reinterpret_cast<const double*>(&value);
    double* to = reinterpret_cast<double*>(&other);
#pragma unroll
    for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) to[i] = __shfl_xor_sync(all_lanes, from[i], distance);
  } else {
    const float* from = reinterpret_cast<const float*>(&value);
    float* to = reinterpret_cast<float*>(&other);
#pragma unroll
    for (unsigned i = 0; i < sizeof(V) / sizeof(float); ++i) to[i] = __shfl_xor_sync(all_lanes, from[i], distance);
  }
  return other;
}

// What both kinds of team share: a lane is this thread.
template <typename Derived>
class DeviceTeam {
 public:
  template <typename V>
  using Lanes = V;

  template <typename F>
  __device__ void each(const F& f) const {
    f(lane());
  }
  template <typename F>
  __device__ auto map(const F& f) const {
    return f(lane());
  }
  template <typename V>
  static __device__ V& at(V& value, int) {
    return value;
  }
  // Every thread of the warp takes part. The sum has the same bits on all lanes of a group, as a + b = b + a.
  template <typename V>
  __device__ V group_sum(V value, int width) const {
    for (int distance = 1; distance < width; distance *= 2) value = value + shuffled(value, distance);
    return value;
  }

 private:
  __device__ int lane() const { return static_cast<const Derived*>(this)->lane_; }
};

// `lanes` threads, a power of two up to 32: a warp holds 32 / lanes such teams, which run in step.
template <int lanes>
class WarpTeam : public DeviceTeam<WarpTeam<lanes>> {
 public:
  static_assert(lanes <= 32 && 32 % lanes == 0, "a team does not straddle warps");
  __device__ WarpTeam() : lane_(static_cast<int>(threadIdx.x) % lanes) {}
  static constexpr __device__ int size() { return lanes; }
  __device__ bool any(bool flag) const { return __any_sync(all_lanes, flag) != 0; }
  __device__ void sync() const { __syncwarp(); }

 private:
  friend class DeviceTeam<WarpTeam<lanes>>;
  int lane_;
};

// All threads of the block.
template <int lanes>
class BlockTeam : public DeviceTeam<BlockTeam<lanes>> {
 public:
  static_assert(lanes % 32 == 0, "whole warps");
  __device__ BlockTeam() : lane_(static_cast<int>(threadIdx.x)) {}
  static constexpr __device__ int size() { return lanes; }
  __device__ bool any(bool flag) const { return __syncthreads_or(flag) != 0; }
  __device__ void sync() const { __syncthreads(); }

 private:
  friend class DeviceTeam<BlockTeam<lanes>>;
  int lane_;
};

}  // namespace teams
}  // namespace svdrd
