// Householder tridiagonalisation of the symmetric matrices in the lanes, A = Q T Q^T, and T = B^T B with B bidiagonal.
//
// One pass a step, as in cpu/dense/tridiagonalise.h: it applies the change of the step before and multiplies what it has
// just changed with the new reflector.
#pragma once

#include "cpu/lanes/bidiagonal.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// What a step of the tridiagonalisation works on. v, w: the change A - v w^T - w v^T of the step before. x: the new
// reflector, y: A x.
template <typename T>
struct SymmetricPass {
  Pack<T>* a;
  int64_t stride;
  int64_t n;
  const Pack<T>* v;
  const Pack<T>* w;
  const Pack<T>* x;
  Pack<T>* y;
};

// Changes rows i .. i + rows - 1 of the upper triangle and adds what they contribute to y.
template <int rows, typename T>
[[gnu::always_inline]] inline void multiply_rows(const SymmetricPass<T>& pass, int64_t i) {
  using Native = typename Pack<T>::Native;
  for (int part = 0; part < Pack<T>::parts; ++part) {
    Native v[rows], w[rows], x[rows], sum[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      v[r] = pass.v[i + r].part[part];
      w[r] = pass.w[i + r].part[part];
      x[r] = pass.x[i + r].part[part];
      sum[r] = Native{};
    }
    Pack<T>* const block = pass.a + i * pass.stride;
    const auto changed = [&](int r, int64_t k, const Native& vk, const Native& wk) __attribute__((always_inline)) {
      Native& entry = block[r * pass.stride + k].part[part];
      return entry = native_multiply_add<T>(-w[r], vk, native_multiply_add<T>(-v[r], wk, entry));
    };
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int c = r; c < rows; ++c) {
        const Native entry = changed(r, i + c, v[c], w[c]);
        sum[r] = native_multiply_add<T>(entry, x[c], sum[r]);
        if (c > r) sum[c] = native_multiply_add<T>(entry, x[r], sum[c]);
      }
    for (int64_t k = i + rows; k < pass.n; ++k) {
      const Native vk = pass.v[k].part[part], wk = pass.w[k].part[part], xk = pass.x[k].part[part];
      Native yk = pass.y[k].part[part];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Native entry = changed(r, k, vk, wk);
        sum[r] = native_multiply_add<T>(entry, xk, sum[r]);
        yk = native_multiply_add<T>(entry, x[r], yk);
      }
      pass.y[k].part[part] = yk;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) pass.y[i + r].part[part] += sum[r];
  }
}

template <typename T>
struct TridiagonalScratch {
  Pack<T>* v;
  Pack<T>* w;
  Pack<T>* y;
};

// The upper triangle of a (n x n) -> d, e. The vector of reflector j replaces row j, from column j + 1 on.
template <typename T>
[[gnu::always_inline]] inline void tridiagonalise(Pack<T>* a, int64_t n, const TridiagonalScratch<T>& scratch, Pack<T>* d,
                                                  Pack<T>* e, Pack<T>* tau) {
  const int64_t stride = row_stride(n);
  const Pack<T> zero(T(0)), half(T(0.5));
  Pack<T>*v = scratch.v, *w = scratch.w, *y = scratch.y;
  for (int64_t k = 0; k < n; ++k) v[k] = w[k] = zero;
  for (int64_t j = 0; j < n; ++j) {
    Pack<T>* row = a + j * stride;
    for (int64_t k = j; k < n; ++k) row[k] = row[k] - v[j] * w[k] - w[j] * v[k];
    d[j] = row[j];
    if (j + 1 == n) break;
    Reflector<T> reflector = {row[j + 1], zero, zero};
    if (j + 2 < n) {
      reflector = make_reflector(row[j + 1], sum_of_squares(row + j + 2, n - j - 2, 1));
      row[j + 1] = reflector.first;
    }
    e[j] = reflector.beta;
    tau[j] = reflector.tau;
    for (int64_t k = j + 1; k < n; ++k) y[k] = zero;
    const SymmetricPass<T> pass{a, stride, n, v, w, row, y};
    int64_t i = j + 1;
    for (; i + 4 <= n; i += 4) multiply_rows<4>(pass, i);
    for (; i < n; ++i) multiply_rows<1>(pass, i);
    Pack<T> product = zero;
    for (int64_t k = j + 1; k < n; ++k) product = product + y[k] * row[k];
    const Pack<T> part = half * reflector.tau * product;
    for (int64_t k = j + 1; k < n; ++k) {
      w[k] = reflector.tau * (y[k] - part * row[k]);
      v[k] = row[k];
    }
  }
}

// d, e of T -> those of B. Lanes where T is not positive definite come out as nothing of use, but finite.
template <typename T>
[[gnu::always_inline]] inline void factor_tridiagonal(Pack<T>* d, Pack<T>* e, int64_t n) {
  const Pack<T> least(negligible_entry<T>() * negligible_entry<T>());
  for (int64_t k = 0; k < n; ++k) {
    Pack<T> square = k == 0 ? d[0] : d[k] - e[k - 1] * e[k - 1];
    square = max(square, least);
    const Pack<T> inverse = reciprocal_sqrt(square);
    d[k] = square * inverse;
    if (k + 1 < n) e[k] = e[k] * inverse;
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
