// The inverse of symmetric positive definite matrices in the lanes, by A = L L^T, Y = L^-1, A^-1 = Y^T Y, each in the
// place of the one before.
//
// Elimination by triangular solves only: with the explicit inverse of a leading block in its place (sweeps, or inversion
// by halves) the last Schur complement loses twice as many digits.
#pragma once

#include "cpu/lanes/product.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// To Clang an entry that is written may be a member of DefiniteInverse: where that is not inlined, the members are
// loaded again after each entry.
#if defined(__clang__)
#define SVDRD_INLINED [[gnu::always_inline]]
#else
#define SVDRD_INLINED
#endif

template <typename T>
struct DefiniteInverse {
  using Native = typename Pack<T>::Native;

  const Pack<T>* from;  // the matrix, its lower triangle
  Pack<T>* a;
  int64_t n;
  int64_t stride;
  int part;

  Native& at(Pack<T>* matrix, int64_t i, int64_t j) const { return matrix[i * stride + j].part[part]; }
  const Native& at(const Pack<T>* matrix, int64_t i, int64_t j) const { return matrix[i * stride + j].part[part]; }

  // L below the diagonal of a, on it 1 / l_ii.
  SVDRD_INLINED void eliminate() const {
    const Plain<T> left{a, stride};
    const Transposed<T> right{a, stride};
    for (int64_t j = 0; j < n; j += 4) {
      Native s[4][4], inverse[4];
      product_block<true, 4, 4>(left, right, 0, j, j, j, part, s);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int q = 0; q <= p; ++q) s[p][q] = at(from, j + p, j + q) - s[p][q];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        inverse[q] = native_reciprocal_sqrt<T>(s[q][q]);
        at(a, j + q, j + q) = inverse[q];
#pragma GCC unroll 4
        for (int p = q + 1; p < 4; ++p) at(a, j + p, j + q) = s[p][q] *= inverse[q];
#pragma GCC unroll 4
        for (int p = q + 1; p < 4; ++p)
#pragma GCC unroll 4
          for (int r = q + 1; r <= p; ++r) s[p][r] -= s[p][q] * s[r][q];
      }
      for (int64_t i = j + 4; i < n; i += 4)
        for (int first = 0; first < 4; first += block_width) {
          Native u[4][block_width];
          product_block<false, 4, block_width>(left, right, 0, j + first, i, j + first, part, u);
#pragma GCC unroll 4
          for (int q = 0; q < block_width; ++q)
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) {
              const Native l = (at(from, i + p, j + first + q) - u[p][q]) * inverse[first + q];
              at(a, i + p, j + first + q) = l;
#pragma GCC unroll 4
              for (int r = q + 1; r < block_width; ++r) u[p][r] += l * s[first + r][first + q];
            }
        }
    }
  }

  // Y in place of L: a block of L is not read again once its block of Y is written. Within the blocks on the diagonal
  // there are zeros above it.
  SVDRD_INLINED void invert_factor() const {
    const Plain<T> left{a, stride}, right{a, stride};
    for (int64_t i = 0; i < n; i += 4) {
      Native l[4][4], inverse[4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        inverse[p] = at(a, i + p, i + p);
#pragma GCC unroll 4
        for (int q = 0; q < p; ++q) l[p][q] = at(a, i + p, i + q);
      }
      for (int64_t j = 0; j < i; j += block_width) {
        Native t[4][block_width];
        product_block<false, 4, block_width>(left, right, j, i, i, j, part, t);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
          for (int q = 0; q < block_width; ++q) {
#pragma GCC unroll 4
            for (int r = 0; r < p; ++r) t[p][q] += l[p][r] * t[r][q];
            t[p][q] = -(inverse[p] * t[p][q]);
            at(a, i + p, j + q) = t[p][q];
          }
      }
      Native t[4][4];
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          t[p][q] = Native{};
          if (p == q) t[p][q] = inverse[p];
          if (q < p) {
            t[p][q] = l[p][q] * t[q][q];
            // Written out: whether this product or the first of these is rounded would be the compiler's choice.
#pragma GCC unroll 4
            for (int r = q + 1; r < p; ++r) t[p][q] = native_multiply_add<T>(l[p][r], t[r][q], t[p][q]);
            t[p][q] = -(inverse[p] * t[p][q]);
          }
          at(a, i + p, i + q) = t[p][q];
        }
    }
  }

  // Y^T Y, row of blocks by row of blocks, the one on the diagonal last: nothing that is overwritten is read later.
  SVDRD_INLINED void multiply() const {
    const Transposed<T> left{a, stride};
    const Plain<T> right{a, stride};
    for (int64_t i = 0; i < n; i += 4) {
      for (int64_t j = 0; j < i; j += block_width) {
        Native x[4][block_width];
        product_block<false, 4, block_width>(left, right, i, n, i, j, part, x);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
          for (int q = 0; q < block_width; ++q) at(a, i + p, j + q) = at(a, j + q, i + p) = x[p][q];
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

#undef SVDRD_INLINED

// The same for two blocks of 4 x 4 a side, by A = L D L^T, which fit the registers but for a few entries: DefiniteInverse
// spends much of its time on writing.
template <typename T>
struct SmallDefiniteInverse {
  using Native = typename Pack<T>::Native;
  using Bits = typename NativeTypes<T>::MaskVector;
  using Block = Native[4][4];

  const Pack<T>* from;
  Pack<T>* a;
  int part;

  static constexpr int64_t stride = row_stride(8);

  Native entry(int i, int j) const { return from[i * stride + j].part[part]; }
  void store(int i, int j, const Native& value) const {
    a[i * stride + j].part[part] = a[j * stride + i].part[part] = value;
  }

  // l: in its lower triangle the matrix, out below the diagonal L. inverse = D^-1. The signs of D are added to `signs`.
  [[gnu::always_inline]] static void eliminate(Block& l, Native (&inverse)[4], Bits& signs) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      signs |= (Bits)l[q][q];
      inverse[q] = (Native{} + T(1)) / l[q][q];
#pragma GCC unroll 4
      for (int p = q + 1; p < 4; ++p) {
        const Native factor = l[p][q] * inverse[q];
#pragma GCC unroll 4
        for (int r = p; r < 4; ++r) l[r][p] -= factor * l[r][q];
      }
#pragma GCC unroll 4
      for (int p = q + 1; p < 4; ++p) l[p][q] *= inverse[q];
    }
  }

  // y = L^-1, below the diagonal.
  [[gnu::always_inline]] static void invert_factor(const Block& l, Block& y) {
#pragma GCC unroll 4
    for (int p = 1; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < p; ++q) {
        y[p][q] = -l[p][q];
#pragma GCC unroll 4
        for (int r = q + 1; r < p; ++r) y[p][q] -= l[p][r] * y[r][q];
      }
  }

  [[gnu::always_inline]] void compute() const {
    Block l11, l21, l22;
    Native inverse1[4], inverse2[4];
    Bits signs{};
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q <= p; ++q) {
        l11[p][q] = entry(p, q);
        l22[p][q] = entry(4 + p, 4 + q);
      }
    eliminate(l11, inverse1, signs);
    // L21 D1, then L21, while its share is taken from A22.
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        l21[p][q] = entry(4 + p, q);
#pragma GCC unroll 4
        for (int r = 0; r < q; ++r) l21[p][q] -= l11[q][r] * l21[p][r];
      }
#pragma GCC unroll 4
    for (int p = 3; p >= 0; --p)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Native factor = l21[p][k] * inverse1[k];
#pragma GCC unroll 4
        for (int q = 0; q <= p; ++q) l22[p][q] -= factor * l21[q][k];
        l21[p][k] = factor;
      }
    eliminate(l22, inverse2, signs);

    // Y11 = L11^-1, Y21 = -L22^-1 L21 Y11, Y22 = L22^-1.
    Block y11, y21, y22;
    invert_factor(l11, y11);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        Native sum = l21[p][q];
#pragma GCC unroll 4
        for (int r = q + 1; r < 4; ++r) sum += l21[p][r] * y11[r][q];
#pragma GCC unroll 4
        for (int r = 0; r < p; ++r) sum += l22[p][r] * y21[r][q];
        y21[p][q] = -sum;
      }
    invert_factor(l22, y22);

    // Y^T (D^-1 Y), from the lower right.
    Block scaled;
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q <= p; ++q) scaled[p][q] = p == q ? inverse2[p] : inverse2[p] * y22[p][q];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q <= p; ++q) {
        Native sum = scaled[p][q];
#pragma GCC unroll 4
        for (int k = p + 1; k < 4; ++k) sum += y22[k][p] * scaled[k][q];
        store(4 + p, 4 + q, sum);
      }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) scaled[p][q] = inverse2[p] * y21[p][q];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        Native sum = scaled[p][q];
#pragma GCC unroll 4
        for (int k = p + 1; k < 4; ++k) sum += y22[k][p] * scaled[k][q];
        store(4 + p, q, sum);
      }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
      for (int q = 0; q <= p; ++q) {
        Native sum = p == q ? inverse1[p] : inverse1[p] * y11[p][q];
#pragma GCC unroll 4
        for (int k = p + 1; k < 4; ++k) sum = native_multiply_add<T>(y11[k][p], inverse1[k] * y11[k][q], sum);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum = native_multiply_add<T>(y21[k][p], scaled[k][q], sum);
        // Without a root a negative D stays a number, and of a singular matrix large terms may cancel on the diagonal.
        if (p == 0) sum = (Native)((Bits)sum | (signs < 0));
        store(p, q, sum);
      }
  }
};

// a = from^-1 for n a multiple of 4; only the lower triangle of `from` is read, all of a is written. Of a matrix that is
// not positive definite NaN or Inf come out, on the diagonal too. The diagonal of any other is a sum of positive terms.
template <typename T>
SVDRD_ONE_COPY void invert_definite(const Pack<T>* from, int64_t n, Pack<T>* a) {
  for (int part = 0; part < Pack<T>::parts; ++part) {
    if (n == 8) {
      SmallDefiniteInverse<T>{from, a, part}.compute();
      continue;
    }
    const DefiniteInverse<T> inverse{from, a, n, row_stride(n), part};
    inverse.eliminate();
    inverse.invert_factor();
    inverse.multiply();
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
