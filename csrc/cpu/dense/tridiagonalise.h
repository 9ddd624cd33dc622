// Householder tridiagonalisation of a symmetric matrix in float64.
//
// Each step needs the product of what is left of the matrix with the new reflector, and then changes all of it. While
// half of the matrix fits the second-level cache, one pass does both: it applies the change of the step before and
// multiplies what it has just changed. An entry is read and written once for four multiply-adds. Of a larger matrix the
// changes are collected for a panel of steps (Dongarra, Sorensen and Hammarling, 1989; LAPACK's latrd), so that a step
// only reads it.
#pragma once

#include "cpu/dense/householder.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// From this size on steps are collected in panels. The upper half of 512 x 512 doubles is 1 MB.
constexpr int64_t least_for_panels = 520;

// What a pass works on: the part of the upper triangle of a that starts at row `first`, in whole 8 x 8 blocks on the
// diagonal. The sums of a row wait in `sums`, a vector each, until all of it is there.
struct SymmetricPass {
  double* a;
  int64_t stride;
  int64_t first;
  const double* v;  // v, w: of the change A - v w^T - w v^T
  const double* w;
  const double* x;
  double* y;
  double* sums;
};

// The columns k0 .. k0 + 8 blocks - 1 of y = A x, and what they add to the sums of the rows above. `changes`: A is
// changed first.
template <bool changes, int blocks>
[[gnu::always_inline]] inline void multiply_strip(const SymmetricPass& pass, int64_t k0) {
  constexpr int64_t width = lanes<double>;
  constexpr int in_block = static_cast<int>(8 / width), count = blocks * in_block;
  Vector<double> v[count], w[count], x[count], y[count];
#pragma GCC unroll 16
  for (int c = 0; c < count; ++c) {
    x[c] = load(pass.x + k0 + c * width);
    y[c] = Vector<double>{};
    if constexpr (changes) {
      v[c] = load(pass.v + k0 + c * width);
      w[c] = load(pass.w + k0 + c * width);
    }
  }
  // Row i from vector `begin` of the strip on. Vectors before `above` lie in the block on the diagonal, which holds both
  // triangles.
  const auto multiply_row = [&](int64_t i, int begin, int above, Vector<double> sum) __attribute__((always_inline)) {
    const Vector<double> x_row = splat(pass.x[i]);
    Vector<double> v_row, w_row;
    if constexpr (changes) {
      v_row = splat(pass.v[i]);
      w_row = splat(pass.w[i]);
    }
    double* const row = pass.a + i * pass.stride + k0;
#pragma GCC unroll 16
    for (int c = begin; c < count; ++c) {
      Vector<double> entry = load(row + c * width);
      if constexpr (changes) {
        entry = entry - v_row * w[c] - w_row * v[c];
        store(row + c * width, entry);
      }
      sum += entry * x[c];
      if (c >= above) y[c] += entry * x_row;
    }
    store(pass.sums + i * width, sum);
  };
  for (int64_t i = pass.first; i < k0; ++i) multiply_row(i, 0, 0, load(pass.sums + i * width));
#pragma GCC unroll 4
  for (int b = 0; b < blocks; ++b) {
    const int64_t begin = k0 + 8 * b;
    for (int64_t i = pass.first > begin ? pass.first : begin; i < begin + 8; ++i)
      multiply_row(i, b * in_block, (b + 1) * in_block, Vector<double>{});
  }
#pragma GCC unroll 16
  for (int c = 0; c < count; ++c) store(pass.y + k0 + c * width, y[c]);
}

// y = A x from row `first` of A on, and its product with x; n, the padded size, is a multiple of 8, and x is zero before
// `first`.
template <bool changes>
inline double multiply_symmetric(const SymmetricPass& pass, int64_t n) {
  constexpr int64_t width = lanes<double>;
  // With 32 registers wide strips save loads and stores; with 16 they would spill.
  constexpr bool wide = width == 8;
  int64_t k0 = round_down(pass.first, 8);
  const int64_t begin = k0;
  if constexpr (wide) {
    if ((n - k0) % 16 != 0) {
      multiply_strip<changes, 1>(pass, k0);
      k0 += 8;
    }
    if ((n - k0) % 32 != 0) {
      multiply_strip<changes, 2>(pass, k0);
      k0 += 16;
    }
    for (; k0 < n; k0 += 32) multiply_strip<changes, 4>(pass, k0);
  } else {
    for (; k0 < n; k0 += 8) multiply_strip<changes, 1>(pass, k0);
  }
  Vector<double> product{};
  for (int64_t i = begin; i < n; i += width) {
    Vector<double> sums[width];
    for (int64_t r = 0; r < width; ++r) sums[r] = load(pass.sums + (i + r) * width);
    const Vector<double> y = load(pass.y + i) + sums_of_lanes(sums);
    store(pass.y + i, y);
    product += y * load(pass.x + i);
  }
  return sum_lanes<double>(product);
}

// Reduces the symmetric a (n x n, whole 8 x 8 blocks with zeros beyond n) to tridiagonal form d, e. The reflector of
// step j replaces row j of a, starting at column j + 1.
inline void tridiagonalise(double* a, int64_t stride, int64_t n, double* d, double* e, double* tau, Scratch& scratch) {
  constexpr int64_t width = lanes<double>, panel = 8;
  const int64_t padded = round_up(n, 8);
  ScratchScope scope(scratch);
  double* y = scratch.take_zeros<double>(padded);
  double* sums = scratch.take_zeros<double>(padded * width);
  const auto add_product = [&](double* row, int64_t start, const double* v, const double* w, double v_entry,
                               double w_entry) {
    const Vector<double> v_factor = splat(v_entry), w_factor = splat(w_entry);
    for (int64_t i = start; i < padded; i += width)
      store(row + i, load(row + i) - v_factor * load(w + i) - w_factor * load(v + i));
  };
  // Takes row j to its reflector. What was applied to it must be in it.
  const auto reflect = [&](int64_t j) {
    double* const row = a + j * stride;
    d[j] = row[j];
    if (j + 1 < n)
      e[j] = make_reflector(row, j + 1, padded, tau[j]);
    else
      for (int64_t i = 0; i < padded; ++i) row[i] = 0;
  };
  // w = tau (y - tau / 2 (y . v) v), zero up to j.
  const auto companion = [&](int64_t j, int64_t start, double product, double* w) {
    const double* v = a + j * stride;
    const double half = -0.5 * tau[j] * product;
    for (int64_t i = start; i < padded; i += width) store(w + i, tau[j] * (load(y + i) + half * load(v + i)));
    for (int64_t i = start; i <= j; ++i) w[i] = 0;
  };

  if (n < least_for_panels) {
    double* v = scratch.take_zeros<double>(padded);
    double* w = scratch.take_zeros<double>(padded);
    for (int64_t j = 0; j < n; ++j) {
      double* row = a + j * stride;
      const int64_t start = round_down(j, 8);
      add_product(row, start, v, w, v[j], w[j]);
      v[j] = w[j] = 0;
      reflect(j);
      if (j + 1 == n) break;
      const double product = multiply_symmetric<true>({a, stride, j + 1, v, w, row, y, sums}, padded);
      companion(j, start, product, w);
      copy(v + start, row + start, padded - start);
    }
    return;
  }

  // Rows 0..7: the panel's W, 8..15: -V, 16..23: W again, so that A - V W^T - W V^T is one product of depth 16.
  double* w = scratch.take_zeros<double>(3 * panel * stride);
  for (int64_t j0 = 0; j0 < n; j0 += panel) {
    const int64_t end = j0 + panel < n ? j0 + panel : n;
    for (int64_t j = j0; j < end; ++j) {
      double* row = a + j * stride;
      for (int64_t l = j0; l < j; ++l) {
        const double* v_row = a + l * stride;
        const double* w_row = w + (l - j0) * stride;
        add_product(row, j0, v_row, w_row, v_row[j], w_row[j]);
      }
      reflect(j);
      if (j + 1 == n) break;
      multiply_symmetric<false>({a, stride, j + 1, nullptr, nullptr, row, y, sums}, padded);
      for (int64_t i = j0; i < round_down(j + 1, 8); ++i) y[i] = 0;
      for (int64_t l = j0; l < j; ++l) {
        const double* v_row = a + l * stride;
        const double* w_row = w + (l - j0) * stride;
        add_product(y, j0, v_row, w_row, dot(v_row + j0, row + j0, padded - j0), dot(w_row + j0, row + j0, padded - j0));
      }
      companion(j, j0, dot(y + j0, row + j0, padded - j0), w + (j - j0) * stride);
    }
    if (end < n) {
      for (int64_t l = 0; l < panel; ++l)
        for (int64_t i = end; i < padded; ++i) {
          w[(panel + l) * stride + i] = -a[(j0 + l) * stride + i];
          w[(2 * panel + l) * stride + i] = w[l * stride + i];
        }
      // Not shared: the matrix would change caches for a few operations an entry.
      gemm_alone<double>(padded - end, padded - end, 2 * panel, transposed(w + panel * stride + end, stride),
                         plain(w + end, stride), a + end * stride + end, stride, {true, true});
    }
  }
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
