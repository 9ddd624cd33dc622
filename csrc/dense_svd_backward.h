// The vector-Jacobian product of the singular value decomposition of one matrix (docs/gradients.md, formula (2)).
#pragma once

#include "dense_svd.h"
#include "svd_backward_scale.h"

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

// The core from U^T gU and V^T gV (null where the gradient is not given), in `core`:
// per_value ((Ju + Jv) / (2 (s_j - s_i)) + (Ju - Jv) / (2 (s_j + s_i))) off the diagonal, grad_s on it. s is relative to s_1.
template <typename T>
inline void divide_by_gaps(const double* projected_u, const double* projected_v, int64_t stride, const double* s,
                           const double* grad_s, double per_value, double gap, int64_t k, T* core, int64_t core_stride) {
  const double half_unit = 0.5 * per_value;
  for (int64_t i = 0; i < k; ++i) {
    core[i * core_stride + i] = static_cast<T>(grad_s[i]);
    for (int64_t j = 0; j < i; ++j) {
      const int64_t at = i * stride + j, across = j * stride + i;
      const double skew_u = projected_u == nullptr ? 0 : projected_u[at] - projected_u[across];
      const double skew_v = projected_v == nullptr ? 0 : projected_v[at] - projected_v[across];
      const double sum = s[j] + s[i], difference = s[j] - s[i];
      const bool nonzero = sum > negligible_value<T>;
      const bool distinct = nonzero && __builtin_fabs(difference) > gap * sum;
      const double symmetric = distinct ? (skew_u + skew_v) * (half_unit / difference) : 0;
      const double skew = nonzero ? (skew_u - skew_v) * (half_unit / sum) : 0;
      core[i * core_stride + j] = static_cast<T>(symmetric + skew);
      core[j * core_stride + i] = static_cast<T>(symmetric - skew);
    }
  }
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

  double* relative = scratch.template take<double>(k);
  double* diagonal = scratch.template take_zeros<double>(k);
  const dense::PowerOfTwo to_result(-scale.result), to_vectors(-scale.vectors);
  for (int64_t i = 0; i < k; ++i) {
    relative[i] = static_cast<double>(s[i]) / unit;
    if (grad_s != nullptr) diagonal[i] = to_result(static_cast<double>(grad_s[i]));
  }

  const int64_t k_stride = dense::row_stride<double>(k), n_stride = dense::row_stride<double>(n);
  const dense::Operand<double> wide_u = dense::as_double(u, m, k, scratch), wide_vh = dense::as_double(vh, k, n, scratch);
  double* projected_u = nullptr;
  double* projected_v = nullptr;
  double* outside = nullptr;  // gU less its part in the span of U, where m > n, or the same of gVh, where m < n
  if (grad_u != nullptr) {
    double* g = dense::scaled_copy(grad_u, m, k, k_stride, to_vectors, scratch);
    projected_u = scratch.template take<double>(k * k_stride);
    dense::gemm<double>(k, k, m, wide_u.transposed(), dense::plain(g, k_stride), projected_u, k_stride);
    if (m > n) {
      outside = g;
      dense::gemm<double>(m, k, k, wide_u, dense::plain(projected_u, k_stride), outside, k_stride, {-1, true, false});
    }
  }
  if (grad_vh != nullptr) {
    double* g = dense::scaled_copy(grad_vh, k, n, n_stride, to_vectors, scratch);
    projected_v = scratch.template take<double>(k * k_stride);
    dense::gemm<double>(k, k, n, wide_vh, dense::transposed(g, n_stride), projected_v, k_stride);
    if (m < n) {
      outside = g;
      dense::gemm<double>(k, n, k, dense::transposed(projected_v, k_stride), wide_vh, outside, n_stride,
                          {-1, true, false});
    }
  }

  const int64_t core_stride = dense::row_stride<T>(k);
  T* core = scratch.template take<T>(k * core_stride);
  dense::divide_by_gaps(projected_u, projected_v, k_stride, relative, diagonal, scale.per_value, distinct_gap<T>(m, n), k,
                        core, core_stride);
  const auto inverse = [&](int64_t i) {
    return relative[i] > negligible_value<T> ? scale.per_value / relative[i] : 0;
  };
  if (m >= n) {
    T* left = scratch.template take<T>(m * core_stride);
    if (outside != nullptr) {
      double* factors = scratch.template take<double>(k);
      for (int64_t j = 0; j < k; ++j) factors[j] = inverse(j);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < k; ++j)
          left[i * core_stride + j] = static_cast<T>(outside[i * k_stride + j] * factors[j]);
    }
    dense::gemm<T>(m, k, k, dense::plain(u, k), dense::plain(core, core_stride), left, core_stride,
                   {1, outside != nullptr, false});
    dense::gemm<T>(m, n, k, dense::plain(left, core_stride), dense::plain(vh, n), grad_a, n);
  } else {
    const int64_t right_stride = dense::row_stride<T>(n);
    T* right = scratch.template take<T>(k * right_stride);
    if (outside != nullptr)
      for (int64_t i = 0; i < k; ++i) {
        const double factor = inverse(i);
        for (int64_t j = 0; j < n; ++j)
          right[i * right_stride + j] = static_cast<T>(outside[i * n_stride + j] * factor);
      }
    dense::gemm<T>(k, n, k, dense::plain(core, core_stride), dense::plain(vh, n), right, right_stride,
                   {1, outside != nullptr, false});
    dense::gemm<T>(m, n, k, dense::plain(u, k), dense::plain(right, right_stride), grad_a, n);
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
