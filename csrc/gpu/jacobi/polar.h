// The polar factor of one matrix from its decomposition, and the vector-Jacobian product (docs/design/gradients.md has the
// formulas).
//
// U need not be complete here. A direction that U lacks, because a value was dropped or is zero, lies outside of its span,
// and what the gradient has there is G V - U U^T G V: the same term that a tall matrix has anyway.
#pragma once

#include "gpu/jacobi/jacobi.h"

namespace svdrd {
namespace teams {

// Work space of one matrix; matrices lie column by column.
template <typename T>
struct Scratch {
  T* upstream;   // rows x columns: G, then U Z
  T* projected;  // rows x columns: G V, then its part outside of U's span
  T* core;       // columns x columns: W, then Z
  T* weights;    // columns each
  T* outside;
  T* radius;
};

// Values up to rcond s_1 become zero.
template <typename Team, typename T>
SVDRD_LANES void drop_values(const Team& team, const Factors<T>& f, double rcond) {
  const T bound = largest_value(f) * static_cast<T>(rcond);
  team.sync();
  team.each([&](int lane) {
    for (int j = lane; j < f.columns; j += team.size())
      if (!(f.values[j] > bound)) f.values[j] = T(0);
  });
  team.sync();
}

// The smoothing in the units of f.values, which become coarser where it exceeds the matrix by far.
template <typename Team, typename T>
SVDRD_LANES T join_smoothing(const Team& team, Factors<T>& f, double smooth) {
  const int exponent = exponent_of(smooth), shift = f.exponent - exponent;
  if (shift < 0) f.exponent = exponent;
  team.each([&](int lane) {
    for (int j = lane; j < f.columns; j += team.size())
      if (shift < 0) f.values[j] = times_power_of_two(f.values[j], shift);
  });
  team.sync();
  return static_cast<T>(times_power_of_two(smooth, Limits<T>::headroom - f.exponent));
}

// weights <- what P has in place of each singular value. Returns the smoothing in the units of the values.
template <typename Team, typename T>
SVDRD_LANES T weigh(const Team& team, Factors<T>& f, double rcond, double smooth, T* weights) {
  T e = T(0);
  if (smooth > 0) {
    e = join_smoothing(team, f, smooth);
  } else {
    drop_values(team, f, rcond);
  }
  team.each([&](int lane) {
    for (int j = lane; j < f.columns; j += team.size()) {
      const T value = f.values[j];
      weights[j] = value > T(0) ? (smooth > 0 ? value / hypotenuse(value, e) : T(1)) : T(0);
    }
  });
  team.sync();
  return e;
}

// Entry (i, j) of P = U diag(weights) V^T.
template <typename T>
SVDRD_LANES T polar_entry(const Factors<T>& f, const T* weights, int i, int j) {
  T sum = T(0);
  for (int l = 0; l < f.columns; ++l) sum = fma(weights[l] * f.u(i, l), f.v(j, l), sum);
  return sum;
}

// Z_ij and Z_ji of a pair; s and r are relative to the largest value, r = sqrt(s^2 + e^2).
template <typename T>
struct CorePair {
  T ij;
  T ji;
};

// smooth == 0: (W_ij - W_ji) / (s_i + s_j) both kept, W_ij / s_kept one kept, 0 both dropped.
template <typename T>
SVDRD_LANES CorePair<T> divided_by_sum(T wij, T wji, T si, T sj) {
  const T sum = si + sj;
  if (!(sum > T(0))) return {T(0), T(0)};
  if (!(si > T(0)) || !(sj > T(0))) return {wij / sum, wji / sum};
  const T quotient = (wij - wji) / sum;
  return {quotient, -quotient};
}

// smooth == e > 0: T / (r_i r_j) = (s_i / r_i + s_j / r_j) / (s_i + s_j), and T is the mean of r_j and r_i weighted by
// s_i and s_j, which neither underflows nor cancels: 1 - s_i/(s_i + s_j) in place of s_j/(s_i + s_j) would.
template <typename T>
SVDRD_LANES CorePair<T> divided_smoothly(T wij, T wji, T si, T sj, T ri, T rj, T e) {
  const T sum = si + sj, half = T(0.5);
  const bool both_zero = !(sum > T(0));
  const T inverse = both_zero ? T(0) : T(1) / sum;
  const T mean = both_zero ? e : fma(rj, si * inverse, ri * (sj * inverse));
  const T skew = both_zero ? T(1) / e : (si / ri + sj / rj) * inverse;
  const T symmetric = (e / ri) * (e / rj) / mean;
  const T difference = (wij - wji) * half * skew, total = (wij + wji) * half * symmetric;
  return {total + difference, total - difference};
}

// grad <- (U Z V^T + outside) 2^exponent / divisor, in the matrix's units. Destroys f.u where a value is zero.
template <typename Team, typename T>
SVDRD_LANES void polar_gradient(const Team& team, const Factors<T>& f, bool smoothed, T smooth, const Scratch<T>& w,
                                int exponent, T divisor, bool finite, bool writes, const Matrix<T>& grad) {
  const int rows = f.rows, columns = f.columns, lanes = team.size();
  const T most = larger(largest_value(f), smooth), scale = most > T(0) ? most : T(1);
  const T e = larger(smooth / scale, Limits<T>::smallest_divisor);
  int kept = 0;
  for (int j = 0; j < columns; ++j) kept += f.values[j] > T(0);
  const bool has_outside = rows > kept;
  T* relative = w.weights;
  team.each([&](int lane) {
    for (int j = lane; j < columns; j += lanes) {
      const bool positive = f.values[j] > T(0);
      relative[j] = positive ? larger(f.values[j] / scale, Limits<T>::smallest_divisor) : T(0);
      w.radius[j] = smoothed ? hypotenuse(relative[j], e) : relative[j];
      w.outside[j] = w.radius[j] > T(0) ? T(1) / w.radius[j] : T(0);
    }
    for (int at = lane; at < rows * columns; at += lanes) {
      const int i = at % rows, j = at / rows;
      if (!(f.values[j] > T(0))) f.u(i, j) = T(0);
      T sum = T(0);
      for (int l = 0; l < columns; ++l) sum = fma(w.upstream[l * rows + i], f.v(l, j), sum);
      w.projected[at] = sum;
    }
  });
  team.sync();
  team.each([&](int lane) {
    for (int at = lane; at < columns * columns; at += lanes) {
      const int i = at % columns, j = at / columns;
      T sum = T(0);
      for (int r = 0; r < rows; ++r) sum = fma(f.u(r, i), w.projected[j * rows + r], sum);
      w.core[at] = sum;
    }
  });
  team.sync();
  // Taking the inside out of G V before the division keeps a tall matrix's own part from cancelling afterwards.
  team.each([&](int lane) {
    for (int at = lane; at < rows * columns; at += lanes) {
      const int i = at % rows, j = at / rows;
      T rest = w.projected[at];
      if (has_outside)
        for (int l = 0; l < columns; ++l) rest = fma(-f.u(i, l), w.core[j * columns + l], rest);
      w.projected[at] = has_outside ? rest * w.outside[j] : T(0);
    }
  });
  team.sync();
  team.each([&](int lane) {
    for (int at = lane; at < columns * columns; at += lanes) {
      const int i = at % columns, j = at / columns;
      if (i < j) continue;
      const int across = i * columns + j;
      const T wij = w.core[at], wji = w.core[across];
      const CorePair<T> z = smoothed ? divided_smoothly(wij, wji, relative[i], relative[j], w.radius[i], w.radius[j], e)
                                     : divided_by_sum(wij, wji, relative[i], relative[j]);
      w.core[across] = z.ji;
      w.core[at] = z.ij;
    }
  });
  team.sync();
  team.each([&](int lane) {
    for (int at = lane; at < rows * columns; at += lanes) {
      const int i = at % rows, j = at / rows;
      T sum = w.projected[at];
      for (int l = 0; l < columns; ++l) sum = fma(f.u(i, l), w.core[j * columns + l], sum);
      w.upstream[at] = sum;
    }
  });
  team.sync();
  const T nan = Limits<T>::nan;
  const int shift = exponent + Limits<T>::headroom - f.exponent;
  team.each([&](int lane) {
    if (!writes) return;
    for_entries(grad, rows, columns, lane, lanes, [&](int i, int j) {
      T sum = T(0);
      for (int l = 0; l < columns; ++l) sum = fma(w.upstream[l * rows + i], f.v(j, l), sum);
      const T value = times_power_of_two(sum / scale / divisor, shift);
      grad(i, j) = finite ? larger(smaller(value, Limits<T>::largest), -Limits<T>::largest) : nan;
    });
  });
}

}  // namespace teams
}  // namespace svdrd
