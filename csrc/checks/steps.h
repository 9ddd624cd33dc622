// What the programs that time the kernels' steps share: a clock, the processor's peak, medians beside it, and a matrix like
// a photograph.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/simd.h"

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Multiply-adds a second, of as many independent chains in registers as hide the latency. Compiled with as many lanes as
// a register holds floats, or more.
template <typename T>
double peak() {
  using Register = typename svdrd::SVDRD_ISA::Pack<T>::Native;
  constexpr int chains = 12, count = 100000, lanes = sizeof(Register) / sizeof(T);
  const Register factor = Register{} + T(0.999), term = Register{} + T(0.001);
  Register sum[chains];
  for (int c = 0; c < chains; ++c) sum[c] = Register{} + T(c);
  double best = 0;
  for (int round = 0; round < 50; ++round) {
    const double begin = seconds();
    for (int i = 0; i < count; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < chains; ++c) sum[c] = sum[c] * factor + term;
    }
    best = std::max(best, static_cast<double>(lanes) * chains * count / (seconds() - begin));
  }
  volatile T used = 0;
  for (int c = 0; c < chains; ++c) used = used + sum[c][0];
  return best;
}

// The median of what each step took, in the order in which they came.
class Steps {
 public:
  template <typename Work>
  void time(const std::string& name, double multiply_adds, bool single, const Work& work) {
    const double begin = seconds();
    work();
    const double taken = seconds() - begin;
    if (times_.count(name) == 0) order_.push_back({name, multiply_adds, single});
    times_[name].push_back(taken);
  }

  // The time of one matrix, where each step was that of `matrices` together.
  void print(double peak, double single_peak, int matrices = 1) const {
    std::printf("%-34s %10s %16s %10s\n", "step", "us", "1e9 mult-adds/s", "of peak");
    for (const Step& step : order_) {
      std::vector<double> times = times_.at(step.name);
      std::sort(times.begin(), times.end());
      const double median = times[times.size() / 2], rate = step.multiply_adds / median;
      std::printf("%-34s %10.2f %16.1f %9.0f%%\n", step.name.c_str(), 1e6 * median / matrices, 1e-9 * rate,
                  100 * rate / (step.single ? single_peak : peak));
    }
  }

 private:
  struct Step {
    std::string name;
    double multiply_adds;
    bool single;
  };
  std::vector<Step> order_;
  std::map<std::string, std::vector<double>> times_;
};

// That of a separable Markov process with the correlation 0.95, the usual model of a photograph, with noise of half a
// grey level.
inline std::vector<float> photograph(int64_t rows, int64_t columns, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> a(static_cast<size_t>(rows * columns));
  const auto at = [&](int64_t i, int64_t j) { return i < 0 || j < 0 ? 0.0f : a[static_cast<size_t>(i * columns + j)]; };
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      a[static_cast<size_t>(i * columns + j)] =
          0.95f * at(i - 1, j) + 0.95f * at(i, j - 1) - 0.9025f * at(i - 1, j - 1) + 0.02f * normal(generator);
  for (float& entry : a) entry = 0.5f + entry + normal(generator) / 512;
  return a;
}
