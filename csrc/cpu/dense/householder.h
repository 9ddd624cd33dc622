// Householder reflections H = I - tau v v^T, one by one and in blocks I - V T V^T (Schreiber and Van Loan, 1989), and
// the QR factorisation. A matrix is held by its rows, so what LAPACK does to columns is done here to contiguous rows.
#pragma once

#include "cpu/dense/gemm.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// The most reflectors in a block.
constexpr int64_t reflector_block = 24;

// The products of a row with them, in whole vectors of any type.
constexpr int64_t reflector_products = round_up(reflector_block, 16);

// How many make a block for so many columns. All of a block reach as far as its longest, and T costs as much as the
// reflection of so many rows: both weigh most where there are few rows. 12 and 24 fill the panels of products of doubles.
inline int64_t reflectors_together(int64_t columns) {
  constexpr bool wide = lanes<double> == 8;
  if (columns <= (wide ? 128 : 64)) return 8;
  return columns > 256 ? reflector_block : wide ? 16 : 12;
}

// So many rows at a time are reflected. They stay in the second-level cache while all the blocks pass over them.
constexpr int64_t part_rows = 128;

// Sums of squares below this are not normalised numbers any more, and a reflection built on one would not be
// orthogonal. Matrices are scaled to entries near 1, so what is ignored is below 1e-15 (float32) or 1e-140 of the
// largest.
template <typename T>
constexpr T smallest_square = sizeof(T) == 8 ? T(1e-280) : T(1e-30);

// Makes row[first + 1 .. end) vanish: on return row holds v, with v[first] = 1 and 0 before it, and beta, the value
// left at `first`, is returned. tau = 0 and v = 0 where there is nothing to do.
template <typename T>
inline T make_reflector(T* row, int64_t first, int64_t end, T& tau) {
  const T alpha = row[first];
  for (int64_t i = 0; i <= first; ++i) row[i] = 0;
  const int64_t start = round_down(first, lanes<T>);
  const T square = dot(row + start, row + start, end - start);
  if (!(square > smallest_square<T>)) {
    for (int64_t i = first; i < end; ++i) row[i] = 0;
    tau = 0;
    return alpha;
  }
  const T norm = square_root(alpha * alpha + square);
  const T beta = alpha > 0 ? -norm : norm;
  tau = (beta - alpha) / beta;
  const T factor = 1 / (alpha - beta);
  for (int64_t i = start; i < end; ++i) row[i] *= factor;
  row[first] = 1;
  return beta;
}

// -T^T of H_0 H_1 ... H_(count-1) = I - V T V^T from the reflectors in the rows of v, which the columns of v_packed
// hold, too; lower triangular, rows reflector_block apart.
template <typename T>
inline void block_reflector(const T* v, int64_t stride, const T* v_packed, int64_t packed_stride, int64_t count,
                            int64_t columns, const T* tau, T* t) {
  T products[reflector_block * reflector_block];
  gemm_alone<T>(count, count, columns, plain(v, stride), plain(v_packed, packed_stride), products, reflector_block,
                {false, true});
  for (int64_t j = 0; j < count; ++j) {
    T* row = t + j * reflector_block;
    for (int64_t i = 0; i < reflector_block; ++i) row[i] = 0;
    for (int64_t l = 0; l < j; ++l)
      add_scaled(row, -tau[j] * products[l * reflector_block + j], t + l * reflector_block, round_up(l + 1, 8));
    row[j] = -tau[j];
  }
}

// A block of reflectors as rows y take it: y^T <- y^T + (y^T V) (-T^T V^T), or with T in place of T^T for the
// transposed block.
template <typename T>
struct BlockReflector {
  const T* v;  // V^T
  T* tv;       // -T^T V^T or -T V^T
  T* packed;   // V
  int64_t v_stride;
  int64_t tv_stride;
  int64_t count;
  int64_t columns;

  int64_t packed_stride() const { return round_up(count, lanes<T>); }

  void prepare(const T* tau, bool transpose) const {
    T t[reflector_block * reflector_block];
    pack_panel(v, dense::transposed(v, v_stride), columns, count, packed, packed_stride());
    block_reflector<T>(v, v_stride, packed, packed_stride(), count, columns, tau, t);
    const Operand<T> factor = plain(static_cast<const T*>(t), reflector_block);
    gemm_alone<T>(count, columns, count, transpose ? factor.transposed() : factor, plain(v, v_stride), tv, tv_stride);
  }

  // products: rows x reflector_products. Of `packed` whole vectors are multiplied, zeros with them.
  void apply(T* c, int64_t c_stride, int64_t rows, T* products) const {
    gemm_alone<T>(rows, packed_stride(), columns, plain(static_cast<const T*>(c), c_stride),
                  plain(static_cast<const T*>(packed), packed_stride()), products, reflector_products);
    gemm_alone<T>(rows, columns, count, plain(static_cast<const T*>(products), reflector_products),
                  plain(static_cast<const T*>(tv), tv_stride), c, c_stride, {true});
  }
};

// Every row y of c becomes H_0 H_1 ... H_(count-1) y. The reflector in row j of v starts at column j + shift. Where
// `triangular`, c comes as the unit matrix, whose rows before j + shift that reflector cannot change.
template <typename T>
inline void apply_reflectors(T* c, int64_t c_stride, int64_t rows, const T* v, int64_t v_stride, int64_t count,
                             int64_t columns, int64_t shift, const T* tau, bool triangular, Scratch& scratch) {
  ScratchScope scope(scratch);
  const int64_t together = reflectors_together(columns), blocks = (count + together - 1) / together;
  const int64_t tv_stride = row_stride<T>(columns);
  T* tv = scratch.take<T>(count * tv_stride);
  T* packed = scratch.take<T>(blocks * round_up(together, lanes<T>) * columns);
  T* products = scratch.take<T>(rows * reflector_products);
  const auto block = [&](int64_t index) {
    const int64_t first = index * together, start = round_down(first + shift, lanes<T>);
    const int64_t size = count - first < together ? count - first : together;
    return BlockReflector<T>{v + first * v_stride + start, tv + first * tv_stride + start,
                             packed + index * round_up(together, lanes<T>) * columns, v_stride, tv_stride, size,
                             columns - start};
  };
  share(scratch, blocks, [&](int64_t index) { block(index).prepare(tau + index * together, false); });
  share(scratch, (rows + part_rows - 1) / part_rows, [&](int64_t part) {
    const int64_t end = (part + 1) * part_rows < rows ? (part + 1) * part_rows : rows;
    for (int64_t index = blocks - 1; index >= 0; --index) {
      const int64_t begins = triangular ? index * together + shift : 0;
      const int64_t first = begins > part * part_rows ? begins : part * part_rows;
      if (first >= end) continue;
      const BlockReflector<T> reflector = block(index);
      reflector.apply(c + first * c_stride + (columns - reflector.columns), c_stride, end - first,
                      products + first * reflector_products);
    }
  });
}

// QR factorisation of the matrix whose columns are the `count` rows of y, each of `length` >= count entries, by blocked
// Householder reflections. y is overwritten by the reflectors. r (count x count, r_stride apart, upper triangular) and
// q (count rows of `length`: the orthonormal columns of Q) must not overlap y. Q is orthonormal whatever the rank.
template <typename T>
inline void qr(T* y, int64_t y_stride, int64_t count, int64_t length, T* r, int64_t r_stride, T* q, int64_t q_stride,
               Scratch& scratch) {
  ScratchScope scope(scratch);
  const int64_t tv_stride = row_stride<T>(length);
  T* tau = scratch.take<T>(count);
  T* tv = scratch.take<T>(reflector_block * tv_stride);
  T* packed = scratch.take<T>(round_up(reflector_block, lanes<T>) * length);
  T* products = scratch.take<T>(count * reflector_products);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < i; ++j) r[i * r_stride + j] = 0;
  for (int64_t first = 0; first < count; first += reflector_block) {
    const int64_t end = first + reflector_block < count ? first + reflector_block : count;
    for (int64_t j = first; j < end; ++j) {
      T* row = y + j * y_stride;
      for (int64_t i = 0; i < j; ++i) r[i * r_stride + j] = row[i];
      r[j * r_stride + j] = make_reflector(row, j, length, tau[j]);
      const int64_t start = round_down(j, lanes<T>);
      for (int64_t k = j + 1; k < end; ++k) {
        T* other = y + k * y_stride + start;
        add_scaled(other, -tau[j] * dot(row + start, other, length - start), row + start, length - start);
      }
    }
    if (end == count) break;
    const int64_t start = round_down(first, lanes<T>);
    const BlockReflector<T> block{
        y + first * y_stride + start, tv, packed, y_stride, tv_stride, end - first, length - start};
    block.prepare(tau + first, true);
    share_ranges(scratch, count - end, part_rows, [&](int64_t from, int64_t to) {
      block.apply(y + (end + from) * y_stride + start, y_stride, to - from, products + from * reflector_products);
    });
  }
  if (count < 8) {  // too few to be worth blocks
    for (int64_t i = 0; i < count; ++i) {
      T* to = q + i * q_stride;
      const T* last = y + i * y_stride;
      for (int64_t j = 0; j < length; ++j) to[j] = -tau[i] * last[j];
      to[i] += 1;
      for (int64_t j = i - 1; j >= 0; --j) {
        const T* row = y + j * y_stride;
        add_scaled(to, -tau[j] * dot(row, to, length), row, length);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < length; ++j) q[i * q_stride + j] = i == j ? 1 : 0;
  apply_reflectors(q, q_stride, count, y, y_stride, count, length, 0, tau, true, scratch);
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
