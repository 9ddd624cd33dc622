// What cpu/dense/kernels.cpp and cpu/lanes/kernels.cpp, compiled once for each instruction set, offer to svdrd.cpp.
#pragma once

#include <cstdint>

#include "strict_math.h"

namespace svdrd {

struct LossProblem {
  int64_t height;
  int64_t width;
  int64_t block_height;
  int64_t block_width;
  double rcond;
  double smooth;
};

class Team;

// Hands out the batch in ranges of whole groups, to any number of threads.
class RangeSource {
 public:
  virtual bool next(int64_t& begin, int64_t& end) = 0;

  // The threads that share the work on each matrix; null where they share the matrices.
  virtual Team* team() = 0;

 protected:
  ~RangeSource() = default;
};

// Takes items out of the batch, by their numbers, from any number of threads.
class ItemSink {
 public:
  virtual void add(const int64_t* items, int count) = 0;

 protected:
  ~ItemSink() = default;
};

// What the polar factor of one m x n matrix leaves for its backward, `size` numbers of which `kind` says what they are:
// - factors: u, s and vh as svd() writes them, of which s is 0 where a value was dropped;
// - iterates: of Newton's iteration, with k = min(m, n): from `left` on a k x k matrix with the lower triangle of H_0^-1
//   rounded to T, and above its diagonal what the rounding took from the entries below; from `values` on what it took from
//   the diagonal; then the first scale and the condition of H_0. Zeros in between.
// - nothing: the backward starts again from the matrix.
struct SavedLayout {
  static constexpr int nothing = 0, factors = 1, iterates = 2;

  int64_t left, values, right, kind, scale, condition, size;

  SavedLayout(int64_t m, int64_t n) {
    const int64_t k = m < n ? m : n;
    left = 0;
    values = m * k;
    right = values + k;
    kind = right + k * n;
    scale = kind + 1;
    condition = kind + 2;
    size = kind + 3;
  }
};

// One type's kernels; null where one is not compiled in that form. Every thread that takes part calls the function once;
// it works on the ranges it gets until there are no more, with a workspace of its own. std::bad_alloc leaves what was not
// yet done.
template <typename T>
struct KernelTable {
  int64_t group;  // how many matrices are worked on at once
  void (*svd)(RangeSource& ranges, const T* a, int64_t m, int64_t n, T* u, T* s, T* vh);
  void (*svd_backward)(RangeSource& ranges, const T* grad_u, const T* grad_s, const T* grad_vh, const T* u, const T* s,
                       const T* vh, int64_t m, int64_t n, T* grad_a);
  void (*polar_factor)(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u,
                       T* s, T* vh);
  void (*polar_factor_backward)(RangeSource& ranges, const T* grad, const T* u, const T* s, const T* vh, int64_t m,
                                int64_t n, double smooth, T* grad_a);
  // The matrices that Newton's iteration takes, with what it saves (null: nothing is wanted); the others go to `rest`.
  void (*newton_polar_factor)(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, T* p, T* saved,
                              ItemSink& rest);
  void (*newton_polar_factor_backward)(RangeSource& ranges, const T* grad, const T* p, const T* saved, int64_t m,
                                       int64_t n, T* grad_a, ItemSink& rest);
  // As polar_factor, by way of the Gram matrix, where that keeps enough digits. The others it factors, too, but those that
  // do not fill a group, which go to `rest`.
  void (*gram_polar_factor)(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, T* p, T* u, T* s,
                            T* vh, ItemSink& rest);
  // By the SVD, for the matrices items[i] with i of the ranges: p, and the factors, or what is `saved` of them.
  void (*rest_polar_factor)(RangeSource& ranges, const int64_t* items, const T* a, int64_t m, int64_t n, double rcond,
                            T* p, T* u, T* s, T* vh, T* saved);
  void (*rest_polar_factor_backward)(RangeSource& ranges, const int64_t* items, const T* grad, const T* saved,
                                     int64_t m, int64_t n, T* grad_a);
  void (*basis_loss)(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss,
                     T* grad_x_hat, T* grad_x);
  // The pairs that Newton's iteration takes; the others go to `rest`.
  void (*newton_basis_loss)(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss,
                            T* grad_x_hat, T* grad_x, ItemSink& rest);
  // By the SVD, for the pairs items[i] with i of the ranges.
  void (*rest_basis_loss)(RangeSource& ranges, const int64_t* items, const T* x_hat, const T* x,
                          const LossProblem& problem, T* loss, T* grad_x_hat, T* grad_x);
};

// `name` is the namespace of one compilation: an instruction set, with `_x` and the number of lanes for those that work
// on more or fewer matrices at once than the set's registers hold floats.
#define SVDRD_KERNELS(name)                     \
  namespace name {                              \
  const KernelTable<float>& float_kernels();    \
  const KernelTable<double>& double_kernels();  \
  }
SVDRD_KERNELS(avx512)
SVDRD_KERNELS(avx512_x4)
SVDRD_KERNELS(avx512_x8)
SVDRD_KERNELS(avx512_x16)
SVDRD_KERNELS(avx512_x32)
SVDRD_KERNELS(avx2)
SVDRD_KERNELS(avx2_x4)
SVDRD_KERNELS(avx2_x8)
SVDRD_KERNELS(avx2_x16)
SVDRD_KERNELS(baseline)
SVDRD_KERNELS(baseline_x4)
#undef SVDRD_KERNELS

}  // namespace svdrd
