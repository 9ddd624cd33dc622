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

#if !defined(SVDRD_ONLY_FLOAT_SVD) && !defined(SVDRD_NO_NEWTON)  // the larger groups leave it to those of 8
constexpr void add_newton(KernelTable<float>& r) {
  r.newton_polar_factor = lanes_newton_polar_factor;
  r.newton_polar_factor_backward = lanes_newton_polar_factor_backward;
  r.newton_basis_loss = lanes_newton_basis_loss;
}
#endif

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
#elif defined(SVDRD_ONLY_NEWTON)
const KernelTable<float>& float_kernels() {
  static constexpr KernelTable<float> newton = [] {
    KernelTable<float> r{};
    r.group = lane_count;
    add_newton(r);
    return r;
  }();
  return newton;
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
#if !defined(SVDRD_NO_NEWTON)
    add_newton(r);
#endif
    r.gram_polar_factor = lanes_gram_polar_factor;
    r.rest_polar_factor = lanes_rest_polar_factor<float>;
    r.rest_polar_factor_backward = lanes_rest_polar_factor_backward<float>;
    r.rest_basis_loss = lanes_rest_basis_loss<float>;
    return r;
  }();
  return all;
}

const KernelTable<double>& double_kernels() {
  static constexpr KernelTable<double> all = [] {
    KernelTable<double> r = table<double>();
    r.basis_loss = lanes_basis_loss<double>;
    return r;
  }();
  return all;
}
#endif

}  // namespace SVDRD_ISA
}  // namespace svdrd
