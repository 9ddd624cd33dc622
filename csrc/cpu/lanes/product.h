// Matrix products in the lanes, blocked in registers.
//
// A Pack may take several registers. Each block is computed for one of them after the other, so that its sums fit the
// registers in either type.
#pragma once

#include "cpu/lanes/size.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// How many columns of a block of 4 rows are summed up at once: their sums, and what is multiplied, stay in registers.
constexpr int block_width = registers < 32 ? 2 : 4;

// A matrix whose rows, or those of its transpose, lie `stride` Packs apart.
template <typename T, bool is_transposed>
struct Operand {
  const Pack<T>* entries;
  int64_t stride;

  int64_t row_stride() const { return is_transposed ? 1 : stride; }
  int64_t column_stride() const { return is_transposed ? stride : 1; }

  // The same for a square matrix of which the compiler knows the size.
  template <int64_t known>
  Operand of() const {
    return {entries, known != 0 ? svdrd::SVDRD_ISA::row_stride(known) : stride};
  }
};

template <typename T>
using Plain = Operand<T, false>;
template <typename T>
using Transposed = Operand<T, true>;

template <typename T>
inline Plain<T> plain(const Pack<T>* a, int64_t columns) {
  return {a, row_stride(columns)};
}

template <typename T>
inline Transposed<T> transposed(const Pack<T>* a, int64_t columns) {
  return {a, row_stride(columns)};
}

// sum = (a b) of a block of entries with its first entry at (i, j), over k = begin .. end - 1 in this order whatever the
// block; with `lower` only where q <= p. `part` is the register of each Pack that is worked on.
template <bool lower, int block_rows, int block_columns, typename T, bool ta, bool tb>
[[gnu::always_inline]] inline void product_block(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t begin,
                                                 int64_t end, int64_t i, int64_t j, int part,
                                                 typename Pack<T>::Native (&sum)[block_rows][block_columns]) {
  using Native = typename Pack<T>::Native;
#pragma GCC unroll 4
  for (int p = 0; p < block_rows; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < block_columns; ++q) sum[p][q] = Native{};
  const Pack<T>* from_a = a.entries + i * a.row_stride();
  const Pack<T>* from_b = b.entries + j * b.column_stride();
  for (int64_t k = begin; k < end; ++k) {
    Native bk[block_columns];
#pragma GCC unroll 4
    for (int q = 0; q < block_columns; ++q) bk[q] = from_b[k * b.row_stride() + q * b.column_stride()].part[part];
#pragma GCC unroll 4
    for (int p = 0; p < block_rows; ++p) {
      Native ap = from_a[p * a.row_stride() + k * a.column_stride()].part[part];
      keep_in_register(ap);
#pragma GCC unroll 4
      for (int q = 0; q < block_columns; ++q)
        if (!lower || q <= p) sum[p][q] += ap * bk[q];
    }
  }
}

// store(i, j, part, sum) of every entry of a block.
template <bool lower, int block_rows, int block_columns, typename T, bool ta, bool tb, typename Store>
[[gnu::always_inline]] inline void store_block(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t count,
                                               int64_t i, int64_t j, int part, const Store& store) {
  typename Pack<T>::Native sum[block_rows][block_columns];
  product_block<lower, block_rows, block_columns>(a, b, 0, count, i, j, part, sum);
#pragma GCC unroll 4
  for (int p = 0; p < block_rows; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < block_columns; ++q)
      if (!lower || q <= p) store(i + p, j + q, part, sum[p][q]);
}

// store(i, j, part, (a b)_ij) for all entries of a rows x columns product with `count` terms in each sum.
template <typename T, bool ta, bool tb, typename Store>
[[gnu::always_inline]] inline void for_each_entry(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t rows,
                                                  int64_t count, int64_t columns, const Store& store) {
  // Not where the last loop ended: where the size is known, GCC would not see that nothing is left.
  const int64_t whole_rows = rows / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    const int64_t whole = columns / block_width * block_width;
    for (int64_t j = 0; j < whole; j += block_width)
      for (int part = 0; part < Pack<T>::parts; ++part)
        store_block<false, 4, block_width>(a, b, count, i, j, part, store);
    for (int64_t j = whole; j < columns; ++j)
      for (int part = 0; part < Pack<T>::parts; ++part) store_block<false, 4, 1>(a, b, count, i, j, part, store);
  }
  for (int64_t i = whole_rows; i < rows; ++i) {
    const int64_t whole = columns / 4 * 4;
    for (int64_t j = 0; j < whole; j += 4)
      for (int part = 0; part < Pack<T>::parts; ++part) store_block<false, 1, 4>(a, b, count, i, j, part, store);
    for (int64_t j = whole; j < columns; ++j)
      for (int part = 0; part < Pack<T>::parts; ++part) store_block<false, 1, 1>(a, b, count, i, j, part, store);
  }
}

// The same for the entries j <= i of an n x n product, n a multiple of 4.
template <typename T, bool ta, bool tb, typename Store>
[[gnu::always_inline]] inline void for_each_lower_entry(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t n,
                                                        int64_t count, const Store& store) {
  for (int64_t i = 0; i < n; i += 4) {
    for (int64_t j = 0; j < i; j += block_width)
      for (int part = 0; part < Pack<T>::parts; ++part)
        store_block<false, 4, block_width>(a, b, count, i, j, part, store);
    for (int part = 0; part < Pack<T>::parts; ++part) store_block<true, 4, 4>(a, b, count, i, i, part, store);
  }
}

// c (rows x columns) = a b with `count` terms in each sum.
template <typename T, bool ta, bool tb>
[[gnu::always_inline]] inline void product(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t rows,
                                           int64_t count, int64_t columns, Pack<T>* c) {
  const int64_t stride = row_stride(columns);
  for_each_entry(a, b, rows, count, columns,
                 [=](int64_t i, int64_t j, int part, const auto& sum) { c[i * stride + j].part[part] = sum; });
}

// c = alpha d + beta a b, n x n with n a multiple of 4, where a b is symmetric and so is d. c may be d.
template <typename T, bool ta, bool tb>
[[gnu::always_inline]] inline void add_symmetric_product(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t n,
                                                         const Pack<T>& alpha, const Pack<T>* d, const Pack<T>& beta,
                                                         Pack<T>* c) {
  const int64_t stride = row_stride(n);
  for_each_lower_entry(a, b, n, n, [=](int64_t i, int64_t j, int part, const auto& sum) {
    c[i * stride + j].part[part] = c[j * stride + i].part[part] =
        native_multiply_add<T>(alpha.part[part], d[i * stride + j].part[part], beta.part[part] * sum);
  });
}

// Two for kernels that have many products: these are calls, as such a kernel takes as long to compile as it has copies.
// Matrices of 4 and more rows and columns are not slower. `known`: the size of square matrices, or 0.

template <int64_t known, typename T, bool ta, bool tb>
[[gnu::noinline]] void called_product(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t rows, int64_t count,
                                      int64_t columns, Pack<T>* c) {
  product(a.template of<known>(), b.template of<known>(), known_or<known>(rows), known_or<known>(count),
          known_or<known>(columns), c);
}

// c = alpha d + beta a b, n x n with n a multiple of 4, where a b is antisymmetric and so is d. c may be d.
template <int64_t known, typename T, bool ta, bool tb>
[[gnu::noinline]] void add_antisymmetric_product(const Operand<T, ta>& a, const Operand<T, tb>& b, int64_t size,
                                                 const Pack<T>& alpha, const Pack<T>* d, const Pack<T>& beta,
                                                 Pack<T>* c) {
  const int64_t n = known_or<known>(size), stride = row_stride(n);
  const auto store = [=](int64_t i, int64_t j, int part, const auto& sum) {
    const auto value = native_multiply_add<T>(alpha.part[part], d[i * stride + j].part[part], beta.part[part] * sum);
    c[j * stride + i].part[part] = -value;
    c[i * stride + j].part[part] = i == j ? sum - sum : value;
  };
  for_each_lower_entry(a.template of<known>(), b.template of<known>(), n, n, store);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
