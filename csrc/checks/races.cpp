// Looks for races in the algorithms of gpu/jacobi: every lane of a team is a thread here, and ThreadSanitizer watches what
// they read and write. Only sync() orders their memory, as on a GPU; what lanes exchange otherwise (sums, votes) passes
// through relaxed atomics, which order nothing. Also compares the results with those of lanes played one after the other.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gpu/kernels.h"
#include "checks/team_host.h"

namespace {

using namespace svdrd;

// Waits until all lanes have arrived; `order` says whether that orders their memory.
class Barrier {
 public:
  explicit Barrier(int lanes) : lanes_(lanes) {}

  void wait(std::memory_order order) {
    const int round = round_.load(std::memory_order_relaxed);
    const auto arriving = order == std::memory_order_relaxed ? order : std::memory_order_acq_rel;
    const auto leaving = order == std::memory_order_relaxed ? order : std::memory_order_release;
    const auto waiting = order == std::memory_order_relaxed ? order : std::memory_order_acquire;
    if (arrived_.fetch_add(1, arriving) + 1 == lanes_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, leaving);
    } else {
      while (round_.load(waiting) == round) std::this_thread::yield();
    }
  }

 private:
  const int lanes_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

constexpr size_t words_of_lane = 3;

struct Exchange {
  explicit Exchange(int lanes)
      : synchronised(lanes), passing(lanes), words(static_cast<size_t>(lanes) * words_of_lane) {}
  Barrier synchronised;
  Barrier passing;
  std::vector<std::atomic<uint64_t>> words;
};

template <int lanes>
class ThreadTeam {
 public:
  template <typename V>
  using Lanes = V;

  ThreadTeam(Exchange& exchange, int lane) : exchange_(exchange), lane_(lane) {}

  static constexpr int size() { return lanes; }
  template <typename F>
  void each(const F& f) const {
    f(lane_);
  }
  template <typename F>
  auto map(const F& f) const {
    return f(lane_);
  }
  template <typename V>
  static V& at(V& value, int) {
    return value;
  }
  template <typename V>
  V group_sum(V value, int width) const {
    for (int distance = 1; distance < width; distance *= 2) {
      put(value);
      exchange_.passing.wait(std::memory_order_relaxed);
      value = value + get<V>(lane_ ^ distance);
      exchange_.passing.wait(std::memory_order_relaxed);
    }
    return value;
  }
  bool any(bool flag) const {
    put(flag);
    exchange_.passing.wait(std::memory_order_relaxed);
    bool some = false;
    for (int lane = 0; lane < lanes; ++lane) some = some || get<bool>(lane);
    exchange_.passing.wait(std::memory_order_relaxed);
    return some;
  }
  void sync() const { exchange_.synchronised.wait(std::memory_order_acq_rel); }

 private:
  template <typename V>
  void put(const V& value) const {
    static_assert(sizeof(V) <= words_of_lane * sizeof(uint64_t), "a lane has three words");
    uint64_t words[words_of_lane] = {};
    std::memcpy(words, &value, sizeof(V));
    for (size_t i = 0; i < words_of_lane; ++i)
      exchange_.words[static_cast<size_t>(lane_) * words_of_lane + i].store(words[i], std::memory_order_relaxed);
  }
  template <typename V>
  V get(int lane) const {
    uint64_t words[words_of_lane];
    for (size_t i = 0; i < words_of_lane; ++i)
      words[i] = exchange_.words[static_cast<size_t>(lane) * words_of_lane + i].load(std::memory_order_relaxed);
    V value;
    std::memcpy(&value, words, sizeof(V));
    return value;
  }

  Exchange& exchange_;
  int lane_;
};

int failures = 0;

template <int lanes, typename Problem>
void run(const Problem& problem) {
  using T = typename Problem::Element;
  const int64_t bytes = teams::carve<T>(nullptr, Problem::operation, problem.shape, lanes).bytes;
  std::vector<T> memory(static_cast<size_t>(bytes) / sizeof(T));
  const auto parts = teams::carve<T>(reinterpret_cast<char*>(memory.data()), Problem::operation, problem.shape, lanes);
  Exchange exchange(lanes);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < lanes; ++lane)
    threads.emplace_back([&, lane] {
      const ThreadTeam<lanes> team(exchange, lane);
      for (int64_t item = 0; item < problem.batch; ++item) {
        teams::compute(team, parts, problem, item, true);
        team.sync();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// The threads' result against that of checks/emulation.cpp, bit for bit.
template <int lanes, typename Problem, typename T>
void check(const char* operation, const Problem& problem, const std::vector<std::vector<T>*>& outputs) {
  cuda::launch(problem, nullptr, 0, nullptr);
  std::vector<std::vector<T>> expected;
  for (std::vector<T>* output : outputs) {
    expected.push_back(*output);
    output->assign(output->size(), T(-7));
  }
  run<lanes>(problem);
  for (size_t i = 0; i < outputs.size(); ++i)
    if (std::memcmp(expected[i].data(), outputs[i]->data(), expected[i].size() * sizeof(T)) != 0) {
      ++failures;
      std::printf("FAILED: %s, result %d, differs between threads and lanes in turn\n", operation, static_cast<int>(i));
    }
}

template <int lanes, typename T>
void check_all(int m, int n) {
  const cuda::Shape shape{m, n};
  const size_t size = static_cast<size_t>(m * n), k = static_cast<size_t>(shape.columns());
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<T> a, g;
  const int64_t batch = 4;
  for (int64_t item = 0; item < batch; ++item)  // random, constant, rank 1 with a zero column, zero
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        a.push_back(static_cast<T>(item == 0   ? normal(random)
                                   : item == 1 ? 0.44
                                   : item == 2 ? (j == 1 ? 0.0 : (i + 1) * 0.25)
                                               : 0.0));
        g.push_back(static_cast<T>(normal(random)));
      }
  const size_t count = static_cast<size_t>(batch);
  std::vector<T> u(count * static_cast<size_t>(m) * k), s(count * k), vh(count * k * static_cast<size_t>(n));
  std::vector<T> p(count * size), grad(count * size), loss(count);
  check<lanes, cuda::SvdProblem<T>, T>("svd", {batch, shape, a.data(), u.data(), s.data(), vh.data()}, {&u, &s, &vh});
  const T rcond = 4 * std::numeric_limits<T>::epsilon();
  for (const double smooth : {0.0, 0.1}) {
    check<lanes, cuda::PolarProblem<T>, T>(
        "polar_factor",
        {batch, shape, a.data(), static_cast<double>(rcond), smooth, p.data(), u.data(), s.data(), vh.data()},
        {&p, &u, &s, &vh});
    check<lanes, cuda::PolarBackwardProblem<T>, T>(
        "polar_factor_backward", {batch, shape, g.data(), u.data(), s.data(), vh.data(), smooth, grad.data()}, {&grad});
    check<lanes, cuda::LossProblem<T>, T>("basis_loss",
                                          {batch, shape, a.data(), g.data(), batch * m, n, static_cast<double>(rcond),
                                           smooth, loss.data(), grad.data()},
                                          {&loss, &grad});
  }
  std::printf("%d lanes, %dx%d, %s: done\n", lanes, m, n, sizeof(T) == 4 ? "float32" : "float64");
}

}  // namespace

int main() {
  check_all<8, float>(8, 8);
  check_all<8, double>(5, 7);
  check_all<8, float>(3, 1);
  check_all<32, float>(12, 9);
  check_all<64, float>(18, 17);
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
