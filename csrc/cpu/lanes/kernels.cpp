// Matrices in the SIMD lanes: compiled once for each instruction set and number of lanes, SVDRD_LANES, with SVDRD_ISA
// naming the namespace of the two and the compiler's options naming the instructions. Everything here and in the headers
// lives in that namespace, so that the linker never takes one compilation's copy of a template for another's.
//
// A lane computes the same bits in every one of them: tests/ops/test_contract.py compares batches of all sizes.
#include "cpu/kernels.h"

#include "cpu/lanes/gram.h"
#include "cpu/lanes/lanes.h"
#include "cpu/lanes/loss.h"
#include "cpu/lanes/svd_backward.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace {

template <typename T>
void basis_loss(RangeSource& ranges, const T* x_hat, const T* x, const LossProblem& problem, T* loss, T* grad_x_hat,
                T* grad_x) {
  lanes_svd_basis_loss(ranges, nullptr, problem, LossTensors<T>{x_hat, x, loss, grad_x_hat, grad_x});
}

[[maybe_unused]] void newton_basis_loss(RangeSource& ranges, const float* x_hat, const float* x, const LossProblem& problem, float* loss,
                       float* grad_x_hat, float* grad_x, ItemSink& rest) {
  lanes_newton_basis_loss(ranges, problem, LossTensors<float>{x_hat, x, loss, grad_x_hat, grad_x}, rest);
}

[[maybe_unused]] void rest_basis_loss(RangeSource& ranges, const int64_t* items, const float* x_hat, const float* x,
                     const LossProblem& problem, float* loss, float* grad_x_hat, float* grad_x) {
  lanes_svd_basis_loss(ranges, items, problem, LossTensors<float>{x_hat, x, loss, grad_x_hat, grad_x});
}

}  // namespace

#if defined(SVDRD_ONLY_FLOAT_SVD)
const KernelTable<float>& float_kernels() {
  static constexpr KernelTable<float> svd = [] {
    KernelTable<float> r{};
    r.group = lane_count;
    r.svd = lanes_svd<float>;
    return r;
  }();
  return svd;
}
#elif defined(SVDRD_ONLY_FLOAT_LOSS)
const KernelTable<float>& float_kernels() {
  static constexpr KernelTable<float> loss = [] {
    KernelTable<float> r{};
    r.group = lane_count;
    r.newton_polar_factor = lanes_newton_polar_factor;
    r.newton_polar_factor_backward = lanes_newton_polar_factor_backward;
    r.newton_basis_loss = newton_basis_loss;
    return r;
  }();
  return loss;
}
#else
namespace {

template <typename T>
constexpr KernelTable<T> table() {
  KernelTable<T> r{};
  r.group = lane_count;
  r.svd = lanes_svd<T>;
  r.svd_backward = lanes_svd_backward<T>;
  r.polar_factor = lanes_polar_factor<T>;
  r.polar_factor_backward = lanes_polar_factor_backward<T>;
  return r;
}

}  // namespace

const KernelTable<float>& float_kernels() {
  static constexpr KernelTable<float> all = [] {
    KernelTable<float> r = table<float>();
    r.newton_polar_factor = lanes_newton_polar_factor;
    r.newton_polar_factor_backward = lanes_newton_polar_factor_backward;
    r.gram_polar_factor = lanes_gram_polar_factor;
    r.rest_polar_factor = lanes_rest_polar_factor<float>;
    r.rest_polar_factor_backward = lanes_rest_polar_factor_backward<float>;
    r.newton_basis_loss = newton_basis_loss;
    r.rest_basis_loss = rest_basis_loss;
    return r;
  }();
  return all;
}

const KernelTable<double>& double_kernels() {
  static constexpr KernelTable<double> all = [] {
    KernelTable<double> r = table<double>();
    r.basis_loss = basis_loss<double>;
    return r;
  }();
  return all;
}
#endif

}  // namespace SVDRD_ISA
}  // namespace svdrd
