// The operations of gpu/kernels.h on one item of the batch, by one team of lanes.
//
// Teams that share a warp run in step, so a team without an item of its own at the end of a batch works on the last one
// and does not write.
#pragma once

#include "equal_within.h"
#include "gpu/jacobi/polar.h"

namespace svdrd {
namespace teams {

// Hands out parts of a team's memory; with no memory it only adds up what is needed.
class Carver {
 public:
  SVDRD_BOTH explicit Carver(char* memory) : memory_(memory) {}

  template <typename T>
  SVDRD_BOTH T* take(int64_t count) {
    char* part = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += count * static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<T*>(part);
  }
  SVDRD_BOTH int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

enum class Operation { svd, polar_factor, polar_factor_backward, basis_loss };

// m x n, seen as the team holds it.
struct Shape {
  int m;
  int n;
  SVDRD_BOTH bool wide() const { return m < n; }
  SVDRD_BOTH int rows() const { return m < n ? n : m; }
  SVDRD_BOTH int columns() const { return m < n ? m : n; }
};

template <typename T>
struct TeamMemory {
  Factors<T> f;
  Scratch<T> scratch;
  int64_t bytes;
};

// The memory of a team at `memory`, or only its size where that is null.
template <typename T>
SVDRD_BOTH TeamMemory<T> carve(char* memory, Operation operation, const Shape& shape, int lanes) {
  const int rows = shape.rows(), columns = shape.columns();
  const int64_t entries = static_cast<int64_t>(rows) * columns;
  Carver carver(memory);
  TeamMemory<T> r{};
  r.f.rows = rows;
  r.f.columns = columns;
  r.f.stride = padded(rows + columns, lanes_per_pair(lanes, columns));
  r.f.entries = carver.take<T>(static_cast<int64_t>(columns) * r.f.stride);
  r.f.values = carver.take<T>(columns);
  r.f.partial = carver.take<T>(lanes);
  r.scratch.weights = carver.take<T>(columns);
  if (operation == Operation::polar_factor_backward || operation == Operation::basis_loss) {
    r.scratch.outside = carver.take<T>(columns);
    r.scratch.radius = carver.take<T>(columns);
    r.scratch.upstream = carver.take<T>(entries);
    r.scratch.projected = carver.take<T>(entries);
    r.scratch.core = carver.take<T>(columns * columns);
  }
  r.f.places = carver.take<int>(columns);
  // So that teams of one warp do not meet on the memory banks either.
  const int64_t unit = lanes * static_cast<int64_t>(sizeof(T)), units = (carver.used() + unit - 1) / unit;
  r.bytes = (units + 1 - units % 2) * unit;
  return r;
}

// Of A^T = U S V^T, U is what the caller calls V.
template <typename T>
SVDRD_LANES Matrix<T> matrix_of_item(T* batch, int64_t item, const Shape& shape) {
  T* entries = batch + item * shape.m * shape.n;
  return shape.wide() ? Matrix<T>{entries, 1, shape.n} : Matrix<T>{entries, shape.n, 1};
}
template <typename T>
SVDRD_LANES Matrix<T> left_of_item(T* u, T* vh, int64_t item, const Shape& shape) {
  const int64_t k = shape.columns();
  return shape.wide() ? Matrix<T>{vh + item * k * shape.n, 1, shape.n} : Matrix<T>{u + item * shape.m * k, k, 1};
}
template <typename T>
SVDRD_LANES Matrix<T> right_of_item(T* u, T* vh, int64_t item, const Shape& shape) {
  const int64_t k = shape.columns();
  return shape.wide() ? Matrix<T>{u + item * shape.m * k, k, 1} : Matrix<T>{vh + item * k * shape.n, 1, shape.n};
}

template <typename T>
struct SvdProblem {
  using Element = T;
  static constexpr Operation operation = Operation::svd;
  int64_t batch;
  Shape shape;
  const T* a;
  T* u;
  T* s;
  T* vh;
};

template <typename Team, typename T>
SVDRD_LANES void compute(const Team& team, TeamMemory<T> memory, const SvdProblem<T>& problem, int64_t item,
                         bool writes) {
  const Shape& shape = problem.shape;
  decompose(team, memory.f, matrix_of_item(problem.a, item, shape));
  complete_u(team, memory.f, memory.scratch.weights);
  rank_values(team, memory.f);
  if (writes)
    store_factors(team, memory.f, false, left_of_item(problem.u, problem.vh, item, shape),
                  problem.s + item * shape.columns(), right_of_item(problem.u, problem.vh, item, shape));
}

template <typename T>
struct PolarProblem {
  using Element = T;
  static constexpr Operation operation = Operation::polar_factor;
  int64_t batch;
  Shape shape;
  const T* a;
  double rcond;
  double smooth;
  T* p;
  T* u;  // null, with s and vh, where no backward will come
  T* s;
  T* vh;
};

template <typename Team, typename T>
SVDRD_LANES void compute(const Team& team, TeamMemory<T> memory, const PolarProblem<T>& problem, int64_t item,
                         bool writes) {
  const Shape& shape = problem.shape;
  Factors<T>& f = memory.f;
  T* weights = memory.scratch.weights;
  decompose(team, f, matrix_of_item(problem.a, item, shape));
  if (problem.u != nullptr) complete_u(team, f, weights);
  // Joining the smoothing changes the units of the values, not what they stand for.
  (void)weigh(team, f, problem.rcond, problem.smooth, weights);
  const Matrix<T> p = as_held(f, matrix_of_item(problem.p, item, shape));
  const T nan = Limits<T>::nan;
  team.each([&](int lane) {
    if (!writes) return;
    for_entries(p, f.rows, f.columns, lane, team.size(),
                [&](int i, int j) { p(i, j) = f.finite ? polar_entry(f, weights, i, j) : nan; });
  });
  if (problem.u == nullptr) return;
  rank_values(team, f);
  if (writes)
    store_factors(team, f, true, left_of_item(problem.u, problem.vh, item, shape), problem.s + item * shape.columns(),
                  right_of_item(problem.u, problem.vh, item, shape));
}

template <typename T>
struct PolarBackwardProblem {
  using Element = T;
  static constexpr Operation operation = Operation::polar_factor_backward;
  int64_t batch;
  Shape shape;
  const T* grad;
  const T* u;
  const T* s;
  const T* vh;
  double smooth;
  T* grad_a;
};

template <typename Team, typename T>
SVDRD_LANES void compute(const Team& team, TeamMemory<T> memory, const PolarBackwardProblem<T>& problem, int64_t item,
                         bool writes) {
  const Shape& shape = problem.shape;
  Factors<T>& f = memory.f;
  const Matrix<const T> left = left_of_item(problem.u, problem.vh, item, shape);
  const Matrix<const T> right = right_of_item(problem.u, problem.vh, item, shape);
  const Matrix<const T> grad = matrix_of_item(problem.grad, item, shape);
  const T* s = problem.s + item * f.columns;
  T most_value = T(0);
  for (int j = 0; j < f.columns; ++j) most_value = larger_or_nan(most_value, finite_magnitude(s[j]));
  f.flipped = false;
  f.finite = most_value == most_value;
  f.exponent = f.finite ? exponent_of(static_cast<double>(most_value)) : 0;
  team.each([&](int lane) {
    for (int j = lane; j < f.columns; j += team.size())
      f.values[j] = f.finite ? times_power_of_two(s[j], Limits<T>::headroom - f.exponent) : T(0);
    for_entries(left, f.rows, f.columns, lane, team.size(),
                [&](int i, int j) { f.u(i, j) = f.finite ? left(i, j) : T(0); });
    for_entries(right, f.columns, f.columns, lane, team.size(),
                [&](int i, int j) { f.v(i, j) = f.finite ? right(i, j) : T(0); });
    T most = T(0);
    for_entries(grad, f.rows, f.columns, lane, team.size(), [&](int i, int j) {
      const T entry = grad(i, j);
      most = larger_or_nan(most, finite_magnitude(entry));
      memory.scratch.upstream[j * f.rows + i] = entry;
    });
    f.partial[lane] = most;
  });
  team.sync();
  const T most = largest_partial(f.partial, team.size());
  const bool finite = most == most;
  const int exponent = finite ? exponent_of(static_cast<double>(most)) : 0;
  team.each([&](int lane) {
    for_entries(grad, f.rows, f.columns, lane, team.size(), [&](int i, int j) {
      T& entry = memory.scratch.upstream[j * f.rows + i];
      entry = finite ? times_power_of_two(entry, -exponent) : T(0);
    });
  });
  const bool smoothed = problem.smooth > 0;
  const T e = smoothed ? join_smoothing(team, f, problem.smooth) : T(0);
  team.sync();
  polar_gradient(team, f, smoothed, e, memory.scratch, exponent, T(1), finite && f.finite, writes,
                 matrix_of_item(problem.grad_a, item, shape));
}

// Both sides' polar factors, their distance and, where it is wanted, its gradient by x_hat.
template <typename T>
struct LossProblem {
  using Element = T;
  static constexpr Operation operation = Operation::basis_loss;
  int64_t batch;  // blocks, of all images together
  Shape shape;    // of a block
  const T* x_hat;
  const T* x;
  int64_t height;
  int64_t width;
  double rcond;
  double smooth;
  T* loss;        // null where it is known already
  T* grad_x_hat;  // null where it is not wanted
};

template <typename T>
SVDRD_LANES Matrix<T> block_of_images(T* images, int64_t item, int64_t height, int64_t width, const Shape& shape) {
  const int64_t across = width / shape.n, in_image = (height / shape.m) * across;
  const int64_t image = item / in_image, block = item % in_image;
  T* entries = images + image * height * width + (block / across) * shape.m * width + (block % across) * shape.n;
  return shape.wide() ? Matrix<T>{entries, 1, width} : Matrix<T>{entries, width, 1};
}

template <typename Team, typename T>
SVDRD_LANES void compute(const Team& team, TeamMemory<T> memory, const LossProblem<T>& problem, int64_t item,
                         bool writes) {
  const Shape& shape = problem.shape;
  Factors<T>& f = memory.f;
  const Scratch<T>& w = memory.scratch;
  const int entries = f.rows * f.columns;
  bool finite = true, x_flipped = false;
  T e = T(0);
  for (int side = 0; side < 2; ++side) {
    const T* images = side == 0 ? problem.x : problem.x_hat;
    T* p = side == 0 ? w.projected : w.upstream;
    decompose(team, f, block_of_images(images, item, problem.height, problem.width, shape));
    e = weigh(team, f, problem.rcond, problem.smooth, w.weights);
    finite = finite && f.finite;
    if (side == 0) x_flipped = f.flipped;
    team.each([&](int lane) {
      for (int at = lane; at < entries; at += team.size()) p[at] = polar_entry(f, w.weights, at % f.rows, at / f.rows);
    });
    team.sync();
  }
  const bool across = f.flipped != x_flipped;
  T bound = T(equal_within) * Limits<T>::epsilon;
  if (problem.smooth > 0) {
    // Smoothed factors may be much smaller than 1: their largest singular value is at most sqrt(entries) times their
    // largest entry.
    team.each([&](int lane) {
      T most = T(0);
      for (int at = lane; at < entries; at += team.size())
        most = larger_or_nan(most, larger_or_nan(magnitude(w.upstream[at]), magnitude(w.projected[at])));
      f.partial[lane] = most;
    });
    team.sync();
    const T most = largest_partial(f.partial, team.size()) * square_root(static_cast<T>(entries));
    team.sync();
    if (most < T(1)) bound = bound * most;
  }
  team.each([&](int lane) {
    T sum = T(0);
    for (int at = lane; at < entries; at += team.size()) {
      const int at_x = across ? at % f.rows * f.rows + at / f.rows : at;
      const T difference = w.upstream[at] - w.projected[at_x], size = magnitude(difference);
      sum = sum + size;
      w.upstream[at] = size > bound ? (difference > T(0) ? T(1) : T(-1)) : T(0);
    }
    f.partial[lane] = sum;
  });
  team.sync();
  if (problem.loss != nullptr)
    team.each([&](int lane) {
      if (lane != 0 || !writes) return;
      T sum = T(0);
      for (int other = 0; other < team.size(); ++other) sum = sum + f.partial[other];
      problem.loss[item] = finite ? sum / static_cast<T>(entries) : Limits<T>::nan;
    });
  if (problem.grad_x_hat != nullptr)
    polar_gradient(team, f, problem.smooth > 0, e, w, 0, static_cast<T>(entries), finite, writes,
                   as_held(f, block_of_images(problem.grad_x_hat, item, problem.height, problem.width, shape)));
}

}  // namespace teams
}  // namespace svdrd
