// Matrix products in the lanes, blocked in registers.
#pragma once

#include "simd.h"

namespace svdrd {
namespace SVDRD_ISA {

template <typename T>
struct Operand {
  const Pack<T>* entries;
  int64_t row_stride;
  int64_t column_stride;
};

template <typename T>
inline Operand<T> plain(const Pack<T>* a, int64_t columns) {
  return {a, row_stride(columns), 1};
}

template <typename T>
inline Operand<T> transposed(const Pack<T>* a, int64_t columns) {
  return {a, 1, row_stride(columns)};
}

template <typename T, int block_rows, int block_columns>
inline void product_block(const Operand<T>& a, const Operand<T>& b, int64_t inner, int64_t i, int64_t j, Pack<T>* c,
                          int64_t c_stride) {
  Pack<T> sum[block_rows][block_columns];
  for (int p = 0; p < block_rows; ++p)
    for (int q = 0; q < block_columns; ++q) sum[p][q] = Pack<T>(T(0));
  const Pack<T>* from_a = a.entries + i * a.row_stride;
  const Pack<T>* from_b = b.entries + j * b.column_stride;
  for (int64_t k = 0; k < inner; ++k) {
    Pack<T> bk[block_columns];
    for (int q = 0; q < block_columns; ++q) bk[q] = from_b[k * b.row_stride + q * b.column_stride];
    for (int p = 0; p < block_rows; ++p) {
      const Pack<T> ap = from_a[p * a.row_stride + k * a.column_stride];
      for (int q = 0; q < block_columns; ++q) sum[p][q] = sum[p][q] + ap * bk[q];
    }
  }
  for (int p = 0; p < block_rows; ++p)
    for (int q = 0; q < block_columns; ++q) c[(i + p) * c_stride + j + q] = sum[p][q];
}

// c (rows x columns) = a b with `inner` terms in each sum, summed in order whatever the block.
template <typename T>
void product(const Operand<T>& a, const Operand<T>& b, int64_t rows, int64_t inner, int64_t columns, Pack<T>* c) {
  constexpr int block_rows = 4 / Pack<T>::parts;
  constexpr int block_columns = 4;
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows;) {
    const bool full = i + block_rows <= rows;
    int64_t j = 0;
    if (full) {
      for (; j + block_columns <= columns; j += block_columns)
        product_block<T, block_rows, block_columns>(a, b, inner, i, j, c, stride);
      for (; j < columns; ++j) product_block<T, block_rows, 1>(a, b, inner, i, j, c, stride);
      i += block_rows;
    } else {
      for (; j + block_columns <= columns; j += block_columns)
        product_block<T, 1, block_columns>(a, b, inner, i, j, c, stride);
      for (; j < columns; ++j) product_block<T, 1, 1>(a, b, inner, i, j, c, stride);
      ++i;
    }
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
