// The vector-Jacobian product of the singular value decomposition of a range of the batch, lane_count matrices at a
// time (docs/design/gradients.md, formula (2)).
//
// float32 matrices are loaded into doubles: 1 / (s_j - s_i) multiplies what is left of Ju + Jv after they cancel.
#pragma once

#include "cpu/lanes/lanes.h"
#include "cpu/svd_backward_scale.h"

namespace svdrd {
namespace SVDRD_ISA {

// The lanes hold A or A^T, whichever is not wide; of A^T, u is what the caller calls V.
struct SvdBackwardLayout {
  Pack<double>* u;
  Pack<double>* v;
  Pack<double>* s;
  Pack<double>* grad_u;  // then its part outside the span of u, then the result
  Pack<double>* grad_v;
  Pack<double>* grad_s;
  Pack<double>* projected_u;  // U^T gU, then the core
  Pack<double>* projected_v;  // V^T gV
  Pack<double>* left;

  SvdBackwardLayout(Arena& arena, int64_t rows, int64_t columns)
      : u(arena.matrix<double>(rows, columns)),
        v(arena.matrix<double>(columns, columns)),
        s(arena.take<Pack<double>>(columns)),
        grad_u(arena.matrix<double>(rows, columns)),
        grad_v(arena.matrix<double>(columns, columns)),
        grad_s(arena.take<Pack<double>>(columns)),
        projected_u(arena.matrix<double>(columns, columns)),
        projected_v(arena.matrix<double>(columns, columns)),
        left(arena.matrix<double>(rows, columns)) {}
};

inline void set_zero(Pack<double>* a, int64_t rows, int64_t columns) {
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) a[i * stride + j] = Pack<double>(0.0);
}

// The largest magnitude in each lane's matrix, NaN where an entry is NaN or Inf.
[[gnu::noinline]] inline Pack<double> largest_magnitude(const Pack<double>* a, int64_t rows, int64_t columns) {
  const int64_t stride = row_stride(columns);
  const Pack<double> bound(std::numeric_limits<double>::max());
  Pack<double> largest(0.0);
  Mask<double> not_finite = no_lanes<double>();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const Pack<double> size = abs(a[i * stride + j]);
      not_finite = not_finite | ~(size <= bound);
      largest = max(size, largest);
    }
  return select(not_finite, Pack<double>(std::numeric_limits<double>::quiet_NaN()), largest);
}

// a <- a * 2^exponent, at most `bound` in magnitude.
[[gnu::noinline]] inline void scale_and_clamp(Pack<double>* a, int64_t rows, int64_t columns,
                                              const ScaleFactors<double>& factors, double bound) {
  const int64_t stride = row_stride(columns);
  const Pack<double> upper(bound);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = i * stride + j;
      a[at] = max(min(factors(a[at]), upper), -upper);
    }
}

// 1 / a where `wanted`, else 0.
inline Pack<double> reciprocal_where(const Mask<double>& wanted, const Pack<double>& a) {
  const Pack<double> one(1.0);
  return select(wanted, one / select(wanted, a, one), Pack<double>(0.0));
}

// From U^T gU in `projected_u` to the core, in place:
//   per_value ((Ju + Jv) / (2 (s_j - s_i)) + (Ju - Jv) / (2 (s_j + s_i)))
// off the diagonal, grad_s on it. s is relative to s_1.
inline void divide_by_gaps(Pack<double>* projected_u, const Pack<double>* projected_v, const Pack<double>* s,
                           const Pack<double>* grad_s, const Pack<double>& per_value, double negligible, double gap,
                           int64_t columns) {
  const int64_t stride = row_stride(columns);
  const Pack<double> half_unit = Pack<double>(0.5) * per_value, least_sum(negligible), least_gap(gap);
  for (int64_t i = 0; i < columns; ++i) {
    projected_u[i * stride + i] = grad_s[i];
    for (int64_t j = 0; j < i; ++j) {
      const int64_t at = i * stride + j, across = j * stride + i;
      const Pack<double> skew_u = projected_u[at] - projected_u[across];
      const Pack<double> skew_v = projected_v[at] - projected_v[across];
      const Pack<double> sum = s[j] + s[i], difference = s[j] - s[i];
      const Mask<double> nonzero = least_sum < sum;
      const Mask<double> distinct = nonzero & (least_gap * sum < abs(difference));
      const Pack<double> symmetric = (skew_u + skew_v) * (half_unit * reciprocal_where(distinct, difference));
      const Pack<double> skew = (skew_u - skew_v) * (half_unit * reciprocal_where(nonzero, sum));
      projected_u[at] = symmetric + skew;
      projected_u[across] = symmetric - skew;
    }
  }
}

// w.grad_u <- the derivative. Reads the gradients scaled as svd_backward_scale says and s relative to s_1; a gradient
// that is not given is not read.
[[gnu::noinline]] inline void svd_backward(const SvdBackwardLayout& w, bool given_u, bool given_v,
                                           const Pack<double>& per_value, double negligible, double gap, int64_t rows,
                                           int64_t columns) {
  const int64_t stride = row_stride(columns);
  const bool outside = given_u && rows > columns;
  if (given_u) {
    product(transposed(w.u, columns), plain(w.grad_u, columns), columns, rows, columns, w.projected_u);
  } else {
    set_zero(w.projected_u, columns, columns);
  }
  if (given_v) {
    product(transposed(w.v, columns), plain(w.grad_v, columns), columns, columns, columns, w.projected_v);
  } else {
    set_zero(w.projected_v, columns, columns);
  }
  if (outside) {
    const Pack<double> least(negligible);
    product(plain(w.u, columns), plain(w.projected_u, columns), rows, columns, columns, w.left);
    for (int64_t j = 0; j < columns; ++j) {
      const Pack<double> inverse = per_value * reciprocal_where(least < w.s[j], w.s[j]);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = i * stride + j;
        w.grad_u[at] = (w.grad_u[at] - w.left[at]) * inverse;
      }
    }
  }
  divide_by_gaps(w.projected_u, w.projected_v, w.s, w.grad_s, per_value, negligible, gap, columns);
  product(plain(w.u, columns), plain(w.projected_u, columns), rows, columns, columns, w.left);
  if (outside)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        w.left[i * stride + j] = w.left[i * stride + j] + w.grad_u[i * stride + j];
  product(plain(w.left, columns), transposed(w.v, columns), rows, columns, columns, w.grad_u);
}

template <typename T>
void lanes_svd_backward(RangeSource& ranges, const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s,
                        const T* vh, int64_t m, int64_t n, T* grad_a) {
  const Shape shape{m, n};
  const int64_t rows = shape.rows(), columns = shape.columns();
  const bool given_left = (shape.wide() ? grad_vh : grad_u) != nullptr;
  const bool given_right = (shape.wide() ? grad_u : grad_vh) != nullptr;
  Groups groups(ranges);
  Workspace<SvdBackwardLayout> workspace(rows, columns);
  SvdBackwardLayout& w = *workspace;
  const Pack<double> zero(0.0), one(1.0);
  constexpr double no_bound = std::numeric_limits<double>::max();
  for (int64_t first, end; groups.next(first, end);) {
    load(place_left(u, vh, first, end, shape), rows, columns, columns, w.u);
    load(place_right(u, vh, first, end, shape), columns, columns, columns, w.v);
    load(place(s, Items(first, end), columns, int64_t{1}, int64_t{1}), 1, columns, columns, w.s);
    Pack<double> largest_left = zero, largest_right = zero;
    if (given_left) {
      load(place_left(grad_u, grad_vh, first, end, shape), rows, columns, columns, w.grad_u);
      largest_left = largest_magnitude(w.grad_u, rows, columns);
    }
    if (given_right) {
      load(place_right(grad_u, grad_vh, first, end, shape), columns, columns, columns, w.grad_v);
      largest_right = largest_magnitude(w.grad_v, columns, columns);
    }
    set_zero(w.grad_s, 1, columns);
    if (grad_s != nullptr)
      load(place(grad_s, Items(first, end), columns, int64_t{1}, int64_t{1}), 1, columns, columns, w.grad_s);
    const Pack<double> largest_value = largest_magnitude(w.grad_s, 1, columns);
    const Pack<double> s_1 = largest_magnitude(w.s, 1, columns);

    int vector_exponent[lane_count], result_exponent[lane_count];
    bool finite[lane_count];
    Pack<double> per_value;
    for (int l = 0; l < lane_count; ++l) {
      const SvdBackwardScale scale =
          svd_backward_scale<double>(largest_left.lane(l), largest_value.lane(l), largest_right.lane(l), s_1.lane(l));
      vector_exponent[l] = scale.vectors;
      result_exponent[l] = scale.result;
      finite[l] = scale.finite;
      per_value.set_lane(l, scale.per_value);
    }
    const ScaleFactors<double> to_vectors(vector_exponent, -1);
    if (given_left) scale_and_clamp(w.grad_u, rows, columns, to_vectors, no_bound);
    if (given_right) scale_and_clamp(w.grad_v, columns, columns, to_vectors, no_bound);
    scale_and_clamp(w.grad_s, 1, columns, ScaleFactors<double>(result_exponent, -1), no_bound);
    const Pack<double> unit = select(s_1 == zero, one, s_1);
    for (int64_t j = 0; j < columns; ++j) w.s[j] = w.s[j] / unit;

    svd_backward(w, given_left, given_right, per_value, negligible_value<T>, distinct_gap<T>(m, n), rows, columns);
    scale_and_clamp(w.grad_u, rows, columns, ScaleFactors<double>(result_exponent, 1),
                    static_cast<double>(std::numeric_limits<T>::max()));
    const Placement<T> result = place_matrices(grad_a, first, end, shape);
    store(w.grad_u, rows, columns, columns, nullptr, result);
    for (int l = 0; l < result.count; ++l)
      if (!finite[l]) store_nan(rows, columns, l, result);
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
