// gpu/kernels.h on the host, for tests without a GPU: the same algorithms, teams and order of sums, in host memory, one lane
// after the other. Device 0 plays the lanes of a team forwards, device 1 backwards.
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gpu/kernels.h"
#include "checks/team_host.h"

namespace svdrd {
namespace cuda {
namespace {

template <int lanes, typename Problem>
void run(const Problem& problem, bool backwards) {
  using T = typename Problem::Element;
  const teams::HostTeam<lanes> team(backwards);
  const int64_t bytes = teams::carve<T>(nullptr, Problem::operation, problem.shape, lanes).bytes;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    const std::unique_ptr<T[]> memory(new T[static_cast<size_t>(bytes) / sizeof(T)]);
    const auto parts = teams::carve<T>(reinterpret_cast<char*>(memory.get()), Problem::operation, problem.shape, lanes);
    for (int64_t item; (item = next++) < problem.batch;) teams::compute(team, parts, problem, item, true);
  };
  std::vector<std::thread> others;
  if (problem.batch > 1 && problem.shape.columns() >= 16)
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace

template <typename Problem>
int64_t workspace_bytes(const Problem&, int) {
  return 0;
}

template <typename Problem>
void launch(const Problem& problem, void*, int device, void*) {
  const bool backwards = device == 1;
  switch (lanes_for<typename Problem::Element>(Problem::operation, problem.shape)) {
    case 8:
      return run<8>(problem, backwards);
    case 32:
      return run<32>(problem, backwards);
    case 64:
      return run<64>(problem, backwards);
    default:
      return run<block_lanes>(problem, backwards);
  }
}

std::string refusal(int) { return ""; }

}  // namespace cuda
}  // namespace svdrd

SVDRD_INSTANTIATE(float)
SVDRD_INSTANTIATE(double)
