// The powers of two between which the derivative of the singular value decomposition is computed.
#pragma once

#include <cstdint>
#include <limits>

namespace svdrd {
namespace SVDRD_ISA {

// Singular values nearer than distinct_gap * (s_i + s_j), and values or sums up to negligible_value * s_1, are divided
// by nowhere (docs/gradients.md). eps is that of the matrices' own type, whatever type the products are formed in.
template <typename T>
constexpr double negligible_value = 4 * static_cast<double>(std::numeric_limits<T>::epsilon());

template <typename T>
inline double distinct_gap(int64_t m, int64_t n) {
  return static_cast<double>(m < n ? n : m) * static_cast<double>(std::numeric_limits<T>::epsilon());
}

// With grad_u and grad_vh times 2^-vectors and grad_s times 2^-result, the derivative comes out times 2^-result and no
// product on the way overflows. What the vectors contribute, in units of 1 / s_1, enters times `per_value` <= 2.
struct SvdBackwardScale {
  bool finite = false;
  int vectors = 0;
  int result = 0;
  double per_value = 0;
};

// The arguments are the largest magnitudes in grad_u and grad_vh, in grad_s, and s_1; NaN where there is one.
inline SvdBackwardScale svd_backward_scale(double grad_vectors, double grad_s, double s_1) {
  constexpr double largest = std::numeric_limits<double>::max();
  SvdBackwardScale scale;
  scale.finite = grad_vectors <= largest && grad_s <= largest && s_1 <= largest;
  if (!scale.finite) return scale;
  int s_exponent, grad_s_exponent;
  const double s_fraction = __builtin_frexp(s_1 > 0 ? s_1 : 1, &s_exponent);
  (void)__builtin_frexp(grad_vectors, &scale.vectors);
  (void)__builtin_frexp(grad_s, &grad_s_exponent);
  const int vector_part = scale.vectors - s_exponent;
  // What is zero must not choose the unit of what is not.
  if (grad_vectors > 0 && (grad_s == 0 || vector_part > grad_s_exponent)) {
    scale.result = vector_part;
  } else {
    scale.result = grad_s_exponent;
  }
  if (grad_vectors > 0) scale.per_value = __builtin_ldexp(1 / s_fraction, vector_part - scale.result);
  return scale;
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
