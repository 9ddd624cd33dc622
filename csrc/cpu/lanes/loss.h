// basis_loss() of cpu/svdrd.h on a range of the blocks, lane_count pairs of blocks at a time.
//
// Float32 pairs whose blocks are both well-conditioned go through Newton's iteration; the others, among them all that a rank
// has to be decided for, are named in a list and factored by the SVD afterwards. Which way a pair goes depends on the
// pair alone.
#pragma once

#include "cpu/blocks.h"
#include "cpu/lanes/lanes.h"
#include "cpu/lanes/newton_polar.h"
#include "equal_within.h"

namespace svdrd {
namespace SVDRD_ISA {

// Pairs of blocks.
using Pairs = Items;

template <typename T>
Placement<T> place_blocks(T* images, const Pairs& pairs, const LossProblem& problem) {
  const bool wide = problem.block_height < problem.block_width;
  Placement<T> r;
  r.row_stride = wide ? 1 : problem.width;
  r.column_stride = wide ? problem.width : 1;
  r.count = pairs.count;
  for (int l = 0; l < r.count; ++l) r.base[l] = images + block_offset(problem, pairs.number[l]);
  return r;
}

// A group of at most half the lanes leaves room for its partner: one computation then serves both.
template <typename T>
Placement<const T> side_by_side(const Placement<const T>& a, const Placement<const T>& b) {
  Placement<const T> r = a;
  r.count = a.count + b.count;
  for (int l = 0; l < b.count; ++l) r.base[a.count + l] = b.base[l];
  return r;
}

// The arguments of basis_loss(); null for a gradient that is not wanted.
template <typename T>
struct LossTensors {
  const T* x_hat;
  const T* x;
  T* loss;
  T* grad_x_hat;
  T* grad_x;
};

// How far apart two entries may be that are equal but for rounding. Smoothed factors may be much smaller than 1: their
// largest singular value is at most sqrt(entries) times their largest entry.
template <typename T>
[[gnu::noinline]] Pack<T> equality_bound(const Pack<T>* p_hat, const Pack<T>* p, int64_t rows, int64_t columns,
                                         int64_t entries, bool smoothed) {
  const Pack<T> one(T(1)), bound(static_cast<T>(equal_within * std::numeric_limits<T>::epsilon()));
  if (!smoothed) return bound;
  const int64_t stride = row_stride(columns);
  Pack<T> largest(T(0));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = i * stride; at < i * stride + columns; ++at) largest = max(largest, max(abs(p_hat[at]), abs(p[at])));
  return bound * min(one, largest * sqrt(Pack<T>(static_cast<T>(entries))));
}

// Each lane's mean of |p_hat - p| over the entries of a matrix, and in `sign` its derivative by p_hat, 0 up to `bound`.
// columns: of the Packs, which may be more than the matrix has, filled up with zeros.
template <typename T>
[[gnu::noinline]] Pack<double> mean_difference(const Pack<T>* p_hat, const Pack<T>* p, int64_t rows, int64_t columns,
                                               int64_t entries, const Pack<T>& bound, Pack<T>* sign) {
  const int64_t stride = row_stride(columns);
  const Pack<T> zero(T(0)), weight(T(1) / static_cast<T>(entries));
  Pack<double> sum(0.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = i * stride; at < i * stride + columns; ++at) {
      const Pack<T> difference = p_hat[at] - p[at];
      sum = sum + convert<double>(abs(difference));
      sign[at] = select(bound < difference, weight, select(difference < -bound, -weight, zero));
    }
  return sum / Pack<double>(static_cast<double>(entries));
}

template <typename T>
[[gnu::noinline]] void negate(Pack<T>* a, int64_t rows, int64_t columns) {
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = i * stride; at < i * stride + columns; ++at) a[at] = -a[at];
}

// By the SVD: any pairs.

template <typename T>
struct SvdLossLayout {
  Factorisation<double> f;
  EmptyLines empty;
  Pack<double>* unrounded;
  Pack<T>* p_hat;
  Pack<T>* p;
  PolarFactors<T> factors_hat;
  PolarFactors<T> factors;
  BackwardScratch<T> scratch;
  Pack<T>* sign;
  Pack<T>* grad;

  SvdLossLayout(Arena& arena, int64_t rows, int64_t columns)
      : f(arena, rows, columns),
        empty(arena, rows, columns),
        unrounded(arena.matrix<double>(rows, columns)),
        p_hat(arena.matrix<T>(rows, columns)),
        p(arena.matrix<T>(rows, columns)),
        factors_hat(arena, rows, columns),
        factors(arena, rows, columns),
        scratch(arena, rows, columns),
        sign(arena.matrix<T>(rows, columns)),
        grad(arena.matrix<T>(rows, columns)) {}
};

template <typename T>
GroupScale svd_polar_of_blocks(SvdLossLayout<T>& w, const Placement<const T>& blocks, const LossProblem& problem,
                               Pack<T>* p, PolarFactors<T>* factors) {
  load(blocks, w.f.rows, w.f.columns, w.f.columns, w.f.a);
  const GroupScale scale = normalise(w.f.a, w.f.rows, w.f.columns, problem.smooth);
  if constexpr (sizeof(T) == 8) w.empty.take_from(w.f.a);
  factorise(w.f, iteration_tolerance<T, double>(), dropped_values(problem.rcond, problem.smooth));
  if constexpr (sizeof(T) == 8)
    if (problem.smooth == 0 && may_be_noise(w.f, problem.rcond)) {
      load(blocks, w.f.rows, w.f.columns, w.f.columns, w.unrounded);
      normalise(w.unrounded, w.f.rows, w.f.columns, problem.smooth);
      lower_noise(w.f, w.unrounded);
    }
  polar_from_factors(w.f, problem.rcond, problem.smooth, scale, w.unrounded, w.empty, p);
  if (factors != nullptr) factors->take_from(w.f);
  return scale;
}

template <typename T>
void store_svd_gradients(SvdLossLayout<T>& w, const PolarFactors<T>& factors, const GroupScale& scale,
                         const bool* finite, const LossProblem& problem, const Placement<T>& to) {
  const int64_t rows = w.f.rows, columns = w.f.columns;
  polar_backward(w.sign, factors, scaled_smooth<T>(problem.smooth, scale), problem.smooth > 0, rows, columns, w.scratch,
                 w.grad);
  scale_and_clamp(w.grad, rows, columns, scale.exponent, -1);
  store(w.grad, rows, columns, columns, nullptr, to);
  for (int l = 0; l < to.count; ++l)
    if (!finite[l]) store_nan(rows, columns, l, to);
}

template <typename T>
void svd_losses(SvdLossLayout<T>& w, const Pairs& pairs, const LossProblem& problem, const LossTensors<T>& tensors) {
  const int64_t rows = w.f.rows, columns = w.f.columns;
  const Placement<const T> target = place_blocks(tensors.x, pairs, problem);
  const Placement<const T> decoded = place_blocks(tensors.x_hat, pairs, problem);
  GroupScale scale, scale_hat;
  if (2 * pairs.count <= lane_count) {
    const int count = pairs.count;
    scale = svd_polar_of_blocks(w, side_by_side(target, decoded), problem, w.p, &w.factors);
    scale_hat = shift_lanes(scale, count);
    shift_matrix(w.p, rows, columns, count, w.p_hat);
    shift_matrix(w.factors.u, rows, columns, count, w.factors_hat.u);
    shift_matrix(w.factors.s, 1, columns, count, w.factors_hat.s);
    shift_matrix(w.factors.v, columns, columns, count, w.factors_hat.v);
  } else {
    scale = svd_polar_of_blocks(w, target, problem, w.p, tensors.grad_x == nullptr ? nullptr : &w.factors);
    scale_hat =
        svd_polar_of_blocks(w, decoded, problem, w.p_hat, tensors.grad_x_hat == nullptr ? nullptr : &w.factors_hat);
  }
  bool finite[lane_count];
  for (int l = 0; l < lane_count; ++l) finite[l] = scale.finite[l] && scale_hat.finite[l];

  const Pack<double> mean = mean_difference(
      w.p_hat, w.p, rows, columns, rows * columns,
      equality_bound(w.p_hat, w.p, rows, columns, rows * columns, problem.smooth > 0), w.sign);
  for (int l = 0; l < pairs.count; ++l)
    tensors.loss[pairs.number[l]] = finite[l] ? static_cast<T>(mean.lane(l)) : std::numeric_limits<T>::quiet_NaN();
  if (tensors.grad_x_hat != nullptr)
    store_svd_gradients(w, w.factors_hat, scale_hat, finite, problem, place_blocks(tensors.grad_x_hat, pairs, problem));
  if (tensors.grad_x != nullptr) {
    negate(w.sign, rows, columns);
    store_svd_gradients(w, w.factors, scale, finite, problem, place_blocks(tensors.grad_x, pairs, problem));
  }
}

// By Newton's iteration: float32 pairs whose blocks are both well-conditioned.

struct NewtonLossLayout {
  Newton newton;
  Pack<float>* p_hat;
  Pack<float>* p;
  Pack<float>* sign;
  Pack<float>* grad;

  NewtonLossLayout(Arena& arena, int64_t rows, int64_t columns)
      : newton(arena, rows, columns),
        p_hat(arena.matrix<float>(rows, newton.padded)),
        p(arena.matrix<float>(rows, newton.padded)),
        sign(arena.matrix<float>(rows, newton.padded)),
        grad(arena.matrix<float>(rows, newton.padded)) {}
};

inline void newton_polar_of_blocks(Newton& w, const Placement<const float>& blocks, const LossProblem& problem,
                                   Pack<float>* p) {
  load(blocks, w.rows, w.columns, w.padded, w.a);
  newton_polar(w, newton_bound(problem.rcond, problem.smooth, w.rows), problem.smooth, p);
}

inline void store_newton_gradients(NewtonLossLayout& w, double smooth, const Pack<float>* p, const Placement<float>& to) {
  const Newton& newton = w.newton;
  newton_backward(w.newton, smooth, p, w.sign, w.grad);
  store(w.grad, newton.rows, newton.columns, newton.padded, nullptr, to);
}

// Computes the pairs that Newton's iteration accepts; the others go to `rest`.
inline void newton_losses(NewtonLossLayout& w, const Pairs& pairs, const LossProblem& problem,
                          const LossTensors<float>& tensors, ItemSink& rest) {
  Newton& newton = w.newton;
  const int64_t rows = newton.rows, columns = newton.padded;
  const Placement<const float> target = place_blocks(tensors.x, pairs, problem);
  const Placement<const float> decoded = place_blocks(tensors.x_hat, pairs, problem);
  const Pack<double> zero(0.0), one(1.0);
  Pack<double> accepted, accepted_hat;
  if (2 * pairs.count <= lane_count) {
    newton_polar_of_blocks(newton, side_by_side(decoded, target), problem, w.p_hat);
    accepted_hat = select(newton.accepted, one, zero);
    accepted = shift_lanes(accepted_hat, pairs.count);
    shift_matrix(w.p_hat, rows, columns, pairs.count, w.p);
  } else {
    newton_polar_of_blocks(newton, target, problem, w.p);
    if (!any(newton.accepted)) return pairs.give(rest);
    accepted = select(newton.accepted, one, zero);
    newton_polar_of_blocks(newton, decoded, problem, w.p_hat);
    accepted_hat = select(newton.accepted, one, zero);
  }
  bool both[lane_count];
  Pairs refused;
  for (int l = 0; l < pairs.count; ++l) {
    both[l] = accepted.lane(l) != 0 && accepted_hat.lane(l) != 0;
    if (!both[l]) refused.add(pairs.number[l]);
  }
  refused.give(rest);
  if (refused.count == pairs.count) return;

  const Pack<double> mean = mean_difference(
      w.p_hat, w.p, rows, columns, rows * newton.columns,
      equality_bound(w.p_hat, w.p, rows, columns, rows * newton.columns, problem.smooth > 0), w.sign);
  for (int l = 0; l < pairs.count; ++l)
    if (both[l]) tensors.loss[pairs.number[l]] = static_cast<float>(mean.lane(l));
  if (tensors.grad_x_hat != nullptr)
    store_newton_gradients(w, problem.smooth, w.p_hat, only(place_blocks(tensors.grad_x_hat, pairs, problem), both));
  if (tensors.grad_x != nullptr) {
    // Seldom wanted, so that computing the target's iterates once more is better than room for both.
    newton_polar_of_blocks(newton, target, problem, w.p);
    negate(w.sign, rows, columns);
    store_newton_gradients(w, problem.smooth, w.p, only(place_blocks(tensors.grad_x, pairs, problem), both));
  }
}

// Fetches what the next pairs read and these will write.
template <typename T>
void prefetch_pairs(const Pairs& pairs, const Pairs& next, const LossProblem& problem, const LossTensors<T>& tensors) {
  const Shape shape{problem.block_height, problem.block_width};
  prefetch<false>(place_blocks(tensors.x, next, problem), shape.rows(), shape.columns());
  prefetch<false>(place_blocks(tensors.x_hat, next, problem), shape.rows(), shape.columns());
  if (tensors.grad_x_hat != nullptr)
    prefetch<true>(place_blocks(tensors.grad_x_hat, pairs, problem), shape.rows(), shape.columns());
}

inline void lanes_newton_basis_loss(RangeSource& ranges, const float* x_hat, const float* x, const LossProblem& problem,
                                    float* loss, float* grad_x_hat, float* grad_x, ItemSink& rest) {
  const LossTensors<float> tensors{x_hat, x, loss, grad_x_hat, grad_x};
  const Shape shape{problem.block_height, problem.block_width};
  Workspace<NewtonLossLayout> workspace(shape.rows(), shape.columns());
  Groups groups(ranges);
  for (int64_t first, end; groups.next(first, end);) {
    const Pairs pairs(first, end);
    groups.following(first, end);
    prefetch_pairs(pairs, Pairs(first, end), problem, tensors);
    newton_losses(*workspace, pairs, problem, tensors, rest);
  }
}

// By the SVD: the pairs numbers[i] with i of the ranges.
template <typename T>
void lanes_rest_basis_loss(RangeSource& ranges, const int64_t* numbers, const T* x_hat, const T* x,
                           const LossProblem& problem, T* loss, T* grad_x_hat, T* grad_x) {
  const Shape shape{problem.block_height, problem.block_width};
  Workspace<SvdLossLayout<T>> workspace(shape.rows(), shape.columns());
  Groups groups(ranges);
  for (int64_t first, end; groups.next(first, end);)
    svd_losses(*workspace, Pairs(numbers, first, end), problem, LossTensors<T>{x_hat, x, loss, grad_x_hat, grad_x});
}

template <typename T>
void lanes_basis_loss(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss,
                      T* grad_x_hat, T* grad_x) {
  const LossTensors<T> tensors{x_hat, x, loss, grad_x_hat, grad_x};
  const Shape shape{problem.block_height, problem.block_width};
  Workspace<SvdLossLayout<T>> workspace(shape.rows(), shape.columns());
  Groups groups(ranges);
  for (int64_t first, end; groups.next(first, end);) {
    const Pairs pairs(first, end);
    groups.following(first, end);
    prefetch_pairs(pairs, Pairs(first, end), problem, tensors);
    svd_losses(*workspace, pairs, problem, tensors);
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
