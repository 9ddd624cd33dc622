// The vector-Jacobian product of the singular value decomposition of one matrix (docs/design/gradients.md, formula (2)).
#pragma once

#include "cpu/dense/svd.h"
#include "cpu/svd_backward_scale.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// a * 2^exponent in two steps, since neither 2^1074 nor 2^-1074 times itself is a double. Saturates beyond.
struct PowerOfTwo {
  double first;
  double second;

  explicit PowerOfTwo(int exponent) {
    constexpr int limit = 2042;
    const int total = exponent > limit ? limit : exponent < -limit ? -limit : exponent;
    first = __builtin_ldexp(1, total / 2);
    second = __builtin_ldexp(1, total - total / 2);
  }
  double operator()(double a) const { return (a * first) * second; }
};

template <typename T>
inline double* scaled_copy(const T* a, int64_t rows, int64_t columns, int64_t stride, const PowerOfTwo& factor,
                           Scratch& scratch) {
  double* copy = scratch.take<double>(rows * stride);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) copy[i * stride + j] = factor(static_cast<double>(a[i * columns + j]));
  return copy;
}

// The contiguous matrix a as doubles.
inline Operand<double> as_double(const double* a, int64_t, int64_t columns, Scratch&) { return plain(a, columns); }

inline Operand<double> as_double(const float* a, int64_t rows, int64_t columns, Scratch& scratch) {
  const int64_t stride = row_stride<double>(columns);
  return plain(scaled_copy(a, rows, columns, stride, PowerOfTwo(0), scratch), stride);
}

// -a of a k x k matrix.
inline Operand<double> negated(const double* a, int64_t k, int64_t stride, Scratch& scratch) {
  double* negative = scratch.take<double>(k * stride);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) negative[i * stride + j] = -a[i * stride + j];
  return plain(negative, stride);
}

// From U^T gU in `projected_u` to the core, in place:
//   per_value ((Ju + Jv) / (2 (s_j - s_i)) + (Ju - Jv) / (2 (s_j + s_i)))
// off the diagonal, grad_s on it. s is relative to s_1. All are zero beyond k, up to a whole number of vectors.
inline void divide_by_gaps(double* projected_u, const double* projected_v, int64_t stride, const double* s,
                           const double* grad_s, double per_value, double negligible, double gap, int64_t k) {
  constexpr int64_t w = lanes<double>;
  const Vector<double> zero{}, one = splat(1.0), half_unit = splat(0.5 * per_value);
  double across_u[w * w], across_v[w * w], mirrored[w * w];
  for (int64_t i0 = 0; i0 < k; i0 += w)
    for (int64_t j0 = 0; j0 <= i0; j0 += w) {
      transpose_block(projected_u + j0 * stride + i0, stride, across_u, w);
      transpose_block(projected_v + j0 * stride + i0, stride, across_v, w);
      const Vector<double> s_j = load(s + j0);
      for (int64_t i = 0; i < w; ++i) {
        double* row = projected_u + (i0 + i) * stride + j0;
        const Vector<double> skew_u = load(row) - load(across_u + i * w);
        const Vector<double> skew_v = load(projected_v + (i0 + i) * stride + j0) - load(across_v + i * w);
        const Vector<double> sum = s_j + s[i0 + i], difference = s_j - s[i0 + i];
        const auto nonzero = sum > negligible;
        const auto distinct = nonzero & ((difference < 0 ? -difference : difference) > gap * sum);
        const Vector<double> symmetric =
            distinct ? (skew_u + skew_v) * (half_unit / (distinct ? difference : one)) : zero;
        const Vector<double> skew = nonzero ? (skew_u - skew_v) * (half_unit / (nonzero ? sum : one)) : zero;
        store(row, symmetric + skew);
        store(mirrored + i * w, symmetric - skew);
      }
      if (j0 < i0) transpose_block(mirrored, w, projected_u + j0 * stride + i0, stride);
    }
  for (int64_t i = 0; i < k; ++i) projected_u[i * stride + i] = grad_s[i];
}

// A k x k matrix, zero beyond k up to whole vectors.
inline double* take_padded(int64_t k, int64_t stride, Scratch& scratch) {
  const int64_t padded = round_up(k, lanes<double>);
  double* a = scratch.take<double>(padded * stride);
  for (int64_t i = 0; i < padded; ++i)
    for (int64_t j = i < k ? k : 0; j < stride; ++j) a[i * stride + j] = 0;
  return a;
}

inline void fill_zero(double* a, int64_t rows, int64_t stride) {
  for (int64_t i = 0; i < rows * stride; ++i) a[i] = 0;
}

inline const double* rounded(const double* a, int64_t, int64_t, Scratch&, const double&) { return a; }

// The k rows of a in T.
inline const float* rounded(const double* a, int64_t k, int64_t stride, Scratch& scratch, const float&) {
  float* copy = scratch.take<float>(k * stride);
  for (int64_t i = 0; i < k * stride; ++i) copy[i] = static_cast<float>(a[i]);
  return copy;
}

}  // namespace dense

// svdrd::svd_backward for one matrix.
//
// For float32 matrices the products before the division by s_j - s_i are formed in double, because Ju + Jv cancels where
// that is small; those after it are plain products of float32.
template <typename T>
inline void dense_svd_backward(const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s, const T* vh,
                               int64_t m, int64_t n, T* grad_a, DenseWorkspace<T>& workspace) {
  const int64_t k = m < n ? m : n;
  if (k == 0) return;
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);

  const auto largest = [](const T* a, int64_t rows, int64_t columns) {
    return a == nullptr ? 0.0 : static_cast<double>(dense::largest_magnitude(a, rows, columns, columns));
  };
  const double s_1 = largest(s, 1, k), unit = s_1 > 0 ? s_1 : 1;
  const SvdBackwardScale scale =
      svd_backward_scale<T>(largest(grad_u, m, k), largest(grad_s, 1, k), largest(grad_vh, k, n), s_1);
  if (!scale.finite) {
    dense::fill_nan(grad_a, m, n, n);
    return;
  }

  double* relative = scratch.template take_zeros<double>(dense::round_up(k, dense::lanes<double>));
  double* inverse = scratch.template take<double>(k);
  double* diagonal = scratch.template take_zeros<double>(k);
  const dense::PowerOfTwo to_result(-scale.result), to_vectors(-scale.vectors);
  for (int64_t i = 0; i < k; ++i) {
    relative[i] = static_cast<double>(s[i]) / unit;
    inverse[i] = relative[i] > negligible_value<T> ? scale.per_value / relative[i] : 0;
    if (grad_s != nullptr) diagonal[i] = to_result(static_cast<double>(grad_s[i]));
  }

  // left = U core, or right = core Vh, on top of what lies outside the span of U or V.
  const int64_t k_stride = dense::row_stride<double>(k), n_stride = dense::row_stride<double>(n);
  T* left = m < n ? nullptr : scratch.template take<T>(m * k_stride);
  T* right = m < n ? scratch.template take<T>(k * n_stride) : nullptr;
  double* projected_u = dense::take_padded(k, k_stride, scratch);
  double* projected_v = dense::take_padded(k, k_stride, scratch);
  bool outside = false;
  if (grad_u != nullptr) {
    dense::ScratchScope inner(scratch);
    const dense::Operand<double> basis = dense::as_double(u, m, k, scratch);
    double* g = dense::scaled_copy(grad_u, m, k, k_stride, to_vectors, scratch);
    dense::gemm<double>(k, k, m, basis.transposed(), dense::plain(g, k_stride), projected_u, k_stride, scratch);
    if (m > n) {
      outside = true;
      dense::gemm<double>(m, k, k, basis, dense::negated(projected_u, k, k_stride, scratch), g, k_stride, scratch,
                          {true});
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < k; ++j) left[i * k_stride + j] = static_cast<T>(g[i * k_stride + j] * inverse[j]);
    }
  } else {
    dense::fill_zero(projected_u, k, k_stride);
  }
  if (grad_vh != nullptr) {
    dense::ScratchScope inner(scratch);
    const dense::Operand<double> basis = dense::as_double(vh, k, n, scratch);
    double* g = dense::scaled_copy(grad_vh, k, n, n_stride, to_vectors, scratch);
    dense::gemm<double>(k, k, n, basis, dense::transposed(g, n_stride), projected_v, k_stride, scratch);
    if (m < n) {
      outside = true;
      dense::gemm<double>(k, n, k, dense::negated(projected_v, k, k_stride, scratch).transposed(), basis, g, n_stride,
                          scratch, {true});
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < n; ++j) right[i * n_stride + j] = static_cast<T>(g[i * n_stride + j] * inverse[i]);
    }
  } else {
    dense::fill_zero(projected_v, k, k_stride);
  }

  dense::divide_by_gaps(projected_u, projected_v, k_stride, relative, diagonal, scale.per_value, negligible_value<T>,
                        distinct_gap<T>(m, n), k);
  const dense::Operand<T> core = dense::plain(dense::rounded(projected_u, k, k_stride, scratch, T()), k_stride);
  if (m >= n) {
    dense::gemm<T>(m, k, k, dense::plain(u, k), core, left, k_stride, scratch, {outside});
    dense::gemm<T>(m, n, k, dense::plain(left, k_stride), dense::plain(vh, n), grad_a, n, scratch);
  } else {
    dense::gemm<T>(k, n, k, core, dense::plain(vh, n), right, n_stride, scratch, {outside});
    dense::gemm<T>(m, n, k, dense::plain(u, k), dense::plain(right, n_stride), grad_a, n, scratch);
  }

  const dense::PowerOfTwo from_result(scale.result);
  constexpr double bound = dense::Limits<T>::largest;
  for (int64_t i = 0; i < m * n; ++i) {
    const double value = from_result(static_cast<double>(grad_a[i]));
    grad_a[i] = static_cast<T>(value > bound ? bound : value < -bound ? -bound : value);
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
