// Matrix products: C = alpha A B or C += alpha A B, float32 and float64.
//
// A tile of C lives in registers (8 x 3 vectors where there are 32 of them, 4 x 3 with 16) while a panel of B, short
// enough for the first-level cache, is read once per row tile and the elements of A are broadcast from where they lie.
// Only a B that is transposed, or a last narrow panel, is copied. A team shares the panels.
#pragma once

#include "cpu/dense/vector.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int gemm_rows = 8;
#else
constexpr int gemm_rows = 4;
#endif
constexpr int gemm_vectors = 3;
constexpr int64_t gemm_depth = 128;

// An operand: element (i, j) is at data[i * row + j * column].
template <typename T>
struct Operand {
  const T* data;
  int64_t row;
  int64_t column;
  Operand transposed() const { return {data, column, row}; }
  Operand at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

template <typename T>
inline Operand<T> plain(const T* data, int64_t stride) {
  return {data, stride, 1};
}

template <typename T>
inline Operand<T> transposed(const T* data, int64_t stride) {
  return {data, 1, stride};
}

template <typename T>
struct Product {
  T alpha = T(1);
  bool accumulate = false;
  // Compute only what lies on or above the diagonal, in whole tiles that cover the 8 x 8 blocks on it.
  bool upper = false;
};

template <typename T, int rows, int vectors>
inline void gemm_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_stride, T* c,
                      int64_t c_stride, int64_t columns, T alpha, bool accumulate) {
  constexpr int64_t w = lanes<T>;
  Vector<T> sum[rows][vectors] = {};
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < vectors; ++j) __builtin_prefetch(c + i * c_stride + j * w, 1);
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> b_row[vectors];
#pragma GCC unroll 3
    for (int j = 0; j < vectors; ++j) b_row[j] = load(b + j * w);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vector<T> a_value = splat(a[i * a_row]);
#pragma GCC unroll 3
      for (int j = 0; j < vectors; ++j) sum[i][j] += a_value * b_row[j];
    }
    a += a_column;
    b += b_stride;
  }
  const Vector<T> factor = splat(alpha);
  const bool whole = columns == vectors * w;
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    T* c_row = c + i * c_stride;
    if (whole) {
#pragma GCC unroll 3
      for (int j = 0; j < vectors; ++j) {
        const Vector<T> value = factor * sum[i][j];
        store(c_row + j * w, accumulate ? load(c_row + j * w) + value : value);
      }
    } else {
      T part[vectors * w];
#pragma GCC unroll 3
      for (int j = 0; j < vectors; ++j) store(part + j * w, factor * sum[i][j]);
      for (int64_t j = 0; j < columns; ++j) c_row[j] = accumulate ? c_row[j] + part[j] : part[j];
    }
  }
}

template <typename T, int vectors>
inline void gemm_panel(int64_t m, int64_t depth, Operand<T> a, const T* b, int64_t b_stride, T* c,
                       int64_t c_stride, int64_t columns, T alpha, bool accumulate) {
  int64_t i = 0;
  for (; i + gemm_rows <= m; i += gemm_rows)
    gemm_tile<T, gemm_rows, vectors>(depth, a.data + i * a.row, a.row, a.column, b, b_stride, c + i * c_stride,
                                     c_stride, columns, alpha, accumulate);
  if (gemm_rows > 4 && i + 4 <= m) {
    gemm_tile<T, 4, vectors>(depth, a.data + i * a.row, a.row, a.column, b, b_stride, c + i * c_stride, c_stride,
                             columns, alpha, accumulate);
    i += 4;
  }
  if (i + 2 <= m) {
    gemm_tile<T, 2, vectors>(depth, a.data + i * a.row, a.row, a.column, b, b_stride, c + i * c_stride, c_stride,
                             columns, alpha, accumulate);
    i += 2;
  }
  if (i < m)
    gemm_tile<T, 1, vectors>(depth, a.data + i * a.row, a.row, a.column, b, b_stride, c + i * c_stride, c_stride,
                             columns, alpha, accumulate);
}

// packed[l * stride + j] = element (l, j) of a panel of B, zero from `columns` to stride.
template <typename T>
inline void pack_panel(const T* panel, Operand<T> b, int64_t depth, int64_t columns, T* packed, int64_t stride) {
  constexpr int64_t w = lanes<T>;
  int64_t whole_columns = 0, whole_depth = 0;
  if (b.row == 1) {
    whole_columns = round_down(columns, w);
    whole_depth = round_down(depth, w);
    for (int64_t j = 0; j < whole_columns; j += w)
      for (int64_t l = 0; l < whole_depth; l += w)
        transpose_block(panel + j * b.column + l, b.column, packed + l * stride + j, stride);
  }
  for (int64_t l = 0; l < depth; ++l) {
    for (int64_t j = l < whole_depth ? whole_columns : 0; j < columns; ++j)
      packed[l * stride + j] = panel[l * b.row + j * b.column];
    for (int64_t j = columns; j < stride; ++j) packed[l * stride + j] = T(0);
  }
}

// C (m x n, rows c_stride apart) = alpha A (m x k) B (k x n), or added to C. C must not overlap A or B.
// for_each(count, part) calls part(0) .. part(count - 1).
template <typename T, typename ForEach>
inline void gemm_in_panels(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                           Product<T> product, const ForEach& for_each) {
  constexpr int64_t w = lanes<T>;
  constexpr int64_t panel = gemm_vectors * w;
  if (k == 0 && !product.accumulate)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) c[i * c_stride + j] = T(0);
  for (int64_t k0 = 0; k0 < k; k0 += gemm_depth)
    for_each((n + panel - 1) / panel, [=](int64_t index) {
      alignas(64) T packed[gemm_depth * panel];
      const int64_t depth = k - k0 < gemm_depth ? k - k0 : gemm_depth;
      const bool accumulate = product.accumulate || k0 > 0;
      const int64_t j0 = index * panel;
      const int64_t columns = n - j0 < panel ? n - j0 : panel;
      const int64_t vectors = (columns + w - 1) / w;
      const T* b_panel = b.data + k0 * b.row + j0 * b.column;
      int64_t b_stride = b.row;
      if (b.column != 1 || columns != vectors * w) {
        b_stride = vectors * w;
        pack_panel(b_panel, b, depth, columns, packed, b_stride);
        b_panel = packed;
      }
      int64_t rows = m;
      if (product.upper) {
        const int64_t last = round_up(j0 + columns, 8);
        rows = last < m ? last : m;
      }
      const Operand<T> a_part = a.at(0, k0);
      T* c_part = c + j0;
      if (vectors == 3)
        gemm_panel<T, 3>(rows, depth, a_part, b_panel, b_stride, c_part, c_stride, columns, product.alpha, accumulate);
      else if (vectors == 2)
        gemm_panel<T, 2>(rows, depth, a_part, b_panel, b_stride, c_part, c_stride, columns, product.alpha, accumulate);
      else
        gemm_panel<T, 1>(rows, depth, a_part, b_panel, b_stride, c_part, c_stride, columns, product.alpha, accumulate);
    });
}

// The product by the calling thread alone: for what is small, or itself a part of shared work.
template <typename T>
inline void gemm_alone(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                       Product<T> product = {}) {
  gemm_in_panels<T>(m, n, k, a, b, c, c_stride, product, [](int64_t count, const auto& part) {
    for (int64_t i = 0; i < count; ++i) part(i);
  });
}

// The product, shared where it is worth it.
template <typename T>
inline void gemm(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride, Scratch& scratch,
                 Product<T> product = {}) {
  constexpr int64_t least_shared = 1 << 16;  // multiply-adds: some microseconds of one thread
  if (m * n * (k < gemm_depth ? k : gemm_depth) < least_shared) return gemm_alone<T>(m, n, k, a, b, c, c_stride, product);
  gemm_in_panels<T>(m, n, k, a, b, c, c_stride, product,
                    [&](int64_t count, const auto& part) { share(scratch, count, part); });
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
