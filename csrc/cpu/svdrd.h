// The C++ interface of svdrd's CPU kernels: raw pointers, row-major contiguous batches, no torch.
//
// Every function treats each matrix on its own: the result of one item has the same bits whatever else is in the batch
// and however many threads run. An item that holds NaN or Inf gives NaN for that item alone. `threads` is the largest
// number of threads to use; nothing is thrown for numerical reasons.
#pragma once

#include <cstdint>

namespace svdrd {

// Thin SVD, A = U diag(S) Vh, k = min(m, n).
// a: batch x m x n, u: batch x m x k, s: batch x k (descending, >= 0), vh: batch x k x n. U and V are orthonormal
// also where singular values vanish. u and vh both null: the values alone, which may differ from those beside the vectors
// by rounding.
template <typename T>
void svd(const T* a, int64_t batch, int64_t m, int64_t n, T* u, T* s, T* vh, int threads);

// The vector-Jacobian product of svd: formula (2) of docs/design/gradients.md. grad_u, grad_s, grad_vh: as u, s, vh,
// which are as svd() wrote them; null stands for zero. grad_a: batch x m x n. Finite for finite gradients: what overflows
// T is clamped.
template <typename T>
void svd_backward(const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s, const T* vh, int64_t batch,
                  int64_t m, int64_t n, T* grad_a, int threads);

// Polar factor: smooth == 0: P = sum over s_i > rcond * s_1 of u_i v_i^T; smooth > 0: P = U diag(s / sqrt(s^2 + smooth^2)) Vh.
// p: batch x m x n. u, s, vh: the factors that the backward needs, as of svd(), with s_i = 0 written where s_i was dropped
// (smooth == 0); all three null where no backward will come, which must not change a bit of p.
template <typename T>
void polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u, T* s, T* vh,
                  int threads);

// The vector-Jacobian product of polar_factor (equal to its Jacobian-vector product): grad_a = U Z Vh with the Z of
// docs/design/gradients.md. u, s, vh as polar_factor wrote them. Finite for finite grad: what overflows T is clamped.
template <typename T>
void polar_factor_backward(const T* grad, const T* u, const T* s, const T* vh, int64_t batch, int64_t m, int64_t n,
                           double smooth, T* grad_a, int threads);

// The same with what this module's own backward needs: `saved` holds saved_size(m, n) numbers of each matrix, in what form
// depends on the matrix (SavedLayout of cpu/kernels.h). p has the bits that polar_factor gives it. In the backward p is what
// the forward wrote; where `saved` is zeros, nothing was saved, and it starts again from a.
int64_t saved_size(int64_t m, int64_t n);

template <typename T>
void saving_polar_factor(const T* a, int64_t batch, int64_t m, int64_t n, double rcond, double smooth, T* p, T* saved,
                         int threads);

template <typename T>
void saved_polar_factor_backward(const T* grad, const T* a, const T* p, const T* saved, int64_t batch, int64_t m,
                                 int64_t n, double rcond, double smooth, T* grad_a, int threads);

// The basis loss of every block_height x block_width block of two stacks of images, and its gradients, in one pass.
// x_hat, x: batch x height x width; the blocks divide height and width.
// loss: batch x (height / block_height) x (width / block_width), each the mean of |P(x_hat) - P(x)| over the block's entries.
// grad_x_hat, grad_x: batch x height x width, the derivative of each block's own loss (not of a sum or mean over blocks);
// null for a side whose gradient is not wanted, which then costs nothing.
template <typename T>
void basis_loss(const T* x_hat, const T* x, int64_t batch, int64_t height, int64_t width, int64_t block_height,
                int64_t block_width, double rcond, double smooth, T* loss, T* grad_x_hat, T* grad_x, int threads);

// The instruction set the kernels run with on this processor: "avx512", "avx2" or "baseline" (SVDRD_ISA in the environment
// names a lower one).
const char* instruction_set();

}  // namespace svdrd
