// Householder reflections H = I - tau v v^T, one by one and in blocks I - V T V^T (Schreiber and Van Loan, 1989), and the QR
// factorisation. A matrix is held by its rows, so what LAPACK does to columns is done here to contiguous rows.
#pragma once

#include "dense_gemm.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

constexpr int64_t reflector_block = 32;

// Sums of squares below this are not normalised numbers any more, and a reflection built on one would not be orthogonal.
// Matrices are scaled to entries near 1, so what is ignored is below 1e-140 of the largest.
constexpr double smallest_square = 1e-280;

// Makes row[first + 1 .. end) vanish: on return row holds v, with v[first] = 1 and 0 before it, and beta, the value left at
// `first`, is returned. tau = 0 and v = 0 where there is nothing to do.
inline double make_reflector(double* row, int64_t first, int64_t end, double& tau) {
  const double alpha = row[first];
  for (int64_t i = 0; i <= first; ++i) row[i] = 0;
  const int64_t start = round_down(first, lanes<double>);
  const double square = dot(row + start, row + start, end - start);
  if (!(square > smallest_square)) {
    for (int64_t i = first; i < end; ++i) row[i] = 0;
    tau = 0;
    return alpha;
  }
  const double norm = __builtin_sqrt(alpha * alpha + square);
  const double beta = alpha > 0 ? -norm : norm;
  tau = (beta - alpha) / beta;
  const double factor = 1 / (alpha - beta);
  for (int64_t i = start; i < end; ++i) row[i] *= factor;
  row[first] = 1;
  return beta;
}

// T of H_0 H_1 ... H_(count-1) = I - V T V^T from the reflectors in the rows of v; t is upper triangular, rows
// reflector_block apart.
inline void block_reflector(const double* v, int64_t stride, int64_t count, int64_t columns, const double* tau, double* t) {
  double products[reflector_block * reflector_block];
  gemm<double>(count, count, columns, plain(v, stride), transposed(v, stride), products, reflector_block, {1, false, true});
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t i = 0; i < count; ++i) t[i * reflector_block + j] = 0;
    for (int64_t i = 0; i < j; ++i) {
      double sum = 0;
      for (int64_t l = i; l < j; ++l) sum += t[i * reflector_block + l] * products[l * reflector_block + j];
      t[i * reflector_block + j] = -tau[j] * sum;
    }
    t[j * reflector_block + j] = tau[j];
  }
}

// Every row y of c becomes (I - V T V^T) y, or (I - V T V^T)^T y.
inline void apply_block_reflector(double* c, int64_t c_stride, int64_t rows, const double* v, int64_t v_stride,
                                  int64_t count, int64_t columns, const double* t, bool transpose, Scratch& scratch) {
  if (rows == 0) return;
  ScratchScope scope(scratch);
  const int64_t stride = row_stride<double>(columns);
  double* tv = scratch.take<double>(count * stride);
  double* products = scratch.take<double>(rows * reflector_block);
  // On rows, y^T <- y^T - (y^T V) (T^T V^T), T in place of T^T for the transposed block.
  const Operand<double> factor = plain(t, reflector_block);
  gemm<double>(count, columns, count, transpose ? factor : factor.transposed(), plain(v, v_stride), tv, stride);
  gemm<double>(rows, count, columns, plain(c, c_stride), transposed(v, v_stride), products, reflector_block);
  gemm<double>(rows, columns, count, plain(products, reflector_block), plain(tv, stride), c, c_stride, {-1, true, false});
}

// Every row y of c becomes H_0 H_1 ... H_(count-1) y. The reflector in row j of v starts at column j + shift; rows of c before
// `first_row(j)`, that is j + shift where `triangular`, are known to vanish from there on and are skipped.
inline void apply_reflectors(double* c, int64_t c_stride, int64_t rows, const double* v, int64_t v_stride, int64_t count,
                             int64_t columns, int64_t shift, const double* tau, bool triangular, Scratch& scratch) {
  double t[reflector_block * reflector_block];
  for (int64_t end = count; end > 0;) {
    const int64_t first = round_down(end - 1, reflector_block);
    const int64_t start = round_down(first + shift, 8);
    const double* block = v + first * v_stride + start;
    block_reflector(block, v_stride, end - first, columns - start, tau + first, t);
    const int64_t first_row = triangular ? first + shift : 0;
    apply_block_reflector(c + first_row * c_stride + start, c_stride, rows - first_row, block, v_stride, end - first,
                          columns - start, t, false, scratch);
    end = first;
  }
}

// QR factorisation of the matrix whose columns are the `count` rows of y, each of `length` >= count entries, by blocked
// Householder reflections. y is overwritten by the reflectors. r (count x count, r_stride apart, upper triangular) and q
// (count rows of `length`: the orthonormal columns of Q) must not overlap y. Q is orthonormal whatever the rank.
inline void qr(double* y, int64_t y_stride, int64_t count, int64_t length, double* r, int64_t r_stride, double* q,
               int64_t q_stride, Scratch& scratch) {
  ScratchScope scope(scratch);
  double* tau = scratch.take<double>(count);
  double t[reflector_block * reflector_block];
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < i; ++j) r[i * r_stride + j] = 0;
  for (int64_t first = 0; first < count; first += reflector_block) {
    const int64_t end = first + reflector_block < count ? first + reflector_block : count;
    for (int64_t j = first; j < end; ++j) {
      double* row = y + j * y_stride;
      for (int64_t i = 0; i < j; ++i) r[i * r_stride + j] = row[i];
      r[j * r_stride + j] = make_reflector(row, j, length, tau[j]);
      const int64_t start = round_down(j, lanes<double>);
      for (int64_t k = j + 1; k < end; ++k) {
        double* other = y + k * y_stride + start;
        add_scaled(other, -tau[j] * dot(row + start, other, length - start), row + start, length - start);
      }
    }
    const int64_t start = round_down(first, 8);
    const double* block = y + first * y_stride + start;
    block_reflector(block, y_stride, end - first, length - start, tau + first, t);
    apply_block_reflector(y + end * y_stride + start, y_stride, count - end, block, y_stride, end - first, length - start, t,
                          true, scratch);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < length; ++j) q[i * q_stride + j] = i == j ? 1 : 0;
  apply_reflectors(q, q_stride, count, y, y_stride, count, length, 0, tau, true, scratch);
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
