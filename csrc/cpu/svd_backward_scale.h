// The powers of two between which the derivative of the singular value decomposition is computed.
#pragma once

#include <cstdint>
#include <limits>

namespace svdrd {
namespace SVDRD_ISA {

// Singular values nearer than distinct_gap * (s_i + s_j), and values or sums up to negligible_value * s_1, are divided
// by nowhere (docs/design/gradients.md). eps is that of the matrices' own type, whatever type the products are formed in.
template <typename T>
constexpr double negligible_value = 4 * static_cast<double>(std::numeric_limits<T>::epsilon());

template <typename T>
inline double distinct_gap(int64_t m, int64_t n) {
  return static_cast<double>(m < n ? n : m) * static_cast<double>(std::numeric_limits<T>::epsilon());
}

// With grad_u and grad_vh times 2^-vectors and grad_s times 2^-result, the derivative comes out times 2^-result. What
// the vectors contribute, in units of 1 / s_1, enters times `per_value`.
struct SvdBackwardScale {
  bool finite = false;
  int vectors = 0;
  int result = 0;
  double per_value = 0;
};

// The arguments are the largest magnitudes, NaN where there is a NaN or Inf, 0 where a gradient is not given. W is the
// type of the products with the core.
template <typename W>
inline SvdBackwardScale svd_backward_scale(double grad_u, double grad_s, double grad_vh, double s_1) {
  constexpr double largest = std::numeric_limits<double>::max();
  SvdBackwardScale scale;
  scale.finite = grad_u <= largest && grad_s <= largest && grad_vh <= largest && s_1 <= largest;
  if (!scale.finite) return scale;
  const double grad_vectors = grad_u > grad_vh ? grad_u : grad_vh;
  int s_exponent, grad_s_exponent;
  const double s_fraction = __builtin_frexp(s_1 > 0 ? s_1 : 1, &s_exponent);
  (void)__builtin_frexp(grad_vectors, &scale.vectors);
  (void)__builtin_frexp(grad_s, &grad_s_exponent);
  // The unit is that of grad_s while the vectors' part, which the gaps enlarge by up to 1 / eps^2, stays in the range
  // of W: that part may cancel to nothing, and grad_s must then not have underflowed beside a 1 / s_1 of 1e308.
  constexpr int headroom = sizeof(W) == 4 ? 60 : 800;
  const int vector_part = scale.vectors - s_exponent, least_result = vector_part - headroom;
  scale.result = grad_vectors > 0 && (grad_s == 0 || least_result > grad_s_exponent) ? least_result : grad_s_exponent;
  if (grad_vectors > 0) scale.per_value = __builtin_ldexp(1 / s_fraction, vector_part - scale.result);
  return scale;
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
