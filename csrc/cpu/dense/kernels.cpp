// One matrix at a time: compiled once for each instruction set, as cpu/lanes/kernels.cpp is.
#include "cpu/kernels.h"

#include "cpu/blocks.h"
#include "cpu/dense/narrow.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace {

template <typename T>
void svd(RangeSource& ranges, const T* a, int64_t m, int64_t n, T* u, T* s, T* vh) {
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  workspace.scratch.team = ranges.team();
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      dense_svd(a + i * m * n, m, n, u == nullptr ? nullptr : u + i * m * k, s + i * k,
                vh == nullptr ? nullptr : vh + i * k * n, workspace);
}

template <typename T>
void svd_backward(RangeSource& ranges, const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s,
                  const T* vh, int64_t m, int64_t n, T* grad_a) {
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  workspace.scratch.team = ranges.team();
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      (dense::narrow<T>(m, n) ? narrow_svd_backward<T> : dense_svd_backward<T>)(
          grad_u == nullptr ? nullptr : grad_u + i * m * k, grad_s == nullptr ? nullptr : grad_s + i * k,
          grad_vh == nullptr ? nullptr : grad_vh + i * k * n, u + i * m * k, s + i * k, vh + i * k * n, m, n,
          grad_a + i * m * n, workspace);
}

template <typename T>
void polar_factor(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s,
                  T* vh) {
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  workspace.scratch.team = ranges.team();
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      (dense::narrow<T>(m, n) ? narrow_polar_factor<T> : dense_polar_factor<T>)(
          a + i * m * n, m, n, rcond, smooth, p + i * m * n, u == nullptr ? nullptr : u + i * m * k,
          s == nullptr ? nullptr : s + i * k, vh == nullptr ? nullptr : vh + i * k * n, workspace);
}

template <typename T>
void polar_factor_backward(RangeSource& ranges, const T* grad, const T* u, const T* s, const T* vh, int64_t m,
                           int64_t n, double smooth, T* grad_a) {
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  workspace.scratch.team = ranges.team();
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      (dense::narrow<T>(m, n) ? narrow_polar_factor_backward<T> : dense_polar_factor_backward<T>)(
          grad + i * m * n, u + i * m * k, s + i * k, vh + i * k * n, m, n, smooth, grad_a + i * m * n, workspace);
}

template <typename T>
void basis_loss(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss, T* grad_x_hat,
                T* grad_x) {
  DenseWorkspace<T> workspace;
  workspace.scratch.team = ranges.team();
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = block_offset(problem, i);
      (dense::narrow<T>(problem.block_height, problem.block_width) ? narrow_basis_loss<T> : dense_basis_loss<T>)(
          x_hat + at, problem.width, x + at, problem.width, problem.block_height, problem.block_width, problem.rcond,
          problem.smooth, loss + i, grad_x_hat == nullptr ? nullptr : grad_x_hat + at,
          grad_x == nullptr ? nullptr : grad_x + at, workspace);
    }
}

template <typename T>
constexpr KernelTable<T> table = [] {
  KernelTable<T> r{};
  r.group = 1;
  r.svd = svd<T>;
  r.svd_backward = svd_backward<T>;
  r.polar_factor = polar_factor<T>;
  r.polar_factor_backward = polar_factor_backward<T>;
  r.basis_loss = basis_loss<T>;
  return r;
}();

}  // namespace

const KernelTable<float>& float_kernels() { return table<float>; }

const KernelTable<double>& double_kernels() { return table<double>; }

}  // namespace SVDRD_ISA
}  // namespace svdrd
