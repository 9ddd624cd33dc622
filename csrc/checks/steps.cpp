// Where the time of one large matrix goes: the steps of cpu/dense for the loss with its gradient, one thread, beside the
// peak of the processor's multiply-adds, which is measured too. docs/design/cpu_large.md has the command and a table.
//
//   steps_avx512 [rows columns [rounds]]
//
// Compiled once for each instruction set, as the kernels are.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "checks/steps.h"
#include "cpu/dense/polar.h"

namespace {

using namespace svdrd::SVDRD_ISA::dense;
using svdrd::SVDRD_ISA::DenseWorkspace;

void measure(int64_t m, int64_t n, int rounds) {
  const std::vector<float> x = photograph(m, n, 1), x_hat = photograph(m, n, 2);
  std::vector<float> p(x.size()), gradient(x.size());
  DenseWorkspace<float> workspace;
  Scratch& scratch = workspace.scratch;
  const double k = static_cast<double>(std::min(m, n)), cube = k * k * k;
  const double by_side = k * k * static_cast<double>(std::max(m, n));
  Steps steps;
  for (int round = 0; round < rounds; ++round) {
    float loss;
    const double both_sides = 2 * (by_side / 2 + cube * (2.0 / 3 + 2.0 / 3 + 1) + by_side);
    steps.time("loss and gradient, all", both_sides + 2 * by_side / 2 + 2 * by_side, false, [&] {
      svdrd::SVDRD_ISA::dense_basis_loss<float>(x_hat.data(), n, x.data(), n, m, n, 4 * 0x1p-23, 0, &loss,
                                                gradient.data(), nullptr, workspace);
    });
    ScratchScope scope(scratch);
    Decomposition d = begin_decomposition(x.data(), n, m, n);
    const int64_t q = d.q, stride = row_stride<double>(q);
    d.u_stride = row_stride<double>(d.p);
    d.v_stride = stride;
    d.s = scratch.take<double>(q);
    d.u = scratch.take<double>(q * d.u_stride);
    d.v = scratch.take<double>(q * stride);
    const Operand<double> tall = scaled_tall(x.data(), n, m, n, d, scratch);
    double* gram = scratch.take_zeros<double>(round_up(q, 8) * stride);
    double* vectors = scratch.take_zeros<double>(q * stride);
    double* values = scratch.take<double>(q);
    double* e = scratch.take_zeros<double>(q);
    double* tau = scratch.take_zeros<double>(q);
    int64_t* order = scratch.take<int64_t>(q);
    steps.time("Gram matrix", by_side / 2, false, [&] {
      gemm<double>(q, q, d.p, tall.transposed(), tall, gram, stride, scratch, {false, true});
    });
    steps.time("tridiagonalisation", cube * 2 / 3, false,
               [&] { tridiagonalise(gram, stride, q, values, e, tau, scratch); });
    steps.time("divide and conquer", cube * 2 / 3, false, [&] {
      tridiagonal_eigen(values, e, q, negligible_coupling(values, e, q), vectors, stride, Wanted::vectors, scratch);
    });
    steps.time("back-transformation", cube, false, [&] {
      apply_reflectors(vectors, stride, q, gram, stride, q - 1, q, 1, tau, false, scratch);
    });
    sort_descending(values, order, q, scratch);
    for (int64_t i = 0; i < q; ++i) copy(d.v + i * stride, vectors + order[i] * stride, q);
    steps.time("Y = A V", by_side, false, [&] {
      gemm<double>(q, d.p, q, plain(d.v, stride), tall.transposed(), d.u, d.u_stride, scratch);
    });
    for (int64_t i = 0; i < q; ++i) d.s[i] = __builtin_sqrt(dot(d.u + i * d.u_stride, d.u + i * d.u_stride, d.p));
    PolarFactors<float> factors{};
    steps.time("factors, corrected", 0, true, [&] { factors = polar_factors<float>(d, 4 * 0x1p-23, 0, scratch); });
    steps.time("P = U V^T, float", by_side, true,
               [&] { multiply_polar_factors(factors, m, n, p.data(), n, scratch); });
    steps.time("gradient, float", 3 * by_side + cube, true, [&] {
      polar_vjp<float>(p.data(), n, m, n, transposed(factors.left, factors.left_stride),
                       plain(factors.right, factors.right_stride), factors.s, factors.count, 0, factors.exponent, 1.0,
                       gradient.data(), n, scratch);
    });
  }
  std::printf("\n%ld x %ld\n", static_cast<long>(m), static_cast<long>(n));
  const double peak_now = peak<double>(), single_peak = peak<float>();
  std::printf("peak: %.1f of double, %.1f of float, 1e9 multiply-adds/s\n", 1e-9 * peak_now, 1e-9 * single_peak);
  steps.print(peak_now, single_peak);
}

}  // namespace

int main(int count, char** arguments) {
  if (count >= 3) {
    measure(std::atoi(arguments[1]), std::atoi(arguments[2]), count > 3 ? std::atoi(arguments[3]) : 25);
    return 0;
  }
  measure(64, 64, 400);
  measure(128, 128, 150);
  measure(256, 256, 50);
  measure(512, 768, 11);
}
