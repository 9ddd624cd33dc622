// The polar factor of well-conditioned matrices in the lanes by Newton's iteration, and its vector-Jacobian product: no
// singular vectors, products throughout (docs/design/cpu_small.md has the counts and the errors).
//
// With A = P H, Newton's iteration X <- (g X + X^-T / g) / 2 from X = A keeps every iterate of the form P H_k:
//   H_0 = H,  H_{k+1} = (g_k H_k + H_k^-1 / g_k) / 2 -> I.
// In place of X_k this follows M_k = H_k^2 (Denman and Beavers' iteration in its product form: Cheng, Higham, Kenney and
// Laub 2001), which is symmetric positive definite, so that it is inverted without pivoting:
//   M_0 = A^T A,  M_{k+1} = I / 2 + (g_k^2 M_k + M_k^-1 / g_k^2) / 4,
//   H_k^-1 = f_k H_{k+1}^-1  with  f_k = (g_k I + M_k^-1 / g_k) / 2,  P = A H_0^-1.
// The scales g_k follow from bounds on the singular values (Byers and Xu 2008). After four steps M_4 is so near to a
// multiple of I that a polynomial of degree two gives the rest. M_0 squares the condition, hence the bound on it.
//
// The vector-Jacobian product is P Omega, where H Omega + Omega H = P^T G - G^T P. It goes back through the iterates,
//   Omega <- (g_k Omega + H_k^-1 Omega H_k^-1 / g_k) / 2,   from Omega = (P^T G - G^T P) / 2 where H = I.
// Omega stays antisymmetric to the last bit, so there is no symmetric part of rounding that 1/s^2 could blow up. Outside the
// columns of P, where there are more rows than columns, (I - P P^T) G H^-1 is added.
//
// The smoothed factor is A H^-1 with H^2 = A^T A + e^2 I, that is the upper part of the polar factor of [A; e I]. So it
// takes the same iteration from M_0 = A^T A + e^2 I, and (I - P P^T) G H^-1 is added for square matrices, too.
//
// Everything that P comes from is in double. It must be: f_k H_{k+1}^-1 is symmetric only because the two commute, and an
// error in H_{k+1}^-1 does not commute with f_k; it returns multiplied by the condition of f_k.
#pragma once

#include <algorithm>

#include "cpu/lanes/definite.h"
#include "cpu/lanes/factor.h"
#include "cpu/lanes/polar.h"
#include "cpu/lanes/product.h"
#include "cpu/lanes/size.h"
#include "cpu/lanes/transfer.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// The largest norm(A) norm(A^-1), Frobenius, that is accepted: M_0^-1 has an error of 2^-53 times its square, and
// M_4 / c - I is at most 0.027.
constexpr double largest_newton_condition = 0x1p18;

// The error of the sums in M_0 grows with the number of rows, so the bounds fall with its root.
inline double share_of_bounds(int64_t rows) {
  constexpr int64_t few = 32;
  return rows <= few ? 1 : __builtin_sqrt(static_cast<double>(few) / static_cast<double>(rows));
}

// The same for a matrix of so many rows and a given rcond: whatever is accepted has s_k > rcond s_1, so nothing is dropped.
// A smoothed factor decides no rank.
inline double newton_bound(double rcond, double smooth, int64_t rows) {
  const double bound = largest_newton_condition * share_of_bounds(rows);
  return smooth > 0 || rcond * bound < 0.5 ? bound : 0.5 / rcond;
}

// Its norm is within these, too: then no scaling is needed for the derivative, of entries up to 2^68, to fit a float.
constexpr double smallest_newton_norm = 0x1p-50;
constexpr double largest_newton_norm = 0x1p50;

// The norm of a smoothed factor's H is at most this times e, and its condition at most this: what M_0^-1 lost is in
// I - P P^T, too, and H^-1 multiplies it once more. Nor would the derivative keep its digits where all of it is that part.
constexpr double largest_smoothed_norm = 0x1p13;

constexpr int newton_steps = 4;

// The matrices of a group and what the backward needs of their polar factor. Rows are as many as the matrices have,
// columns are filled up with zeros to a multiple of 4; M_0 is then a multiple of the identity there.
struct Newton {
  int64_t rows;
  int64_t columns;
  int64_t padded;
  Pack<double>* a;                        // rows x padded
  Pack<double>* square;                   // M_k, lower triangle; at the end H_3^-1
  Pack<double>* inverse_m[newton_steps];  // M_k^-1
  Pack<double>* inverse_h[newton_steps];  // H_k^-1; it overwrites M_{k+1}^-1, and the last one `square`
  Pack<double>* inverse_h4;
  Pack<double>* deviation;  // N of M_4 = c (I + N)
  Pack<double>* unrounded;  // P
  Pack<double> condition;                    // norm(H_0) norm(H_0^-1)
  Pack<double> scale[newton_steps];          // g_k
  Pack<double> inverse_scale[newton_steps];  // 1 / g_k
  Pack<double> root;                         // c^(-1/2)
  Pack<double> inverse_root;
  Pack<double> linear;               // H_4^-1 = root I + linear N + quadratic N^2
  Pack<double> quadratic;
  Mask<double> accepted;

  Pack<float>* inverse_h_single;
  Pack<float>* inner;
  Pack<float>* omega;
  Pack<float>* correction;
  Pack<float>* outside;  // rows x padded

  Newton(Arena& arena, int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), padded((columns_ + 3) / 4 * 4) {
    a = arena.matrix<double>(rows, padded);
    square = arena.matrix<double>(padded, padded);
    for (Pack<double>*& matrix : inverse_m) matrix = arena.matrix<double>(padded, padded);
    for (int k = 0; k < newton_steps; ++k) inverse_h[k] = k + 1 < newton_steps ? inverse_m[k + 1] : square;
    inverse_h4 = arena.matrix<double>(padded, padded);
    deviation = arena.matrix<double>(padded, padded);
    unrounded = arena.matrix<double>(rows, padded);
    inverse_h_single = arena.matrix<float>(padded, padded);
    inner = arena.matrix<float>(padded, padded);
    omega = arena.matrix<float>(padded, padded);
    correction = arena.matrix<float>(padded, padded);
    outside = arena.matrix<float>(rows, padded);
  }
};

// M_0 = A^T A + smooth^2 I. Returns its trace without the padding.
[[gnu::always_inline]] inline Pack<double> form_square(Newton& w, double smooth, int64_t rows, int64_t n) {
  const int64_t stride = row_stride(n);
  for_each_lower_entry(transposed(w.a, n), plain(w.a, n), n, rows,
                       [&w, stride](int64_t i, int64_t j, int part, const auto& sum) {
                         w.square[i * stride + j].part[part] = sum;
                       });
  const Pack<double> shift(smooth * smooth);
  Pack<double> trace(0.0);
  for (int64_t i = 0; i < w.columns; ++i) {
    w.square[i * stride + i] = w.square[i * stride + i] + shift;
    trace = trace + w.square[i * stride + i];
  }
  // The mean of the eigenvalues lies among them.
  const Pack<double> mean = trace * Pack<double>(1.0 / static_cast<double>(w.columns));
  for (int64_t i = w.columns; i < n; ++i) w.square[i * stride + i] = mean;
  return trace;
}

// (r^(1/2) + r^(-1/2)) / 2 from r and r^(-1/2). Written out: whether the first root, which is needed elsewhere, is
// rounded before it is added would be the compiler's choice, and another one for another number of lanes.
inline Pack<double> next_ratio_of_bounds(const Pack<double>& ratio, const Pack<double>& inverse_root) {
  return Pack<double>(0.5) * multiply_add(ratio, inverse_root, inverse_root);
}

// p = P(a), rounded to float, in the accepted lanes: those where norm(H) norm(H^-1) <= bound and norm(H) is neither very
// small nor very large, nor NaN. In the others p holds nothing of use. Not inlined: equal matrices must give equal bits
// everywhere.
template <int64_t known>
[[gnu::noinline]] void newton_polar(Newton& w, double bound, double smooth, Pack<float>* p) {
  const int64_t n = known_or<known>(w.padded), rows = known_or<known>(w.rows), stride = row_stride(n);
  const Pack<double> quarter(0.25), half(0.5), one(1.0);
  const Pack<double> trace = form_square(w, smooth, rows, n);
  invert_definite(w.square, n, w.inverse_m[0]);
  double largest_norm = largest_newton_norm;
  if (smooth > 0) largest_norm = std::min(largest_norm, largest_smoothed_norm * smooth * share_of_bounds(rows));
  // Of a singular matrix there is NaN or Inf among these, or a large number, which fail the comparison.
  Pack<double> inverse_trace(0.0);
  for (int64_t i = 0; i < w.columns; ++i) inverse_trace = inverse_trace + w.inverse_m[0][i * stride + i];
  w.accepted = (trace * inverse_trace <= Pack<double>(bound * bound)) &
               (Pack<double>(smallest_newton_norm * smallest_newton_norm) <= trace) &
               (trace <= Pack<double>(largest_norm * largest_norm));
  if (!any(w.accepted)) return;

  // Bounds l and u on the singular values of H_k: first the Frobenius norms, then 1 and what Newton's step implies.
  // g_k = (l u)^(-1/2), and (u/l)^(1/2) decides the next u.
  const Pack<double> inverse_root_trace = reciprocal_sqrt(trace), root_inverse_trace = reciprocal_sqrt(inverse_trace);
  const Pack<double> product_of_bounds = (trace * inverse_root_trace) * root_inverse_trace;
  w.condition = (trace * inverse_root_trace) * (inverse_trace * root_inverse_trace);
  Pack<double> ratio_of_bounds = w.condition;
  for (int k = 0; k < newton_steps; ++k) {
    if (k > 0) invert_definite(w.square, n, w.inverse_m[k]);
    const Pack<double> inverse_root_ratio = reciprocal_sqrt(ratio_of_bounds);
    const Pack<double> root_ratio = ratio_of_bounds * inverse_root_ratio;
    w.scale[k] = k == 0 ? reciprocal_sqrt(product_of_bounds) : inverse_root_ratio;
    w.inverse_scale[k] = k == 0 ? product_of_bounds * w.scale[0] : root_ratio;
    const Pack<double> forward = quarter * w.scale[k] * w.scale[k];
    const Pack<double> backward = quarter * w.inverse_scale[k] * w.inverse_scale[k];
    ratio_of_bounds = next_ratio_of_bounds(ratio_of_bounds, inverse_root_ratio);
    if (k + 1 == newton_steps) {
      // M_4 = c (I + N), all of N.
      const Pack<double> inverse_centre = Pack<double>(2.0) / (one + ratio_of_bounds * ratio_of_bounds);
      const Pack<double> centred_forward = inverse_centre * forward, centred_backward = inverse_centre * backward;
      const Pack<double> diagonal = half * inverse_centre - one;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j)
          w.deviation[i * stride + j] = w.deviation[j * stride + i] =
              sum_of_products(centred_forward, w.square[i * stride + j], centred_backward,
                              w.inverse_m[k][i * stride + j]);
        w.deviation[i * stride + i] = w.deviation[i * stride + i] + diagonal;
      }
      // (1 + x)^(-1/2) = 1 - x/2 + 3/8 x^2 - 5/16 x^3 for |x| <= e, with 3/4 e^2 x, the nearest to it there, for x^3.
      const Pack<double> e = one - inverse_centre;
      w.inverse_root = reciprocal_sqrt(inverse_centre);
      w.root = inverse_centre * w.inverse_root;
      w.linear = -w.root * (half + Pack<double>(15.0 / 64) * e * e);
      w.quadratic = Pack<double>(0.375) * w.root;
    } else {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t at = i * stride + j;
          w.square[at] = sum_of_products(forward, w.square[at], backward, w.inverse_m[k][at]);
        }
        w.square[i * stride + i] = w.square[i * stride + i] + half;
      }
    }
  }

  const Plain<double> deviation = plain(w.deviation, n);
  add_symmetric_product(deviation, deviation, n, w.linear, w.deviation, w.quadratic, w.inverse_h4);
  for (int64_t i = 0; i < n; ++i) w.inverse_h4[i * stride + i] = w.inverse_h4[i * stride + i] + w.root;
  for (int k = newton_steps - 1; k >= 0; --k) {
    const Pack<double>* next = k + 1 == newton_steps ? w.inverse_h4 : w.inverse_h[k + 1];
    add_symmetric_product(plain(w.inverse_m[k], n), plain(next, n), n, half * w.scale[k], next,
                          half * w.inverse_scale[k],
                          w.inverse_h[k]);
  }
  called_product<known>(plain(w.a, n), plain(w.inverse_h[0], n), rows, n, n, w.unrounded);
  convert_matrix(w.unrounded, rows, n, p);
}

// b = factor (a - a^T).
template <typename T>
inline void skew(const Pack<T>* a, const Pack<T>& factor, int64_t n, Pack<T>* b) {
  const int64_t stride = row_stride(n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const Pack<T> value = factor * (a[i * stride + j] - a[j * stride + i]);
      b[j * stride + i] = -value;
      b[i * stride + j] = value;
    }
}

// Omega <- (g Omega + H^-1 Omega H^-1 / g) / 2.
template <int64_t known, typename T>
[[gnu::always_inline]] inline void undo_step(const Pack<T>* inverse_h, const Pack<T>& scale,
                                             const Pack<T>& inverse_scale, int64_t n, Pack<T>* scratch,
                                             Pack<T>* omega) {
  const Pack<T> half(T(0.5));
  called_product<known>(plain(omega, n), plain(inverse_h, n), n, n, n, scratch);
  add_antisymmetric_product<known>(plain(inverse_h, n), plain(scratch, n), n, half * scale, omega,
                                   half * inverse_scale, omega);
}

// The scratch of newton_backward: square matrices, and `outside` as large as P.
struct BackwardBuffers {
  Pack<float>* inner;
  Pack<float>* omega;
  Pack<float>* correction;
  Pack<float>* outside;
  Pack<double>* precise;
  Pack<double>* precise_scratch;
};

// w.inner = P^T G and, where it is not 0, w.outside = (I - P P^T) G H^-1.
template <int64_t known, typename Iterates>
[[gnu::always_inline]] inline void divide_upstream(Iterates& iterates, int64_t rows, int64_t n, bool tall,
                                                   const Pack<float>* p, const Pack<float>* upstream,
                                                   const BackwardBuffers& w, Pack<float>* grad) {
  const int64_t stride = row_stride(n);
  called_product<known>(transposed(p, n), plain(upstream, n), n, rows, n, w.inner);
  if (!tall) return;
  called_product<known>(plain(p, n), plain(w.inner, n), rows, n, n, grad);
  for (int64_t at = 0; at < rows * stride; ++at) grad[at] = upstream[at] - grad[at];
  called_product<known>(plain(grad, n), plain(iterates.inverse_h0_single(), n), rows, n, n, w.outside);
}

// The same for a smoothed P, from w as newton_polar left it, in double: the difference is of the order of e^2 / s^2, and
// its rounding is multiplied by the largest 1/s. w.a and w.unrounded are overwritten.
[[gnu::always_inline]] inline void divide_upstream_precisely(Newton& w, int64_t rows, int64_t n,
                                                             const Pack<float>* upstream) {
  const int64_t stride = row_stride(n);
  Pack<double>* difference = w.a;
  Pack<double>* inner = w.inverse_m[0];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = i * stride; at < i * stride + n; ++at) difference[at] = convert<double>(upstream[at]);
  called_product<0>(transposed(w.unrounded, n), plain(difference, n), n, rows, n, inner);
  convert_matrix(inner, n, n, w.inner);
  for_each_entry(plain(w.unrounded, n), plain(inner, n), rows, n, n,
                 [=](int64_t i, int64_t j, int part, const auto& sum) {
                   difference[i * stride + j].part[part] = difference[i * stride + j].part[part] - sum;
                 });
  called_product<0>(plain(difference, n), plain(w.inverse_h[0], n), rows, n, n, w.unrounded);
  convert_matrix(w.unrounded, rows, n, w.outside);
}

// grad = the vector-Jacobian product of P with `upstream`, both rows x padded, from what divide_upstream made of them; with
// `outside` where there is such a part. Of the iterates, in the order in which it
// needs them: inverse_h0_single() for tall matrices, inverse_centre() = 1/c and k4() of H_4 = c (I + K), inverse_h(k),
// scale(k) and inverse_scale(k) for k = 3, 2, 1, all in float, and inverse_h0, scale0 and inverse_scale0 in double. What
// one of these calls returns may be overwritten by the next.
template <int64_t known, typename Iterates>
[[gnu::always_inline]] inline void newton_vector_jacobian(Iterates& iterates, int64_t rows, int64_t n, bool outside,
                                                          const Pack<float>* p, const BackwardBuffers& w,
                                                          Pack<float>* grad) {
  const int64_t stride = row_stride(n);
  const Pack<float> half(0.5f);
  Pack<float>* omega = w.omega;
  Pack<float>* scratch = w.inner;
  // At H_4 = c (I + K) the solution is that for c I, call it Omega, less V, plus (K V + V K) / 2, where
  // V = (K Omega + Omega K) / 2, but for K^3.
  skew(w.inner, half * iterates.inverse_centre(), n, omega);
  const Pack<float>* k4 = iterates.k4();
  called_product<known>(plain(k4, n), plain(omega, n), n, n, n, scratch);
  skew(scratch, half, n, w.correction);
  called_product<known>(plain(k4, n), plain(w.correction, n), n, n, n, scratch);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = i * stride + j;
      omega[at] = omega[at] - w.correction[at] + half * (scratch[at] - scratch[j * stride + i]);
    }

  for (int k = newton_steps - 1; k > 0; --k)
    undo_step<known>(iterates.inverse_h(k), iterates.scale(k), iterates.inverse_scale(k), n, scratch, omega);
  // Of this one, whose condition is that of A, float would lose too many digits.
  convert_matrix(omega, n, n, w.precise);
  undo_step<known>(iterates.inverse_h0, iterates.scale0, iterates.inverse_scale0, n, w.precise_scratch, w.precise);
  convert_matrix(w.precise, n, n, omega);

  called_product<known>(plain(p, n), plain(omega, n), rows, n, n, grad);
  if (outside)
    for (int64_t at = 0; at < rows * stride; ++at) grad[at] = grad[at] + w.outside[at];
}

// The iterates where newton_polar left them.
template <int64_t known>
struct KeptIterates {
  const Newton& w;
  int64_t n;
  const Pack<double>* inverse_h0;
  const Pack<double>& scale0;
  const Pack<double>& inverse_scale0;

  KeptIterates(const Newton& newton, int64_t columns)
      : w(newton),
        n(columns),
        inverse_h0(newton.inverse_h[0]),
        scale0(newton.scale[0]),
        inverse_scale0(newton.inverse_scale[0]) {}

  const Pack<float>* inverse_h(int k) const {
    convert_matrix(w.inverse_h[k], n, n, w.inverse_h_single);
    return w.inverse_h_single;
  }
  const Pack<float>* inverse_h0_single() const { return inverse_h(0); }
  Pack<float> scale(int k) const { return convert<float>(w.scale[k]); }
  Pack<float> inverse_scale(int k) const { return convert<float>(w.inverse_scale[k]); }
  Pack<float> inverse_centre() const { return convert<float>(w.root); }

  // K = N/2 - N^2/8 but for N^3, and N^2 is in H_4^-1.
  const Pack<float>* k4() const {
    const int64_t stride = row_stride(n);
    const Pack<double> eighth = Pack<double>(1.0 / 3) * w.inverse_root;
    const Pack<double> linear = Pack<double>(0.5) + w.linear * eighth, constant = w.root * eighth;
    Pack<float>* k = w.inverse_h_single;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t at = i * stride; at < i * stride + n; ++at)
        k[at] = convert<float>(difference_of_products(linear, w.deviation[at], eighth, w.inverse_h4[at]));
      k[i * stride + i] = k[i * stride + i] + convert<float>(constant);
    }
    return k;
  }
};

// The same for w and p as newton_polar left them, and as it got `smooth`: 0 where the size is known.
template <int64_t known>
SVDRD_ONE_COPY void newton_backward(Newton& w, double smooth, const Pack<float>* p, const Pack<float>* upstream,
                                    Pack<float>* grad) {
  const int64_t n = known_or<known>(w.padded), rows = known_or<known>(w.rows);
  const bool smoothed = known == 0 && smooth > 0, tall = known == 0 && rows > w.columns;
  const BackwardBuffers buffers{w.inner, w.omega, w.correction, w.outside, w.inverse_m[0], w.inverse_h4};
  KeptIterates<known> iterates(w, n);
  if (smoothed)
    divide_upstream_precisely(w, rows, n, upstream);
  else
    divide_upstream<known>(iterates, rows, n, tall, p, upstream, buffers, grad);
  newton_vector_jacobian<known>(iterates, rows, n, tall || smoothed, p, buffers, grad);
}

// Both for the matrices of w.

inline void newton_polar(Newton& w, double bound, double smooth, Pack<float>* p) {
  with_known_size<8, 16>(w.rows, w.columns, [&](auto known) { newton_polar<known>(w, bound, smooth, p); });
}

inline void newton_backward(Newton& w, double smooth, const Pack<float>* p, const Pack<float>* upstream,
                            Pack<float>* grad) {
  if (smooth > 0) return newton_backward<0>(w, smooth, p, upstream, grad);
  with_known_size<8, 16>(w.rows, w.columns, [&](auto known) { newton_backward<known>(w, 0.0, p, upstream, grad); });
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
