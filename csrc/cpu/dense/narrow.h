// Polar factor, basis loss and derivatives of tall matrices of few columns. Each is computed for the transpose, because
// the algorithms work along rows and a row of few entries fills no vector. svd() reads such a matrix by columns instead.
#pragma once

#include "cpu/dense/polar.h"
#include "cpu/dense/svd_backward.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// The contiguous transpose of a matrix of few columns; null of null.
template <typename T>
inline const T* take_transposed(const T* a, int64_t stride, int64_t rows, int64_t columns, Scratch& scratch) {
  if (a == nullptr) return nullptr;
  T* result = scratch.take<T>(rows * columns);
  to_columns(a, stride, rows, columns, result, rows, [](T x) { return x; });
  return result;
}

// The matrix of few columns whose contiguous transpose is `columns`.
template <typename T>
inline void write_transposed(const T* columns, int64_t m, int64_t n, T* to, int64_t stride) {
  from_columns<T, T>([=](int64_t j) { return columns + j * m; }, m, n, to, stride, [](T x) { return x; });
}

template <typename T>
inline T* take_unless_null(const T* wanted, int64_t count, Scratch& scratch) {
  return wanted == nullptr ? nullptr : scratch.take<T>(count);
}

}  // namespace dense

// dense_svd_backward of m x n with few columns.
template <typename T>
inline void narrow_svd_backward(const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s, const T* vh,
                                int64_t m, int64_t n, T* grad_a, DenseWorkspace<T>& workspace) {
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);
  T* derivative = scratch.template take<T>(m * n);
  dense_svd_backward(dense::take_transposed(grad_vh, n, n, n, scratch), grad_s,
                     dense::take_transposed(grad_u, n, m, n, scratch), dense::take_transposed(vh, n, n, n, scratch), s,
                     dense::take_transposed(u, n, m, n, scratch), n, m, derivative, workspace);
  dense::write_transposed(derivative, m, n, grad_a, n);
}

// dense_polar_factor of m x n with few columns.
template <typename T>
inline void narrow_polar_factor(const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s, T* vh,
                                DenseWorkspace<T>& workspace) {
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);
  const T* wide = dense::take_transposed(a, n, m, n, scratch);
  T* factor = scratch.template take<T>(m * n);
  T* v = dense::take_unless_null(u, n * n, scratch);
  T* u_transposed = dense::take_unless_null(u, n * m, scratch);
  dense_polar_factor(wide, n, m, rcond, smooth, factor, v, s, u_transposed, workspace);
  dense::write_transposed(factor, m, n, p, n);
  if (u == nullptr) return;
  dense::write_transposed(u_transposed, m, n, u, n);
  dense::write_transposed(v, n, n, vh, n);
}

// dense_polar_factor_backward of m x n with few columns.
template <typename T>
inline void narrow_polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t m, int64_t n,
                                         double smooth, T* grad_a, DenseWorkspace<T>& workspace) {
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);
  T* derivative = scratch.template take<T>(m * n);
  dense_polar_factor_backward(dense::take_transposed(grad, n, m, n, scratch),
                              dense::take_transposed(vh, n, n, n, scratch), s,
                              dense::take_transposed(u, n, m, n, scratch), n, m, smooth, derivative, workspace);
  dense::write_transposed(derivative, m, n, grad_a, n);
}

// dense_basis_loss of a pair of m x n with few columns.
template <typename T>
inline void narrow_basis_loss(const T* x_hat, int64_t stride_hat, const T* x, int64_t stride, int64_t m, int64_t n,
                              double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x,
                              DenseWorkspace<T>& workspace) {
  dense::Scratch& scratch = workspace.scratch;
  dense::ScratchScope scope(scratch);
  const T* wide_hat = dense::take_transposed(x_hat, stride_hat, m, n, scratch);
  const T* wide = dense::take_transposed(x, stride, m, n, scratch);
  T* by_hat = dense::take_unless_null(grad_x_hat, m * n, scratch);
  T* by_x = dense::take_unless_null(grad_x, m * n, scratch);
  dense_basis_loss(wide_hat, m, wide, m, n, m, rcond, smooth, loss, by_hat, by_x, workspace);
  if (grad_x_hat != nullptr) dense::write_transposed(by_hat, m, n, grad_x_hat, stride_hat);
  if (grad_x != nullptr) dense::write_transposed(by_x, m, n, grad_x, stride);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
