// gpu/kernels.h for GPUs: grids, shared memory, and the check of every launch. gpu/float32.cu and gpu/float64.cu instantiate it.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "gpu/kernels.h"
#include "gpu/team_device.cuh"

namespace svdrd {
namespace cuda {

inline std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + describe(error));
}

inline int64_t attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

constexpr int64_t threads_of_warp_teams = 128;
constexpr int64_t workspace_unit = 256;
constexpr int64_t most_workspace = int64_t{256} << 20;

// A block's teams take turns at the batch. in_workspace: a team's memory lies in the workspace, for teams of a whole
// block that need more than the block's shared memory.
template <typename Team, bool in_workspace, typename Problem>
__global__ void __launch_bounds__(Team::size() <= 32 ? threads_of_warp_teams : Team::size(), 1)
    run(const Problem problem, const int64_t bytes, char* const workspace) {
  using T = typename Problem::Element;
  extern __shared__ __align__(16) char shared[];
  const Team team;
  const int64_t teams_of_block = blockDim.x / Team::size(), index = threadIdx.x / Team::size();
  char* const memory = in_workspace ? workspace + blockIdx.x * bytes : shared + index * bytes;
  const teams::TeamMemory<T> parts = teams::carve<T>(memory, Problem::operation, problem.shape, Team::size());
  // The bound is the same for the whole block: the teams of a warp run in step.
  for (int64_t first = blockIdx.x * teams_of_block; first < problem.batch; first += gridDim.x * teams_of_block) {
    const int64_t item = first + index;
    const bool writes = item < problem.batch;
    teams::compute(team, parts, problem, writes ? item : problem.batch - 1, writes);
    team.sync();
  }
}

template <typename Problem>
int64_t team_bytes(const Problem& problem, int lanes) {
  using T = typename Problem::Element;
  return teams::carve<T>(nullptr, Problem::operation, problem.shape, lanes).bytes;
}

struct Plan {
  int64_t threads;       // of a block
  int64_t blocks;
  int64_t team_bytes;
  int64_t shared_bytes;  // of a block; 0 if its memory lies in the workspace
};

template <typename Problem>
Plan plan(const Problem& problem, int device) {
  const int64_t lanes = lanes_for<typename Problem::Element>(Problem::operation, problem.shape);
  const int64_t most_shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  Plan r{};
  r.team_bytes = team_bytes(problem, static_cast<int>(lanes));
  r.threads = lanes <= 32 ? threads_of_warp_teams : lanes;
  while (r.threads > 32 && r.threads > lanes && r.threads / lanes * r.team_bytes > memory_everywhere) r.threads /= 2;
  const int64_t teams_of_block = r.threads / lanes;
  r.blocks = (problem.batch + teams_of_block - 1) / teams_of_block;
  if (teams_of_block * r.team_bytes <= most_shared) {
    r.shared_bytes = teams_of_block * r.team_bytes;
    r.blocks = r.blocks < INT32_MAX ? r.blocks : INT32_MAX;
    return r;
  }
  r.team_bytes = (r.team_bytes + workspace_unit - 1) / workspace_unit * workspace_unit;
  const int64_t most_blocks = 4 * attribute(cudaDevAttrMultiProcessorCount, device), fit = most_workspace / r.team_bytes;
  r.blocks = r.blocks < most_blocks ? r.blocks : most_blocks;
  r.blocks = r.blocks < fit || r.blocks == 1 ? r.blocks : fit < 1 ? 1 : fit;
  return r;
}

template <typename Problem>
int64_t workspace_bytes(const Problem& problem, int device) {
  if (problem.batch == 0) return 0;
  const Plan p = plan(problem, device);
  return p.shared_bytes > 0 ? 0 : p.blocks * p.team_bytes;
}

template <typename Team, bool in_workspace, typename Problem>
void launch_as(const Problem& problem, const Plan& p, void* workspace, void* stream) {
  const auto kernel = run<Team, in_workspace, Problem>;
  if (p.shared_bytes > memory_everywhere)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(p.shared_bytes)),
          "cudaFuncSetAttribute");
  Problem problem_argument = problem;
  int64_t bytes = p.team_bytes;
  char* memory = static_cast<char*>(workspace);
  void* arguments[] = {&problem_argument, &bytes, &memory};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(p.blocks)),
                         dim3(static_cast<unsigned>(p.threads)), arguments, static_cast<size_t>(p.shared_bytes),
                         static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
}

template <typename Problem>
void launch(const Problem& problem, void* workspace, int device, void* stream) {
  if (problem.batch == 0) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  const Plan p = plan(problem, device);
  const bool in_workspace = p.shared_bytes == 0;
  if (in_workspace && workspace == nullptr) throw std::invalid_argument("workspace is a null pointer");
  switch (lanes_for<typename Problem::Element>(Problem::operation, problem.shape)) {
    case 8:
      return launch_as<teams::WarpTeam<8>, false>(problem, p, workspace, stream);
    case 32:
      return launch_as<teams::WarpTeam<32>, false>(problem, p, workspace, stream);
    case 64:
      return launch_as<teams::BlockTeam<64>, false>(problem, p, workspace, stream);
    default:
      return in_workspace ? launch_as<teams::BlockTeam<block_lanes>, true>(problem, p, workspace, stream)
                          : launch_as<teams::BlockTeam<block_lanes>, false>(problem, p, workspace, stream);
  }
}

}  // namespace cuda
}  // namespace svdrd
