// Compiled once for each instruction set, with SVDRD_ISA naming the namespace (avx512, avx2 or baseline) and the
// compiler's options naming the instructions. Everything here and in the headers lives in that namespace, so that the
// linker never takes one instruction set's copy of a template for another's.
#include "kernels.h"

#include "dense_polar.h"
#include "dense_svd_backward.h"
#include "lanes.h"
#include "lanes_loss.h"
#include "lanes_svd_backward.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace {

// What a group of matrices in the lanes does faster than one matrix at a time, and what of it fits the second-level
// cache (docs/performance.md). The choice must not look at the batch: the same matrix has to give the same bits however
// many stand beside it.
bool in_lanes(int64_t m, int64_t n) { return (m < n ? m : n) <= 32 && m * n <= 1024; }

// The derivative of svd() is little more than products, which the lanes do faster only for the smallest matrices.
bool svd_backward_in_lanes(int64_t m, int64_t n) { return (m < n ? m : n) <= 12 && m * n <= 256; }

template <typename T>
int64_t group(int64_t m, int64_t n) {
  return in_lanes(m, n) ? lane_count : 1;
}

template <typename T>
void svd(RangeSource& ranges, const T* a, int64_t m, int64_t n, T* u, T* s, T* vh) {
  if (in_lanes(m, n)) return lanes_svd(ranges, a, m, n, u, s, vh);
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      dense_svd(a + i * m * n, m, n, u + i * m * k, s + i * k, vh + i * k * n, workspace);
}

template <typename T>
void svd_backward(RangeSource& ranges, const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s,
                  const T* vh, int64_t m, int64_t n, T* grad_a) {
  if (svd_backward_in_lanes(m, n)) return lanes_svd_backward(ranges, grad_u, grad_s, grad_vh, u, s, vh, m, n, grad_a);
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      dense_svd_backward<T>(grad_u == nullptr ? nullptr : grad_u + i * m * k,
                            grad_s == nullptr ? nullptr : grad_s + i * k,
                            grad_vh == nullptr ? nullptr : grad_vh + i * k * n, u + i * m * k, s + i * k,
                            vh + i * k * n, m, n, grad_a + i * m * n, workspace);
}

template <typename T>
void polar_factor(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s,
                  T* vh) {
  if (in_lanes(m, n)) return lanes_polar_factor(ranges, a, m, n, rcond, smooth, p, u, s, vh);
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i) {
      if (u == nullptr) {
        dense_polar_factor<T>(a + i * m * n, m, n, rcond, smooth, p + i * m * n, nullptr, nullptr, nullptr, workspace);
      } else {
        dense_polar_factor(a + i * m * n, m, n, rcond, smooth, p + i * m * n, u + i * m * k, s + i * k, vh + i * k * n,
                           workspace);
      }
    }
}

template <typename T>
void polar_factor_backward(RangeSource& ranges, const T* grad, const T* u, const T* s, const T* vh, int64_t m,
                           int64_t n, double smooth, T* grad_a) {
  if (in_lanes(m, n)) return lanes_polar_factor_backward(ranges, grad, u, s, vh, m, n, smooth, grad_a);
  const int64_t k = m < n ? m : n;
  DenseWorkspace<T> workspace;
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i)
      dense_polar_factor_backward(grad + i * m * n, u + i * m * k, s + i * k, vh + i * k * n, m, n, smooth,
                                  grad_a + i * m * n, workspace);
}

template <typename T>
void basis_loss(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss, T* grad_x_hat,
                T* grad_x) {
  if (in_lanes(problem.block_height, problem.block_width))
    return lanes_basis_loss(ranges, problem, LossTensors<T>{x_hat, x, loss, grad_x_hat, grad_x});
  DenseWorkspace<T> workspace;
  for (int64_t begin, end; ranges.next(begin, end);)
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = block_offset(problem, i);
      dense_basis_loss(x_hat + at, problem.width, x + at, problem.width, problem.block_height, problem.block_width,
                       problem.rcond, problem.smooth, loss + i, grad_x_hat == nullptr ? nullptr : grad_x_hat + at,
                       grad_x == nullptr ? nullptr : grad_x + at, workspace);
    }
}

template <typename T>
constexpr KernelTable<T> table = {&group<T>,        &svd<T>,
                                  &svd_backward<T>, &polar_factor<T>,
                                  &polar_factor_backward<T>, &basis_loss<T>};

}  // namespace

const KernelTable<float>& float_kernels() { return table<float>; }

const KernelTable<double>& double_kernels() { return table<double>; }

}  // namespace SVDRD_ISA
}  // namespace svdrd
