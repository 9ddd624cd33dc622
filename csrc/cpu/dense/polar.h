// Polar factor, its vector-Jacobian product and the basis loss of one matrix (pair), by way of cpu/dense/svd.h.
#pragma once

#include <limits>

#include "cpu/dense/svd.h"
#include "cpu/noise.h"
#include "equal_within.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// What the polar factor and its derivative need, in the orientation of the matrix: the kept singular vectors (all of
// them in the smoothed form) as rows of left (count x m) and right (count x n).
template <typename T>
struct PolarFactors {
  int64_t count;
  T* left;
  int64_t left_stride;
  T* right;
  int64_t right_stride;
  double* s;  // in units of 2^exponent
  int exponent;
};

// smooth in the scaled units of a decomposition.
inline double scaled_smooth(double smooth, int exponent) { return __builtin_ldexp(smooth, -exponent); }

// s / sqrt(s^2 + smooth^2); where smooth overflows in the scaled units, s is negligible beside it.
inline double smooth_weight(double s, double smooth, int exponent) {
  const double scaled = scaled_smooth(smooth, exponent);
  return scaled <= Limits<double>::largest ? s / __builtin_hypot(s, scaled) : __builtin_ldexp(s / smooth, exponent);
}

inline double largest_value(const double* s, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = s[i] > largest ? s[i] : largest;
  return largest;
}

template <typename T>
inline PolarFactors<T> take_polar_factors(const Decomposition& d, Scratch& scratch) {
  PolarFactors<T> factors{};
  factors.left_stride = row_stride<T>(d.wide ? d.q : d.p);
  factors.right_stride = row_stride<T>(d.wide ? d.p : d.q);
  factors.left = scratch.take<T>(d.q * factors.left_stride);
  factors.right = scratch.take<T>(d.q * factors.right_stride);
  factors.s = scratch.take<double>(d.q);
  factors.exponent = d.exponent;
  return factors;
}

template <typename T, typename Source>
inline void append_factor(PolarFactors<T>& factors, const Decomposition& d, int64_t i, const Source* u_row,
                          double u_factor) {
  T* u = d.wide ? factors.right + factors.count * factors.right_stride
                : factors.left + factors.count * factors.left_stride;
  T* v = d.wide ? factors.left + factors.count * factors.left_stride
                : factors.right + factors.count * factors.right_stride;
  convert_scaled_row(u, u_row, u_factor, d.p);
  convert_row(v, d.v + i * d.v_stride, d.q);
  factors.s[factors.count++] = d.s[i];
}

inline void correct_factors(PolarFactors<double>&, const Decomposition&, double, Scratch&) {}

// P = Y (Y^T Y + smooth^2 I)^(-1/2) V^T to first order in the E of correct_rows, with r = sqrt(s^2 + smooth^2):
// u_j - sum_i E_ij s_i^2 / (r_i (r_i + r_j)) u_i in place of u_j. No gap between singular values enters.
inline void correct_factors(PolarFactors<float>& factors, const Decomposition& d, double smooth, Scratch& scratch) {
  if (factors.count == 0) return;
  ScratchScope scope(scratch);
  double* r = scratch.take<double>(factors.count);
  double smallest = Limits<double>::largest;
  for (int64_t i = 0; i < factors.count; ++i) {
    r[i] = smooth == 0 ? factors.s[i] : __builtin_hypot(factors.s[i], scaled_smooth(smooth, d.exponent));
    smallest = factors.s[i] < smallest ? factors.s[i] : smallest;
  }
  const double* s = factors.s;
  const double largest = largest_value(d.s, d.q);
  correct_rows(
      d.wide ? factors.right : factors.left, d.wide ? factors.right_stride : factors.left_stride, factors.count, d.p, s,
      largest, smallest, [s, r](int64_t i, int64_t j) { return s[i] / r[i] * (s[i] / (r[i] + r[j])); }, scratch);
  // What the second order leaves is within the rounding of A, but no partial isometry.
  if (smooth == 0 && smallest <= smallest_corrected * largest)
    for (int pass = 0; pass < 2; ++pass)
      correct_rows(
          d.wide ? factors.right : factors.left, d.wide ? factors.right_stride : factors.left_stride, factors.count, d.p,
          s, largest, smallest, [](int64_t, int64_t) { return 0.5; }, scratch);
}

// The factors of d whose product is P.
template <typename T>
inline PolarFactors<T> polar_factors(const Decomposition& d, double rcond, double smooth, Scratch& scratch) {
  PolarFactors<T> factors = take_polar_factors<T>(d, scratch);
  const double threshold = rcond * largest_value(d.s, d.q);
  const bool normalised = sizeof(T) == 8;
  for (int64_t i = 0; i < d.q; ++i)
    if (d.s[i] > 0 && (smooth > 0 || d.s[i] > threshold))
      append_factor(factors, d, i, d.u + i * d.u_stride, normalised ? 1 : 1 / d.s[i]);
  correct_factors(factors, d, smooth, scratch);
  if (smooth > 0)
    for (int64_t i = 0; i < factors.count; ++i) {
      const T weight = static_cast<T>(smooth_weight(factors.s[i], smooth, d.exponent));
      T* row = factors.left + i * factors.left_stride;
      for (int64_t j = 0; j < (d.wide ? d.q : d.p); ++j) row[j] *= weight;
    }
  return factors;
}

// P (m x n) = left^T right.
template <typename T>
inline void multiply_polar_factors(const PolarFactors<T>& factors, int64_t m, int64_t n, T* p, int64_t stride,
                                   Scratch& scratch) {
  gemm<T>(m, n, factors.count, transposed(factors.left, factors.left_stride),
          plain(factors.right, factors.right_stride), p, stride, scratch);
}

template <typename T>
inline T clamp(double x, double bound) {
  return static_cast<T>(x > bound ? bound : (x < -bound ? -bound : x));
}

// a *= factor, clamped to finite numbers.
template <typename T>
inline void scale_rows(T* a, int64_t rows, int64_t columns, int64_t stride, T factor) {
  constexpr int64_t w = lanes<T>;
  const Vector<T> factors = splat(factor), upper = splat(Limits<T>::largest), lower = splat(-Limits<T>::largest);
  for (int64_t i = 0; i < rows; ++i) {
    T* const row = a + i * stride;
    int64_t j = 0;
    for (; j + w <= columns; j += w) {
      const Vector<T> x = factors * load(row + j);
      store(row + j, x > upper ? upper : (x < lower ? lower : x));
    }
    for (; j < columns; ++j) row[j] = clamp<T>(static_cast<double>(row[j]) * factor, Limits<T>::largest);
  }
}

// As many numbers as there are lanes of double.
template <typename T>
inline Lanes load_doubles(const T* p) {
  typedef T Numbers __attribute__((vector_size(lanes<double> * sizeof(T)), aligned(sizeof(T)), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Numbers*>(p), Lanes);
}

template <typename T>
inline void store_doubles(T* p, Lanes v) {
  typedef T Numbers __attribute__((vector_size(lanes<double> * sizeof(T)), aligned(sizeof(T)), may_alias));
  *reinterpret_cast<Numbers*>(p) = __builtin_convertvector(v, Numbers);
}

// Z from W in place (both count x count): the divided differences of docs/design/gradients.md. s is relative to s_1.
template <typename T>
inline void divided_differences(T* w, int64_t stride, int64_t count, const double* s) {
  constexpr double bound = Limits<T>::largest_factor;
  constexpr int64_t size = lanes<T>;
  const Lanes upper = splat(bound), lower = splat(-bound);
  const int64_t whole = round_down(count, size);
  // Square blocks, each with its mirror image across the diagonal.
  T mirrored[size * size], negated[size * size];
  for (int64_t i0 = 0; i0 < whole; i0 += size)
    for (int64_t j0 = 0; j0 <= i0; j0 += size) {
      T* const block = w + i0 * stride + j0;
      transpose_block(w + j0 * stride + i0, stride, mirrored, size);
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; j += lanes<double>) {
          const Lanes z = (load_doubles(block + i * stride + j) - load_doubles(mirrored + i * size + j)) /
                          (s[i0 + i] + load(s + j0 + j));
          const Lanes clamped = z > upper ? upper : (z < lower ? lower : z);
          store_doubles(block + i * stride + j, clamped);
          store_doubles(negated + i * size + j, -clamped);
        }
      if (j0 < i0) transpose_block(static_cast<const T*>(negated), size, w + j0 * stride + i0, stride);
    }
  for (int64_t i = whole; i < count; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const double z = (w[i * stride + j] - w[j * stride + i]) / (s[i] + s[j]);
      w[i * stride + j] = clamp<T>(z, bound);
      w[j * stride + i] = clamp<T>(-z, bound);
    }
}

// The same of the smoothed form. s and smooth are relative to the larger of s_1 and smooth; radius is
// sqrt(s^2 + smooth^2).
template <typename T>
inline void smoothed_differences(T* w, int64_t stride, int64_t count, const double* s, const double* radius,
                                 double smooth) {
  constexpr double bound = Limits<T>::largest_factor;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const double a = w[i * stride + j], b = w[j * stride + i];
      const double sum = s[i] + s[j];
      const double mean = sum > 0 ? s[i] / sum * radius[j] + s[j] / sum * radius[i] : smooth;
      const double odd = 0.5 * (a - b) * (mean / radius[i] / radius[j]);
      const double even = 0.5 * (a + b) * ((smooth / radius[i]) * (smooth / radius[j]) / mean);
      w[i * stride + j] = clamp<T>(even + odd, bound);
      w[j * stride + i] = clamp<T>(even - odd, bound);
    }
}

// out (m x n) = factor * U Z V^T, the vector-Jacobian product of the polar factor with the direction g, in the form
// that needs only the kept singular vectors: with W = U^T G V, and D = s, or sqrt(s^2 + smooth^2) in the smoothed form,
//   U Z V^T + (I - U U^T) G V D^-1 V^T + U D^-1 U^T G (I - V V^T).
// u: m x count, vt: count x n; s in units of 2^exponent, every s > 0 or smooth > 0. Finite results for finite g.
template <typename T>
inline void polar_vjp(const T* g, int64_t g_stride, int64_t m, int64_t n, Operand<T> u, Operand<T> vt, const double* s,
                      int64_t count, double smooth, int exponent, double factor, T* out, int64_t out_stride,
                      Scratch& scratch) {
  ScratchScope scope(scratch);
  if (count == 0) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) out[i * out_stride + j] = 0;
    return;
  }
  const double scaled = smooth == 0 ? 0 : scaled_smooth(smooth, exponent);
  const double largest = largest_value(s, count);
  const double unit = scaled > largest ? scaled : largest;
  double* relative = scratch.take<double>(count);
  double* radius = scratch.take<double>(count);
  const double relative_smooth = smooth == 0 ? 0 : (scaled / unit > 1e-290 ? scaled / unit : 1e-290);
  for (int64_t i = 0; i < count; ++i) {
    relative[i] = s[i] / unit;
    radius[i] = smooth == 0 ? relative[i] : __builtin_hypot(relative[i], relative_smooth);
  }
  // g near the ends of the range would overflow or vanish in the products.
  int g_exponent = 0;
  const double g_largest = largest_magnitude(g, m, n, g_stride);
  if (g_largest > 0x1p60 || (g_largest > 0 && g_largest < 0x1p-60)) {
    __builtin_frexp(g_largest, &g_exponent);
    const int64_t stride = row_stride<T>(n);
    T* scaled_g = scratch.take<T>(m * stride);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        scaled_g[i * stride + j] =
            static_cast<T>(__builtin_ldexp(static_cast<double>(g[i * g_stride + j]), -g_exponent));
    g = scaled_g;
    g_stride = stride;
  }

  const bool outside_u = count < m, outside_v = count < n;
  const int64_t w_stride = row_stride<T>(count), n_stride = row_stride<T>(n);
  T* w = scratch.take<T>(count * w_stride);
  T* gv = nullptr;
  T* utg = nullptr;
  if (outside_v) {
    utg = scratch.take<T>(count * n_stride);
    gemm<T>(count, n, m, u.transposed(), plain(g, g_stride), utg, n_stride, scratch);
    gemm<T>(count, count, n, plain(utg, n_stride), vt.transposed(), w, w_stride, scratch);
  }
  if (outside_u || !outside_v) {
    gv = scratch.take<T>(m * w_stride);
    gemm<T>(m, count, n, plain(g, g_stride), vt.transposed(), gv, w_stride, scratch);
    if (!outside_v) gemm<T>(count, count, m, u.transposed(), plain(gv, w_stride), w, w_stride, scratch);
  }
  // The kept-kept part, less what the two outside parts below put there by using G itself in place of its projection.
  T* z = w;
  if (outside_u || outside_v) {
    z = scratch.take<T>(count * w_stride);
    for (int64_t i = 0; i < count; ++i) copy(z + i * w_stride, w + i * w_stride, count);
  }
  if (smooth == 0)
    divided_differences(z, w_stride, count, relative);
  else
    smoothed_differences(z, w_stride, count, relative, radius, relative_smooth);
  if (outside_u || outside_v)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < count; ++j) {
        const double inverse = (outside_u ? 1 / radius[j] : 0) + (outside_v ? 1 / radius[i] : 0);
        z[i * w_stride + j] = clamp<T>(z[i * w_stride + j] - w[i * w_stride + j] * inverse, Limits<T>::largest_factor);
      }
  if (outside_u)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < count; ++j)
        gv[i * w_stride + j] = clamp<T>(gv[i * w_stride + j] / radius[j], Limits<T>::largest_factor);
  if (outside_v)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < n; ++j)
        utg[i * n_stride + j] = clamp<T>(utg[i * n_stride + j] / radius[i], Limits<T>::largest_factor);

  if (outside_v && !outside_u) {
    gemm<T>(count, n, count, plain(z, w_stride), vt, utg, n_stride, scratch, {true});
    gemm<T>(m, n, count, u, plain(utg, n_stride), out, out_stride, scratch);
  } else {
    gemm<T>(m, count, count, u, plain(z, w_stride), gv, w_stride, scratch, {outside_u});
    gemm<T>(m, n, count, plain(gv, w_stride), vt, out, out_stride, scratch);
    if (outside_v) gemm<T>(m, n, count, u, plain(utg, n_stride), out, out_stride, scratch, {true});
  }

  int unit_exponent;
  const double unit_fraction = __builtin_frexp(unit, &unit_exponent);
  const double multiplier = factor / unit_fraction;
  const int shift = g_exponent - exponent - unit_exponent;
  const double whole = __builtin_ldexp(multiplier, shift), size = __builtin_fabs(whole);
  if (size > 1e-30 && size < 1e30) {
    scale_rows(out, m, n, out_stride, static_cast<T>(whole));
  } else {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        out[i * out_stride + j] =
            clamp<T>(__builtin_ldexp(out[i * out_stride + j] * multiplier, shift), Limits<T>::largest);
  }
}

// How far apart two entries may be that are equal but for rounding. Smoothed factors may be much smaller than 1: their
// largest singular value is at most sqrt(m n) times their largest entry.
template <typename T>
inline T equality_bound(const T* p_hat, const T* p, int64_t m, int64_t n, int64_t stride, bool smoothed) {
  const double bound = equal_within * static_cast<double>(std::numeric_limits<T>::epsilon());
  if (!smoothed) return static_cast<T>(bound);
  const double hat = largest_magnitude(p_hat, m, n, stride), other = largest_magnitude(p, m, n, stride);
  const double largest = (hat > other ? hat : other) * __builtin_sqrt(static_cast<double>(m) * static_cast<double>(n));
  return static_cast<T>(largest < 1 ? bound * largest : bound);
}

// The difference of two polar factors: its mean magnitude, and in `sign` its signs, 0 up to `bound`.
template <typename T>
inline double mean_difference(const T* p_hat, const T* p, int64_t m, int64_t n, int64_t stride, T bound, T* sign) {
  constexpr int64_t w = lanes<T>;
  const Vector<T> zero{}, one = splat(T(1)), upper = splat(bound), lower = splat(-bound);
  double total = 0;
  for (int64_t i = 0; i < m; ++i) {
    const T* x = p_hat + i * stride;
    const T* y = p + i * stride;
    T* sign_row = sign + i * stride;
    Vector<T> sum{};
    int64_t j = 0;
    for (; j + w <= n; j += w) {
      const Vector<T> difference = load(x + j) - load(y + j);
      sum += difference < 0 ? -difference : difference;
      store(sign_row + j, difference > upper ? one : (difference < lower ? -one : zero));
    }
    total += sum_lanes<T>(sum);
    for (; j < n; ++j) {
      const T difference = x[j] - y[j];
      total += difference < 0 ? -difference : difference;
      sign_row[j] = static_cast<T>(difference > bound ? 1 : (difference < -bound ? -1 : 0));
    }
  }
  return total / (static_cast<double>(m) * static_cast<double>(n));
}

// Sets p to zero where rows and columns of a are, and returns the sum of the squares of what was there.
inline double clear_empty_lines(const double* a, int64_t a_stride, int64_t m, int64_t n, double* p, int64_t p_stride,
                                Scratch& scratch) {
  ScratchScope scope(scratch);
  bool* const filled = scratch.take<bool>(n);
  for (int64_t j = 0; j < n; ++j) filled[j] = false;
  double cleared = 0;
  const auto clear = [&](double& entry) {
    cleared += entry * entry;
    entry = 0;
  };
  for (int64_t i = 0; i < m; ++i) {
    bool empty = true;
    for (int64_t j = 0; j < n; ++j) {
      const bool zero = a[i * a_stride + j] == 0;
      empty = empty && zero;
      filled[j] = filled[j] || !zero;
    }
    if (empty)
      for (int64_t j = 0; j < n; ++j) clear(p[i * p_stride + j]);
  }
  for (int64_t j = 0; j < n; ++j)
    if (!filled[j])
      for (int64_t i = 0; i < m; ++i) clear(p[i * p_stride + j]);
  return cleared;
}

// The partial isometry nearest to p, by the iteration of Newton and Schulz, p (3 - p^T p) / 2.
inline void make_isometric(int64_t m, int64_t n, double* p, int64_t stride, Scratch& scratch) {
  ScratchScope scope(scratch);
  const int64_t k = m < n ? m : n, gram_stride = row_stride<double>(k), next_stride = row_stride<double>(n);
  double* const gram = scratch.take<double>(k * gram_stride);
  double* const next = scratch.take<double>(m * next_stride);
  const Operand<double> factor = plain(p, stride), by_gram = plain(gram, gram_stride);
  double change = 1;
  for (int step = 0; step < isometry_steps && change > isometry_change; ++step) {
    if (m < n) {
      gemm<double>(k, k, n, factor, factor.transposed(), gram, gram_stride, scratch);
      gemm<double>(m, n, k, by_gram, factor, next, next_stride, scratch);
    } else {
      gemm<double>(k, k, m, factor.transposed(), factor, gram, gram_stride, scratch);
      gemm<double>(m, n, k, factor, by_gram, next, next_stride, scratch);
    }
    change = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double& entry = p[i * stride + j];
        const double step_here = 0.5 * (entry - next[i * next_stride + j]);
        change = __builtin_fabs(step_here) > change ? __builtin_fabs(step_here) : change;
        entry += step_here;
      }
  }
}

// Rows and columns of zeros in A are zeros in P. The singular vectors have noise there, which of an ill-conditioned
// float64 matrix may be seen; that of a float32 one, which is factored in double, is rounded away. Without the noise the
// vectors are a little too short.
template <typename T>
inline void keep_empty_lines(const T* a, int64_t a_stride, int64_t m, int64_t n, double smooth, T* p, int64_t p_stride,
                             Scratch& scratch) {
  if constexpr (sizeof(T) == 8) {
    const double cleared = clear_empty_lines(a, a_stride, m, n, p, p_stride, scratch);
    if (smooth == 0 && cleared > epsilon) make_isometric(m, n, p, p_stride, scratch);
  }
}

// P of one side of the basis loss, and the factors its gradient needs where `gradient`.
template <typename T>
inline PolarFactors<T> loss_side(const T* x, int64_t stride, int64_t m, int64_t n, double rcond, double smooth,
                                 bool gradient, T* p, int64_t p_stride, bool& finite, Scratch& scratch) {
  const Decomposition d = decompose(x, stride, m, n, scratch);
  finite = d.finite;
  if (!finite) return PolarFactors<T>{};
  PolarFactors<T> factors = polar_factors<T>(d, rcond, smooth, scratch);
  multiply_polar_factors(factors, m, n, p, p_stride, scratch);
  keep_empty_lines(x, stride, m, n, smooth, p, p_stride, scratch);
  if (gradient && smooth > 0) {
    // The smoothed gradient reaches into the null spaces, so it takes all vectors, orthonormal, and no weights.
    ScratchScope scope(scratch);
    const LeftRows<T> left = left_rows(d, T(), scratch);
    factors.count = 0;
    for (int64_t i = 0; i < d.q; ++i) append_factor(factors, d, i, left.u + i * left.stride, 1);
  }
  return factors;
}

// Whether U of the factors of P can be saved as that of the SVD: to first order their correction makes it orthonormal, too.
template <typename T>
inline bool orthonormal_factors(const PolarFactors<T>& factors, const Decomposition& d, double smooth) {
  if (sizeof(T) == 8 || smooth > 0 || factors.count < d.q) return false;
  double smallest = Limits<double>::largest;
  for (int64_t i = 0; i < factors.count; ++i) smallest = factors.s[i] < smallest ? factors.s[i] : smallest;
  return smallest > smallest_corrected * largest_value(d.s, d.q);
}

// U (m x count), S, Vh (count x n), in descending order.
template <typename T>
inline void write_factors(const PolarFactors<T>& factors, int64_t m, int64_t n, T* u, T* s, T* vh, Scratch& scratch) {
  ScratchScope scope(scratch);
  int64_t* order = scratch.take<int64_t>(factors.count);
  sort_descending(factors.s, order, factors.count, scratch);
  for (int64_t i = 0; i < factors.count; ++i)
    s[i] = static_cast<T>(__builtin_ldexp(factors.s[order[i]], factors.exponent));
  write_columns(u, factors.left, factors.left_stride, order, factors.count, m);
  write_rows(vh, factors.right, factors.right_stride, order, factors.count, n);
}

}  // namespace dense

// svdrd::polar_factor for one matrix.
template <typename T>
inline void dense_polar_factor(const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s, T* vh,
                               DenseWorkspace<T>& workspace) {
  const int64_t k = m < n ? m : n;
  if (k == 0) return;
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);
  const dense::Decomposition d = dense::decompose(a, n, m, n, scratch);
  if (!d.finite) {
    dense::fill_nan(p, m, n, n);
    dense::fill_nan(u, m, k, k);
    dense::fill_nan(s, 1, k, k);
    dense::fill_nan(vh, k, n, n);
    return;
  }
  const dense::PolarFactors<T> factors = dense::polar_factors<T>(d, rcond, smooth, scratch);
  dense::multiply_polar_factors(factors, m, n, p, n, scratch);
  dense::keep_empty_lines(a, n, m, n, smooth, p, n, scratch);
  if (u == nullptr) return;
  const int64_t kept = factors.count;
  if (dense::orthonormal_factors(factors, d, smooth))
    dense::write_factors(factors, m, n, u, s, vh, scratch);
  else
    dense::write_decomposition(d, u, s, vh, scratch);
  if (smooth > 0) return;
  for (int64_t i = 0; i < k; ++i) {
    if (i >= kept)
      s[i] = 0;
    else if (s[i] == 0)
      s[i] = dense::Limits<T>::smallest;  // kept, though it underflows in T
  }
}

// svdrd::polar_factor_backward for one matrix.
template <typename T>
inline void dense_polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t m, int64_t n,
                                        double smooth, T* grad_a, DenseWorkspace<T>& workspace) {
  const int64_t k = m < n ? m : n;
  if (k == 0) return;
  dense::ScratchScope scope(workspace.scratch);
  double* values = workspace.scratch.template take<double>(k);
  int64_t count = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double value = static_cast<double>(s[i]);
    if (!(value <= dense::Limits<double>::largest)) {
      dense::fill_nan(grad_a, m, n, n);
      return;
    }
    if (smooth > 0 || value > 0) values[count++] = value;
  }
  dense::polar_vjp<T>(grad, n, m, n, dense::plain(u, k), dense::plain(vh, n), values, count, smooth, 0, 1.0, grad_a, n,
                      workspace.scratch);
}

// svdrd::basis_loss for one pair of m x n matrices whose rows are stride_hat and stride apart; grad_x_hat and grad_x
// have the stride of their matrix and may be null.
template <typename T>
inline void dense_basis_loss(const T* x_hat, int64_t stride_hat, const T* x, int64_t stride, int64_t m, int64_t n,
                             double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x,
                             DenseWorkspace<T>& workspace) {
  if (m == 0 || n == 0) return;
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch), scope_of_helper(workspace.of_helper);
  const int64_t p_stride = dense::row_stride<T>(n);
  T* p_hat = scratch.template take<T>(m * p_stride);
  T* p = scratch.template take<T>(m * p_stride);
  bool finite_hat, finite;
  dense::PolarFactors<T> hat, other;
  const auto compute_hat = [&] {
    hat = dense::loss_side(x_hat, stride_hat, m, n, rcond, smooth, grad_x_hat != nullptr, p_hat, p_stride, finite_hat,
                           scratch);
  };
  const auto compute_other = [&](dense::Scratch& its_scratch) {
    other = dense::loss_side(x, stride, m, n, rcond, smooth, grad_x != nullptr, p, p_stride, finite, its_scratch);
  };
  if (scratch.team != nullptr && scratch.team->size == 2) {
    dense::share_two(scratch, compute_hat, [&] { compute_other(workspace.of_helper); });
  } else {
    compute_hat();
    compute_other(scratch);
  }
  if (!finite_hat || !finite) {
    dense::fill_nan(loss, 1, 1, 1);
    dense::fill_nan(grad_x_hat, m, n, stride_hat);
    dense::fill_nan(grad_x, m, n, stride);
    return;
  }
  *loss = static_cast<T>(dense::mean_difference(
      p_hat, p, m, n, p_stride, dense::equality_bound(p_hat, p, m, n, p_stride, smooth > 0), p_hat));
  const double weight = 1 / (static_cast<double>(m) * static_cast<double>(n));
  if (grad_x_hat != nullptr)
    dense::polar_vjp<T>(p_hat, p_stride, m, n, dense::transposed(hat.left, hat.left_stride),
                        dense::plain(hat.right, hat.right_stride), hat.s, hat.count, smooth, hat.exponent, weight,
                        grad_x_hat, stride_hat, scratch);
  if (grad_x != nullptr)
    dense::polar_vjp<T>(p_hat, p_stride, m, n, dense::transposed(other.left, other.left_stride),
                        dense::plain(other.right, other.right_stride), other.s, other.count, smooth, other.exponent,
                        -weight, grad_x, stride, scratch);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
