// The inverse of symmetric positive definite matrices in the lanes, by A = L D L^T, Y = L^-1, A^-1 = Y^T D^-1 Y.
//
// Elimination by triangular solves only: with the explicit inverse of a leading block in its place (sweeps, or inversion
// by halves) the last Schur complement loses twice as many digits.
#pragma once

#include "lanes_product.h"
#include "simd.h"

namespace svdrd {
namespace SVDRD_ISA {

template <typename T>
struct DefiniteInverse {
  using Native = typename Pack<T>::Native;

  const Pack<T>* from;  // the matrix, its lower triangle
  Pack<T>* a;
  Pack<T>* y;
  int64_t n;
  int64_t stride;
  int part;

  Native& at(Pack<T>* matrix, int64_t i, int64_t j) const { return matrix[i * stride + j].part[part]; }
  const Native& at(const Pack<T>* matrix, int64_t i, int64_t j) const { return matrix[i * stride + j].part[part]; }

  // Below the diagonal L in a and L D in y, on it 1 / D in a.
  void eliminate() const {
    const Operand<T> left{a, stride, 1}, right{y, 1, stride};
    for (int64_t j = 0; j < n; j += 4) {
      Native s[4][4], inverse[4];
      product_block<true, 4, 4>(left, right, 0, j, j, j, part, s);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int q = 0; q <= p; ++q) s[p][q] = at(from, j + p, j + q) - s[p][q];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        inverse[q] = (Native{} + T(1)) / s[q][q];
        at(a, j + q, j + q) = inverse[q];
#pragma GCC unroll 4
        for (int p = q + 1; p < 4; ++p) {
          const Native l = s[p][q] * inverse[q];
          at(a, j + p, j + q) = l;
#pragma GCC unroll 4
          for (int r = q + 1; r <= p; ++r) s[p][r] -= l * s[r][q];
        }
      }
      for (int64_t i = j + 4; i < n; i += 4) {
        Native u[4][4];
        product_block<false, 4, 4>(left, right, 0, j, i, j, part, u);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q)
#pragma GCC unroll 4
          for (int p = 0; p < 4; ++p) {
            const Native value = at(from, i + p, j + q) - u[p][q];
            const Native l = value * inverse[q];
            at(y, i + p, j + q) = value;
            at(a, i + p, j + q) = l;
#pragma GCC unroll 4
            for (int r = q + 1; r < 4; ++r) u[p][r] += l * s[r][q];
          }
      }
    }
  }

  // Y in y and D^-1 Y in place of L: a block of L is not needed after its own of Y. Within the blocks on the diagonal
  // there are zeros above it.
  void invert_factor() const {
    const Operand<T> left{a, stride, 1}, right{y, stride, 1};
    for (int64_t i = 0; i < n; i += 4) {
      Native l[4][4], inverse[4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        inverse[p] = at(a, i + p, i + p);
#pragma GCC unroll 4
        for (int q = 0; q < p; ++q) l[p][q] = at(a, i + p, i + q);
      }
      for (int64_t j = 0; j < i; j += 4) {
        Native t[4][4];
        product_block<false, 4, 4>(left, right, j, i, i, j, part, t);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 4
            for (int r = 0; r < p; ++r) t[p][q] += l[p][r] * t[r][q];
            t[p][q] = -t[p][q];
            at(y, i + p, j + q) = t[p][q];
            at(a, i + p, j + q) = inverse[p] * t[p][q];
          }
      }
      Native t[4][4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          t[p][q] = Native{};
          if (q < p) {
            t[p][q] = -l[p][q];
#pragma GCC unroll 4
            for (int r = q + 1; r < p; ++r) t[p][q] -= l[p][r] * t[r][q];
          }
          at(y, i + p, i + q) = p == q ? Native{} + T(1) : t[p][q];
          at(a, i + p, i + q) = p == q ? inverse[p] : inverse[p] * t[p][q];
        }
    }
  }

  // Y^T (D^-1 Y), block by block over its second factor: no later block needs what is overwritten.
  void multiply() const {
    const Operand<T> left{y, 1, stride}, right{a, stride, 1};
    for (int64_t i = 0; i < n; i += 4) {
      for (int64_t j = 0; j < i; j += 4) {
        Native x[4][4];
        product_block<false, 4, 4>(left, right, i, n, i, j, part, x);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) at(a, i + p, j + q) = at(a, j + q, i + p) = x[p][q];
      }
      Native x[4][4];
      product_block<true, 4, 4>(left, right, i, n, i, i, part, x);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int q = 0; q <= p; ++q) at(a, i + p, i + q) = at(a, i + q, i + p) = x[p][q];
    }
  }
};

// a = from^-1 for n a multiple of 4; only the lower triangle of `from` is read, all of a is written. y: a matrix of scratch.
// Of a matrix that is not positive definite nothing of use comes out.
template <typename T>
[[gnu::noinline]] void invert_definite(const Pack<T>* from, int64_t n, Pack<T>* y, Pack<T>* a) {
  for (int part = 0; part < Pack<T>::parts; ++part) {
    const DefiniteInverse<T> inverse{from, a, y, n, row_stride(n), part};
    inverse.eliminate();
    inverse.invert_factor();
    inverse.multiply();
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
