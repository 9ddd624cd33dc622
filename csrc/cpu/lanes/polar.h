// The polar factor of a group of matrices in the lanes, its vector-Jacobian product and the basis loss
// (docs/design/gradients.md has the formulas).
#pragma once

#include "cpu/noise.h"
#include "cpu/lanes/factor.h"
#include "cpu/lanes/product.h"
#include "cpu/lanes/transfer.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Below this a scaled value counts as this much where the gradient divides by it, so that no quotient overflows midway.
template <typename T>
constexpr T smallest_divisor() {
  return sizeof(T) == 4 ? T(1e-30f) : T(1e-280);
}

// The smoothing in the units of the scaled matrices.
template <typename T>
Pack<T> scaled_smooth(double smooth, const GroupScale& scale) {
  Pack<T> r(T(0));
  if (smooth > 0)
    for (int l = 0; l < lane_count; ++l) {
      const T value = static_cast<T>(__builtin_ldexp(smooth, -scale.exponent[l]));
      r.set_lane(l, value > smallest_divisor<T>() ? value : smallest_divisor<T>());
    }
  return r;
}

// What the QR iteration may leave undone, relative to the largest entry of the bidiagonal matrix: no more than half of what
// polar_from_factors drops, as that entry is at most s_1.
inline double dropped_values(double rcond, double smooth) { return smooth > 0 ? 0 : 0.5 * rcond; }

// sqrt(a^2 + b^2) of nonnegative numbers without underflow.
template <typename T>
inline Pack<T> hypotenuse(const Pack<T>& a, const Pack<T>& b) {
  const Pack<T> larger = max(a, b);
  const Pack<T> ratio = min(a, b) / select(larger == Pack<T>(T(0)), Pack<T>(T(1)), larger);
  return larger * sqrt(Pack<T>(T(1)) + ratio * ratio);
}

template <typename T, typename W>
[[gnu::noinline]] void convert_matrix(const Pack<W>* a, int64_t rows, int64_t columns, Pack<T>* b) {
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) b[i * stride + j] = convert<T>(a[i * stride + j]);
}

// The rows and columns of a matrix that are zero, as they are in P. The singular vectors have noise there, which of an
// ill-conditioned float64 matrix may be seen; that of a float32 one, which is factored in double, is rounded away.
struct EmptyLines {
  Pack<double>* rows;
  Pack<double>* columns;
  int64_t row_count;
  int64_t column_count;

  EmptyLines(Arena& arena, int64_t row_count, int64_t column_count)
      : rows(arena.take<Pack<double>>(row_count)),
        columns(arena.take<Pack<double>>(column_count)),
        row_count(row_count),
        column_count(column_count) {}

  void take_from(const Pack<double>* a) {
    const int64_t stride = row_stride(column_count);
    for (int64_t j = 0; j < column_count; ++j) columns[j] = Pack<double>(0.0);
    for (int64_t i = 0; i < row_count; ++i) {
      rows[i] = Pack<double>(0.0);
      for (int64_t j = 0; j < column_count; ++j) {
        const Pack<double> size = abs(a[i * stride + j]);
        rows[i] = rows[i] + size;
        columns[j] = columns[j] + size;
      }
    }
  }

  // The sum of the squares of what was there.
  Pack<double> clear(Pack<double>* p) const {
    const Pack<double> zero(0.0);
    Pack<double> cleared = zero;
    const int64_t stride = row_stride(column_count);
    for (int64_t i = 0; i < row_count; ++i)
      for (int64_t j = 0; j < column_count; ++j) {
        Pack<double>& entry = p[i * stride + j];
        const Pack<double> kept = select((zero < rows[i]) & (zero < columns[j]), entry, zero);
        cleared = cleared + (entry - kept) * entry;
        entry = kept;
      }
    return cleared;
  }
};

// The partial isometry nearest to p in the lanes of `wanted`, by the iteration of Newton and Schulz, p (3 - p^T p) / 2.
// gram: as large as p, row: a row of it.
[[gnu::noinline]] inline void make_isometric(Pack<double>* p, int64_t rows, int64_t columns, Mask<double> wanted,
                                             Pack<double>* gram, Pack<double>* row) {
  const int64_t stride = row_stride(columns);
  const Pack<double> half(0.5), three_halves(1.5);
  for (int step = 0; step < isometry_steps && any(wanted); ++step) {
    product(transposed(p, columns), plain(p, columns), columns, rows, columns, gram);
    Pack<double> change(0.0);
    for (int64_t i = 0; i < rows; ++i) {
      Pack<double>* const old = p + i * stride;
      product(plain(old, columns), plain(gram, columns), 1, columns, columns, row);
      for (int64_t j = 0; j < columns; ++j) {
        const Pack<double> next = three_halves * old[j] - half * row[j];
        change = max(change, abs(next - old[j]));
        old[j] = select(wanted, next, old[j]);
      }
    }
    wanted = wanted & (Pack<double>(isometry_change) < change);
  }
}

// Whether a value that would be kept may be noise of what is exactly zero, which long matrices have more of than rcond.
inline bool may_be_noise(const Factorisation<double>& f, double rcond) {
  const Pack<double>* values = f.values();
  Pack<double> largest = values[0];
  for (int64_t j = 1; j < f.columns; ++j) largest = max(largest, values[j]);
  const Pack<double> kept = largest * Pack<double>(rcond), noise = largest * Pack<double>(noise_of_zero);
  bool found = false;
  for (int64_t j = 0; j < f.columns; ++j) found = found || any((kept < values[j]) & (values[j] <= noise));
  return found;
}

// Of such values the lesser of s_j and |u_j^T A v_j|, which the errors of the vectors enter squared.
[[gnu::noinline]] inline void lower_noise(Factorisation<double>& f, const Pack<double>* a) {
  const int64_t stride = row_stride(f.columns);
  Pack<double>* const values = f.values();
  Pack<double> largest = values[0];
  for (int64_t j = 1; j < f.columns; ++j) largest = max(largest, values[j]);
  const Pack<double> noise = largest * Pack<double>(noise_of_zero);
  for (int64_t j = 0; j < f.columns; ++j) {
    const Mask<double> small = values[j] <= noise;
    if (!any(small)) continue;
    Pack<double> quotient(0.0);
    for (int64_t i = 0; i < f.rows; ++i) {
      Pack<double> product(0.0);
      for (int64_t k = 0; k < f.columns; ++k)
        product = multiply_add(a[i * stride + k], f.v[k * stride + j], product);
      quotient = multiply_add(f.u[i * stride + j], product, quotient);
    }
    values[j] = select(small, min(abs(quotient), values[j]), values[j]);
  }
}

// Sets dropped values to zero (smooth == 0), then p = U f(S) V^T, rounded to T. Uses f.a as scratch.
template <typename T, typename W>
[[gnu::noinline]] void polar_from_factors(Factorisation<W>& f, double rcond, double smooth, const GroupScale& scale,
                                          Pack<W>* product_scratch, const EmptyLines& empty, Pack<T>* p) {
  const int64_t columns = f.columns, stride = row_stride(columns);
  Pack<W>* values = f.values();
  Pack<W>* weights = f.bidiagonal.left_products;
  if (smooth > 0) {
    const Pack<W> e = scaled_smooth<W>(smooth, scale);
    for (int64_t j = 0; j < columns; ++j) weights[j] = values[j] / hypotenuse(values[j], e);
  } else {
    Pack<W> largest = values[0];
    for (int64_t j = 1; j < columns; ++j) largest = max(largest, values[j]);
    const Pack<W> bound = largest * Pack<W>(static_cast<W>(rcond));
    for (int64_t j = 0; j < columns; ++j) {
      const Mask<W> kept = bound < values[j];
      weights[j] = select(kept, Pack<W>(W(1)), Pack<W>(W(0)));
      values[j] = select(kept, values[j], Pack<W>(W(0)));
    }
  }
  for (int64_t i = 0; i < f.rows; ++i)
    for (int64_t j = 0; j < columns; ++j) f.a[i * stride + j] = f.u[i * stride + j] * weights[j];
  product(plain(f.a, columns), transposed(f.v, columns), f.rows, columns, columns, product_scratch);
  if constexpr (sizeof(T) == 8) {
    const Mask<double> noisy = Pack<double>(std::numeric_limits<double>::epsilon()) < empty.clear(product_scratch);
    if (smooth == 0 && any(noisy)) make_isometric(product_scratch, f.rows, columns, noisy, f.a, weights);
  }
  convert_matrix(product_scratch, f.rows, columns, p);
}

// The factors in the precision of the gradient: values floored where kept so that 1/s is finite.
template <typename T>
struct PolarFactors {
  Pack<T>* u;
  Pack<T>* s;
  Pack<T>* v;

  PolarFactors(Arena& arena, int64_t rows, int64_t columns) {
    u = arena.matrix<T>(rows, columns);
    s = arena.take<Pack<T>>(columns);
    v = arena.matrix<T>(columns, columns);
  }

  template <typename W>
  void take_from(const Factorisation<W>& f) {
    convert_matrix(f.u, f.rows, f.columns, u);
    convert_matrix(f.v, f.columns, f.columns, v);
    const Pack<W> zero(W(0)), floor(static_cast<W>(smallest_divisor<T>()));
    for (int64_t j = 0; j < f.columns; ++j) {
      const Pack<W> value = f.values()[j];
      s[j] = convert<T>(select(value == zero, zero, max(value, floor)));
    }
  }
};

template <typename T>
[[gnu::noinline]] void shift_matrix(const Pack<T>* a, int64_t rows, int64_t columns, int count, Pack<T>* b) {
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) b[i * stride + j] = shift_lanes(a[i * stride + j], count);
}

template <typename T>
struct BackwardScratch {
  Pack<T>* projected;  // G V
  Pack<T>* inner;      // W, then Z
  Pack<T>* left;       // U Z
  Pack<T>* outside;    // 1 / s of the kept, the factor toward the outside of the thin part
  Pack<T>* radius;     // r = sqrt(s^2 + e^2)

  BackwardScratch(Arena& arena, int64_t rows, int64_t columns) {
    projected = arena.matrix<T>(rows, columns);
    inner = arena.matrix<T>(columns, columns);
    left = arena.matrix<T>(rows, columns);
    outside = arena.take<Pack<T>>(columns);
    radius = arena.take<Pack<T>>(columns);
  }
};

template <typename T>
inline Pack<T> guarded_reciprocal(const Pack<T>& a) {
  const Mask<T> zero = a == Pack<T>(T(0));
  return select(zero, Pack<T>(T(0)), Pack<T>(T(1)) / select(zero, Pack<T>(T(1)), a));
}

// Z from W in place, smooth == 0: (W_ij - W_ji) / (s_i + s_j) both kept, W_ij / s_kept one kept, 0 both dropped.
template <typename T>
inline void divide_by_sums(Pack<T>* w, const Pack<T>* s, int64_t columns) {
  const int64_t stride = row_stride(columns);
  const Pack<T> zero(T(0));
  for (int64_t i = 0; i < columns; ++i) {
    w[i * stride + i] = zero;
    for (int64_t j = 0; j < i; ++j) {
      const Pack<T> wij = w[i * stride + j], wji = w[j * stride + i];
      const Pack<T> inverse = guarded_reciprocal(s[i] + s[j]);
      const Mask<T> one_dropped = (s[i] == zero) | (s[j] == zero);
      w[i * stride + j] = (wij - select(one_dropped, zero, wji)) * inverse;
      w[j * stride + i] = (wji - select(one_dropped, zero, wij)) * inverse;
    }
  }
}

// Z from W in place, smooth == e > 0: T/(r_i r_j) = (s_i/r_i + s_j/r_j)/(s_i + s_j), and T is the mean of r_j and r_i
// weighted by s_i and s_j, which neither underflows nor cancels: 1 - s_i/(s_i + s_j) in place of s_j/(s_i + s_j) would.
template <typename T>
inline void divide_smoothly(Pack<T>* w, const Pack<T>* s, const Pack<T>* r, const Pack<T>& e, int64_t columns) {
  const int64_t stride = row_stride(columns);
  const Pack<T> zero(T(0)), one(T(1)), half(T(0.5));
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const Pack<T> wij = w[i * stride + j], wji = w[j * stride + i];
      const Pack<T> sum = s[i] + s[j];
      const Mask<T> both_zero = sum == zero;
      const Pack<T> inverse = one / select(both_zero, one, sum);
      const Pack<T> mean = select(both_zero, e, sum_of_products(r[j], s[i] * inverse, r[i], s[j] * inverse));
      const Pack<T> skew = select(both_zero, one / e, (s[i] / r[i] + s[j] / r[j]) * inverse);
      const Pack<T> symmetric = (e / r[i]) * (e / r[j]) / mean;
      const Pack<T> difference = (wij - wji) * half * skew;
      const Pack<T> total = (wij + wji) * half * symmetric;
      w[i * stride + j] = total + difference;
      w[j * stride + i] = total - difference;
    }
  }
}

// grad <- U Z V^T, and (I - U U^T) G V diag(1/s) V^T where there are more rows than columns.
template <typename T>
void polar_backward(const Pack<T>* upstream, const PolarFactors<T>& f, const Pack<T>& smooth, bool smoothed,
                    int64_t rows, int64_t columns, const BackwardScratch<T>& scratch, Pack<T>* grad) {
  const int64_t stride = row_stride(columns);
  product(plain(upstream, columns), plain(f.v, columns), rows, columns, columns, scratch.projected);
  product(transposed(f.u, columns), plain(scratch.projected, columns), columns, rows, columns, scratch.inner);
  if (rows > columns) {
    for (int64_t j = 0; j < columns; ++j) {
      if (smoothed) {
        scratch.outside[j] = guarded_reciprocal(hypotenuse(f.s[j], smooth));
      } else {
        scratch.outside[j] = guarded_reciprocal(f.s[j]);
      }
    }
    // Taking the inside out of G V before the division keeps a tall matrix's own part from cancelling afterwards.
    product(plain(f.u, columns), plain(scratch.inner, columns), rows, columns, columns, scratch.left);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t at = i * stride + j;
        scratch.projected[at] = (scratch.projected[at] - scratch.left[at]) * scratch.outside[j];
      }
  }
  if (smoothed) {
    for (int64_t j = 0; j < columns; ++j) scratch.radius[j] = hypotenuse(f.s[j], smooth);
    divide_smoothly(scratch.inner, f.s, scratch.radius, smooth, columns);
  } else {
    divide_by_sums(scratch.inner, f.s, columns);
  }
  product(plain(f.u, columns), plain(scratch.inner, columns), rows, columns, columns, scratch.left);
  if (rows > columns)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        scratch.left[i * stride + j] = scratch.left[i * stride + j] + scratch.projected[i * stride + j];
  product(plain(scratch.left, columns), transposed(f.v, columns), rows, columns, columns, grad);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
