// Householder bidiagonalisation of the matrices in the lanes, A = Q B P^T (Golub and Kahan 1965), and the application
// of Q and P. Matrices have at least as many rows as columns.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Entries are scaled so that the largest of a matrix is in [1/2, 1). What is smaller than this is dropped rather than
// squared: it lies far below the rounding of A, and a reflector built from denormal squares would not be orthogonal.
template <typename T>
constexpr T negligible_entry() {
  return sizeof(T) == 4 ? T(0x1p-40) : T(0x1p-120);
}

template <typename T>
struct Reflector {
  Pack<T> beta;   // what the leading entry becomes
  Pack<T> first;  // the leading entry of v; the others are those of the vector itself
  Pack<T> tau;    // H = I - tau v v^T
};

// The reflector that maps a vector to a multiple of e_1, from its leading entry and the sum of squares of the others.
// v is left unnormalised: columns proportional to the vector then vanish to one rounding of the entry whatever error
// the sum holds, because dot products with them repeat the same sum. That keeps the noise floor of deficient matrices
// low.
template <typename T>
inline Reflector<T> make_reflector(const Pack<T>& leading, const Pack<T>& sum_of_squares) {
  const T bound = negligible_entry<T>() * negligible_entry<T>();
  const Mask<T> trivial = sum_of_squares < Pack<T>(bound);
  const Pack<T> squared = leading * leading + sum_of_squares;
  const Pack<T> length = sqrt(squared);
  const Pack<T> beta = select(leading < Pack<T>(T(0)), length, -length);
  const Pack<T> first = leading - beta;
  const Pack<T> product = select(trivial, Pack<T>(T(1)), -(beta * first));
  Reflector<T> r;
  r.beta = select(trivial, leading, beta);
  r.first = first;
  r.tau = select(trivial, Pack<T>(T(0)), Pack<T>(T(1)) / product);
  return r;
}

template <typename T>
inline Pack<T> sum_of_squares(const Pack<T>* x, int64_t count, int64_t stride) {
  Pack<T> sum[4] = {Pack<T>(T(0)), Pack<T>(T(0)), Pack<T>(T(0)), Pack<T>(T(0))};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int q = 0; q < 4; ++q) sum[q] = multiply_add(x[(i + q) * stride], x[(i + q) * stride], sum[q]);
  for (; i < count; ++i) sum[0] = multiply_add(x[i * stride], x[i * stride], sum[0]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// a (rows x columns, overwritten by the reflectors' vectors) -> diagonal[columns], superdiagonal[columns - 1], and the
// reflectors' tau and leading entries. left_products (columns) and right_products (rows) are scratch.
template <typename T>
struct BidiagonalFactors {
  Pack<T>* diagonal;
  Pack<T>* superdiagonal;
  Pack<T>* tau_left;
  Pack<T>* tau_right;
  Pack<T>* left_products;   // tau a^T v
  Pack<T>* right_products;  // tau a u
};

// Each pass applies one reflector and forms the products with the next, for a few rows and one register of each Pack at a
// time. Multiply-adds are written out: which of them are contracted would be the compiler's choice, and perhaps another one
// for another number of lanes.

// a <- a - x u^T, y <- y + a^T v for `rows` rows of a.
template <int rows, typename T>
[[gnu::always_inline]] inline void update_and_multiply_columns(Pack<T>* a, int64_t stride, int64_t columns,
                                                               const Pack<T>* x, const Pack<T>* u, const Pack<T>* v,
                                                               int64_t v_stride, Pack<T>* y) {
  using Native = typename Pack<T>::Native;
  for (int part = 0; part < Pack<T>::parts; ++part) {
    Native minus_x[rows], vi[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      minus_x[r] = -x[r].part[part];
      vi[r] = v[r * v_stride].part[part];
    }
    for (int64_t j = 0; j < columns; ++j) {
      const Native uj = u[j].part[part];
      Native yj = y[j].part[part];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        Native& entry = a[r * stride + j].part[part];
        const Native changed = native_multiply_add<T>(minus_x[r], uj, entry);
        entry = changed;
        yj = native_multiply_add<T>(vi[r], changed, yj);
      }
      y[j].part[part] = yj;
    }
  }
}

// a <- a - v y^T, x <- tau a u for `rows` rows of a.
template <int rows, typename T>
[[gnu::always_inline]] inline void update_and_multiply_rows(Pack<T>* a, int64_t stride, int64_t columns,
                                                            const Pack<T>* v, int64_t v_stride, const Pack<T>* y,
                                                            const Pack<T>* u, const Pack<T>& tau, Pack<T>* x) {
  using Native = typename Pack<T>::Native;
  for (int part = 0; part < Pack<T>::parts; ++part) {
    Native minus_v[rows], sum[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      minus_v[r] = -v[r * v_stride].part[part];
      sum[r] = Native{};
    }
    for (int64_t j = 0; j < columns; ++j) {
      const Native yj = y[j].part[part], uj = u[j].part[part];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        Native& entry = a[r * stride + j].part[part];
        const Native changed = native_multiply_add<T>(minus_v[r], yj, entry);
        entry = changed;
        sum[r] = native_multiply_add<T>(changed, uj, sum[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) x[r].part[part] = tau.part[part] * sum[r];
  }
}

// run(i, std::integral_constant<int, rows>) for all of `count` rows.
template <typename Run>
[[gnu::always_inline]] inline void for_row_blocks(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) run(i, std::integral_constant<int, 4>{});
  if (i + 2 <= count) {
    run(i, std::integral_constant<int, 2>{});
    i += 2;
  }
  if (i < count) run(i, std::integral_constant<int, 1>{});
}

template <typename T>
[[gnu::always_inline]] inline void bidiagonalise(Pack<T>* a, int64_t rows, int64_t columns,
                                                 const BidiagonalFactors<T>& factors) {
  const int64_t stride = row_stride(columns);
  const Pack<T> zero(T(0));
  Pack<T>*x = factors.right_products, *y = factors.left_products;
  if (columns > 1)
    for (int64_t i = 0; i < rows; ++i) x[i] = zero;
  for (int64_t k = 0; k < columns; ++k) {
    Pack<T>* corner = a + k * stride + k;
    const Pack<T>* before = k == 0 ? corner : corner - stride;  // the right reflector before; in the first step x = 0
    const int64_t below = rows - k;
    if (k > 0 && k + 1 < columns)  // the last right reflector is none
      for (int64_t i = 0; i < below; ++i)
        corner[i * stride] = multiply_add(-x[k + i], before[0], corner[i * stride]);
    const Reflector<T> left = make_reflector(corner[0], sum_of_squares(corner + stride, below - 1, stride));
    factors.diagonal[k] = left.beta;
    factors.tau_left[k] = left.tau;
    corner[0] = left.first;
    const int64_t right_of = columns - k - 1;
    if (right_of == 0) break;

    Pack<T>* row = corner + 1;
    for (int64_t j = 0; j < right_of; ++j) y[j] = zero;
    for_row_blocks(below, [&](int64_t i, auto block) __attribute__((always_inline)) {
      update_and_multiply_columns<decltype(block)::value>(row + i * stride, stride, right_of, x + k + i, before + 1,
                                                          corner + i * stride, stride, y);
    });
    for (int64_t j = 0; j < right_of; ++j) {
      y[j] = left.tau * y[j];
      row[j] = multiply_add(-left.first, y[j], row[j]);
    }

    if (right_of == 1) {
      factors.superdiagonal[k] = row[0];
      factors.tau_right[k] = zero;
      for (int64_t i = 1; i < below; ++i)
        row[i * stride] = multiply_add(-corner[i * stride], y[0], row[i * stride]);
      continue;
    }
    const Reflector<T> right = make_reflector(row[0], sum_of_squares(row + 1, right_of - 1, 1));
    row[0] = right.first;
    factors.superdiagonal[k] = right.beta;
    factors.tau_right[k] = right.tau;
    for_row_blocks(below - 1, [&](int64_t i, auto block) __attribute__((always_inline)) {
      update_and_multiply_rows<decltype(block)::value>(row + (i + 1) * stride, stride, right_of,
                                                       corner + (i + 1) * stride, stride, y, row, right.tau,
                                                       x + k + 1 + i);
    });
  }
}

// a <- H_0 H_1 .. H_(count-1) a for `block` columns of a, one register of each Pack at a time, which stay in the
// first-level cache meanwhile. Reflector k is the column or row at vectors + k * step, and concerns the rows of a from k on.
// Two at a time: for H G a with H = I - s w w^T and G = I - t v v^T, one pass over a sums up y = t a^T v and
// z = s (a^T w - (v^T w) y), and a second one subtracts v y^T + w z^T.
template <typename T, int block>
[[gnu::always_inline]] inline void apply_reflectors(const Pack<T>* vectors, int64_t step, int64_t v_stride,
                                                    const Pack<T>* tau, int64_t count, Pack<T>* a, int64_t a_stride,
                                                    int64_t rows) {
  using Native = typename Pack<T>::Native;
  for (int part = 0; part < Pack<T>::parts; ++part) {
    int64_t k = count - 1;
    for (; k > 0; k -= 2) {
      const Pack<T>*v = vectors + k * step, *w = v - step;
      Pack<T>*corner = a + k * a_stride, *above = corner - a_stride;
      const Native first = w[0].part[part];
      Native y[block], z[block], v_w = Native{};
#pragma GCC unroll 8
      for (int j = 0; j < block; ++j) {
        y[j] = Native{};
        z[j] = first * above[j].part[part];
      }
      for (int64_t i = 0; i < rows - k; ++i) {
        Native vi = v[i * v_stride].part[part], wi = w[(i + 1) * v_stride].part[part];
        keep_in_register(vi);
        keep_in_register(wi);
        v_w = native_multiply_add<T>(vi, wi, v_w);
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) {
          Native entry = corner[i * a_stride + j].part[part];
          keep_in_register(entry);
          y[j] = native_multiply_add<T>(vi, entry, y[j]);
          z[j] = native_multiply_add<T>(wi, entry, z[j]);
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < block; ++j) {
        y[j] = tau[k].part[part] * y[j];
        z[j] = tau[k - 1].part[part] * native_multiply_add<T>(-v_w, y[j], z[j]);
        above[j].part[part] = native_multiply_add<T>(-first, z[j], above[j].part[part]);
      }
      for (int64_t i = 0; i < rows - k; ++i) {
        Native vi = v[i * v_stride].part[part], wi = w[(i + 1) * v_stride].part[part];
        keep_in_register(vi);
        keep_in_register(wi);
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) {
          Native& entry = corner[i * a_stride + j].part[part];
          entry = native_multiply_add<T>(-wi, z[j], native_multiply_add<T>(-vi, y[j], entry));
        }
      }
    }
    if (k < 0) continue;
    Native y[block];
#pragma GCC unroll 8
    for (int j = 0; j < block; ++j) y[j] = Native{};
    for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < block; ++j)
        y[j] = native_multiply_add<T>(vectors[i * v_stride].part[part], a[i * a_stride + j].part[part], y[j]);
#pragma GCC unroll 8
    for (int j = 0; j < block; ++j) y[j] = tau[0].part[part] * y[j];
    for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < block; ++j) {
        Native& entry = a[i * a_stride + j].part[part];
        entry = native_multiply_add<T>(-vectors[i * v_stride].part[part], y[j], entry);
      }
  }
}

template <typename T>
[[gnu::always_inline]] inline void apply_reflectors(const Pack<T>* vectors, int64_t step, int64_t v_stride,
                                                    const Pack<T>* tau, int64_t count, Pack<T>* a, int64_t rows,
                                                    int64_t columns) {
  constexpr int block = registers < 32 ? 4 : 8;
  const int64_t stride = row_stride(columns);
  int64_t j = 0;
  const auto apply = [&](auto width) __attribute__((always_inline)) {
    apply_reflectors<T, decltype(width)::value>(vectors, step, v_stride, tau, count, a + j, stride, rows);
    j += width;
  };
  while (j + block <= columns) apply(std::integral_constant<int, block>{});
  if (block > 4 && j + 4 <= columns) apply(std::integral_constant<int, 4>{});
  if (j + 2 <= columns) apply(std::integral_constant<int, 2>{});
  if (j < columns) apply(std::integral_constant<int, 1>{});
}

// u <- Q u for u of rows x columns; a and factors as bidiagonalise left them.
template <typename T>
[[gnu::always_inline]] inline void apply_left_reflectors(const Pack<T>* a, const BidiagonalFactors<T>& factors, Pack<T>* u,
                                                         int64_t rows, int64_t columns) {
  const int64_t stride = row_stride(columns);
  apply_reflectors(a, stride + 1, stride, factors.tau_left, columns, u, rows, columns);
}

// v <- P v for v of columns x columns.
template <typename T>
[[gnu::always_inline]] inline void apply_right_reflectors(const Pack<T>* a, const BidiagonalFactors<T>& factors, Pack<T>* v,
                                                          int64_t columns) {
  const int64_t stride = row_stride(columns);
  apply_reflectors(a + 1, stride + 1, int64_t{1}, factors.tau_right, columns - 2, v + stride, columns - 1, columns);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
