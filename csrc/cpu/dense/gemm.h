// Matrix products: C = A B or C += A B, float32 and float64.
//
// A tile of C lives in registers while a panel of B, short enough for the first-level cache, is read once per row tile
// and the elements of A are broadcast from where they lie. On x86-64 4 x 3 vectors hide the latency of the multiply-adds;
// larger tiles, of which a processor overlaps less of one with the next, were slower with AVX-512 too.
// Only a B that is transposed, or a last narrow panel, is copied. A team shares the panels.
#pragma once

#include "cpu/dense/vector.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// Of a tile with so many vectors a row.
template <int vectors>
#if defined(__aarch64__)
constexpr int tile_rows = vectors == 3 ? 6 : 8;  // GCC 12 spills registers of 8 x 3
#elif defined(__AVX512F__)
constexpr int tile_rows = vectors == 1 ? 8 : 4;
#else
constexpr int tile_rows = vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
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

struct Product {
  bool accumulate = false;
  // Compute the 8 x 8 blocks on the diagonal and what lies right of them. What lies below them is left as it is, or holds
  // nothing of use.
  bool upper = false;
};

// Not inlined: in the loop over tiles GCC would keep the address of each vector of C, on the stack.
template <typename T, int rows, int vectors>
[[gnu::noinline]] void gemm_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* b,
                                 int64_t b_stride, T* c, int64_t c_stride, bool accumulate) {
  constexpr int64_t w = lanes<T>;
  // Few products do not hide the latency of C, many do if it is fetched in advance.
  const bool begin_with_c = accumulate && depth <= 32;
  Vector<T> sum[rows][vectors] = {};
  const T* row = c;
  if (begin_with_c) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < vectors; ++j) sum[i][j] = load(row + j * w);
      row += c_stride;
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < vectors; ++j) __builtin_prefetch(row + j * w, 1);
      row += c_stride;
    }
  }
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
  if (accumulate && !begin_with_c) {
    row = c;
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < vectors; ++j) sum[i][j] += load(row + j * w);
      row += c_stride;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < vectors; ++j) store(c + j * w, sum[i][j]);
    c += c_stride;
  }
}

// A panel of B and what of A and C belongs to it.
template <typename T>
struct Panel {
  int64_t depth;
  Operand<T> a;
  const T* b;
  int64_t b_stride;
  T* c;
  int64_t c_stride;
  int64_t columns;
  bool accumulate;
};

// The rows i .. i + rows - 1 of C. A last narrow panel has fewer columns than its vectors have lanes.
template <typename T, int rows, int vectors>
inline void multiply_rows(const Panel<T>& panel, int64_t i) {
  constexpr int64_t width = vectors * lanes<T>;
  const T* const a = panel.a.data + i * panel.a.row;
  T* const c = panel.c + i * panel.c_stride;
  if (panel.columns == width)
    return gemm_tile<T, rows, vectors>(panel.depth, a, panel.a.row, panel.a.column, panel.b, panel.b_stride, c,
                                       panel.c_stride, panel.accumulate);
  T part[rows * width] = {};
  if (panel.accumulate)
    for (int r = 0; r < rows; ++r)
      for (int64_t j = 0; j < panel.columns; ++j) part[r * width + j] = c[r * panel.c_stride + j];
  gemm_tile<T, rows, vectors>(panel.depth, a, panel.a.row, panel.a.column, panel.b, panel.b_stride, part, width,
                              panel.accumulate);
  for (int r = 0; r < rows; ++r)
    for (int64_t j = 0; j < panel.columns; ++j) c[r * panel.c_stride + j] = part[r * width + j];
}

// The rows first .. end - 1.
template <typename T, int vectors>
inline void multiply_panel(const Panel<T>& panel, int64_t first, int64_t end) {
  constexpr int rows = tile_rows<vectors>;
  int64_t i = first;
  for (; i + rows <= end; i += rows) multiply_rows<T, rows, vectors>(panel, i);
  if (rows > 4 && i + 4 <= end) {
    multiply_rows<T, 4, vectors>(panel, i);
    i += 4;
  }
  if (i + 2 <= end) {
    multiply_rows<T, 2, vectors>(panel, i);
    i += 2;
  }
  if (i < end) multiply_rows<T, 1, vectors>(panel, i);
}

// The rows first .. end - 1 of a panel that begins at column j0, but of each row only what lies in the 8 x 8 blocks on
// the diagonal and right of them.
template <typename T, int vectors>
inline void multiply_upper_panel(Panel<T> panel, int64_t j0, int64_t first, int64_t end) {
  const int64_t next = j0 + lanes<T>, last = round_up(next, 8) < end ? round_up(next, 8) : end;
  multiply_panel<T, vectors>(panel, first, vectors > 1 ? last : end);
  if constexpr (vectors > 1)
    if (last < end) {
      panel.b += lanes<T>;
      panel.c += lanes<T>;
      panel.columns -= lanes<T>;
      multiply_upper_panel<T, vectors - 1>(panel, next, last, end);
    }
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

// C (m x n, rows c_stride apart) = A (m x k) B (k x n), or added to C. C must not overlap A or B.
// for_each(count, part) calls part(0) .. part(count - 1).
template <typename T, typename ForEach>
inline void gemm_in_panels(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                           Product product, const ForEach& for_each) {
  constexpr int64_t w = lanes<T>;
  constexpr int64_t panel = gemm_vectors * w;
  const int64_t panels = (n + panel - 1) / panel;
  // Where the last panel would have a single vector, it takes one from the panel before: two tiles of two vectors are
  // faster than one of three and one of one.
  const bool two_and_two = panels > 1 && n - (panels - 1) * panel <= w;
  if (k == 0 && !product.accumulate)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) c[i * c_stride + j] = T(0);
  for (int64_t k0 = 0; k0 < k; k0 += gemm_depth)
    for_each(panels, [=](int64_t index) {
      alignas(64) T packed[gemm_depth * panel];
      const int64_t depth = k - k0 < gemm_depth ? k - k0 : gemm_depth;
      const bool accumulate = product.accumulate || k0 > 0;
      const int64_t j0 = index * panel - (two_and_two && index + 1 == panels ? w : 0);
      const int64_t width = two_and_two && index + 2 == panels ? panel - w : panel;
      const int64_t columns = n - j0 < width ? n - j0 : width;
      const int64_t vectors = (columns + w - 1) / w;
      const T* b_panel = b.data + k0 * b.row + j0 * b.column;
      int64_t b_stride = b.row;
      if (b.column != 1 || columns != vectors * w) {
        b_stride = vectors * w;
        pack_panel(b_panel, b, depth, columns, packed, b_stride);
        b_panel = packed;
      }
      const int64_t last = round_up(j0 + columns, 8), rows = product.upper && last < m ? last : m;
      const Panel<T> whole{depth, a.at(0, k0), b_panel, b_stride, c + j0, c_stride, columns, accumulate};
      const auto multiply = [&](auto count) {
        if (product.upper)
          multiply_upper_panel<T, decltype(count)::value>(whole, j0, 0, rows);
        else
          multiply_panel<T, decltype(count)::value>(whole, 0, rows);
      };
      if (vectors == 3)
        multiply(std::integral_constant<int, 3>());
      else if (vectors == 2)
        multiply(std::integral_constant<int, 2>());
      else
        multiply(std::integral_constant<int, 1>());
    });
}

// The product by the calling thread alone: for what is small, or itself a part of shared work.
template <typename T>
inline void gemm_alone(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                       Product product = {}) {
  gemm_in_panels<T>(m, n, k, a, b, c, c_stride, product, [](int64_t count, const auto& part) {
    for (int64_t i = 0; i < count; ++i) part(i);
  });
}

// The product of the rows of A with the few columns of B, each contiguous.
template <typename T>
[[gnu::noinline]] void multiply_by_dots(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c,
                                        int64_t c_stride, Product product) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = product.upper ? round_down(i, 8) : 0; j < n; ++j) {
      const T sum = dot(a.data + i * a.row, b.data + j * b.column, k);
      c[i * c_stride + j] = product.accumulate ? c[i * c_stride + j] + sum : sum;
    }
}

// The product, shared where it is worth it.
template <typename T>
inline void gemm(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, T* c, int64_t c_stride, Scratch& scratch,
                 Product product = {}) {
  constexpr int64_t least_shared = 1 << 16;  // multiply-adds: some microseconds of one thread
  // So few columns fill no vector, and packing them takes longer than the product.
  if (n < 8 && a.column == 1 && b.row == 1 && k >= 8 * lanes<T>)
    return multiply_by_dots<T>(m, n, k, a, b, c, c_stride, product);
  if (m * n * (k < gemm_depth ? k : gemm_depth) < least_shared)
    return gemm_alone<T>(m, n, k, a, b, c, c_stride, product);
  gemm_in_panels<T>(m, n, k, a, b, c, c_stride, product,
                    [&](int64_t count, const auto& part) { share(scratch, count, part); });
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
