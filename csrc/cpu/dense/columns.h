// Tall matrices of few columns: which they are, and their columns taken apart and put together again.
#pragma once

#include "cpu/dense/vector.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// Whether m x n is tall with rows of less than 64 bytes. Of more columns, tall and wide matrices take the same time.
template <typename T>
inline bool narrow(int64_t m, int64_t n) {
  return n < m && n * static_cast<int64_t>(sizeof(T)) < 64;
}

// Rows of `few` entries that lie one after the other, to columns and from columns. `few` is known to the compiler, which
// makes shuffles of these loops: several times as fast as entry by entry.
template <int few, typename T, typename Source, typename Convert>
inline void rows_to_columns(const Source* __restrict from, int64_t rows, T* __restrict to, int64_t to_stride,
                            Convert convert) {
  for (int64_t i = 0; i < rows; ++i)
    for (int j = 0; j < few; ++j) to[j * to_stride + i] = convert(from[i * few + j]);
}

template <int few, typename T, typename Source, typename ColumnOf, typename Convert>
inline void columns_to_rows(ColumnOf column_of, int64_t rows, T* __restrict to, Convert convert) {
  const Source* columns[few];
  for (int j = 0; j < few; ++j) columns[j] = column_of(j);
  for (int64_t i = 0; i < rows; ++i)
    for (int j = 0; j < few; ++j) to[i * few + j] = convert(columns[j][i]);
}

// Calls with_known(integral_constant) for 1 to 4. Whether there was anything to call.
template <typename WithKnown>
inline bool if_few(int64_t count, WithKnown with_known) {
  if (count == 1) with_known(std::integral_constant<int, 1>());
  if (count == 2) with_known(std::integral_constant<int, 2>());
  if (count == 3) with_known(std::integral_constant<int, 3>());
  if (count == 4) with_known(std::integral_constant<int, 4>());
  return count >= 1 && count <= 4;
}

// to (length x count) from the columns, of which there are few.
template <typename T, typename Source, typename ColumnOf, typename Convert>
inline void from_columns(ColumnOf column_of, int64_t length, int64_t count, T* to, int64_t to_stride, Convert convert) {
  if (count == to_stride && if_few(count, [&](auto few) {
        columns_to_rows<decltype(few)::value, T, Source>(column_of, length, to, convert);
      }))
    return;
  constexpr int64_t part = 64;  // entries of each column, which the first-level cache holds until all are done
  for (int64_t first = 0; first < length; first += part)
    for (int64_t j = 0; j < count; ++j) {
      const Source* column = column_of(j);
      const int64_t end = first + part < length ? first + part : length;
#pragma GCC unroll 4
      for (int64_t i = first; i < end; ++i) to[i * to_stride + j] = convert(column[i]);
    }
}

// The columns, of which there are few, of `from` (length x count).
template <typename T, typename Source, typename Convert>
inline void to_columns(const Source* from, int64_t from_stride, int64_t length, int64_t count, T* to, int64_t to_stride,
                       Convert convert) {
  if (count == from_stride && if_few(count, [&](auto few) {
        rows_to_columns<decltype(few)::value>(from, length, to, to_stride, convert);
      }))
    return;
  constexpr int64_t part = 64;
  for (int64_t first = 0; first < length; first += part)
    for (int64_t j = 0; j < count; ++j) {
      const int64_t end = first + part < length ? first + part : length;
#pragma GCC unroll 4
      for (int64_t i = first; i < end; ++i) to[j * to_stride + i] = convert(from[i * from_stride + j]);
    }
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
