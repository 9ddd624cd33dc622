// The polar factor of well-conditioned float32 matrices in the lanes, with the factors of its derivative, by way of A^T A in
// double (docs/design/cpu_small.md has the counts and the errors).
//
// A^T A = Q T Q^T is tridiagonalised, T = B^T B, and B = X S W^T by the QR iteration of the SVD: V = Q W. Only the rotations
// of W are applied, and A^T A has half the entries of A: that is little more than half of an SVD. The squares lose digits:
// s_i u_i = A v_i are orthogonal but for E = U^T U - I, of order 2^-53 s_1^2 / (s_i s_j), which is corrected to first order.
// P = U V^T asks for no more: V need not be right, only orthonormal.
#pragma once

#include "cpu/lanes/factor.h"
#include "cpu/lanes/lanes.h"
#include "cpu/lanes/polar.h"
#include "cpu/lanes/product.h"
#include "cpu/lanes/transfer.h"
#include "cpu/lanes/tridiagonal.h"

namespace svdrd {
namespace SVDRD_ISA {

// The largest s_1 / s_k that is accepted: E is at most 2^-17 there, and its square below the rounding of a float.
constexpr double largest_gram_condition = 0x1p18;

// The same for a given rcond: whatever is accepted has s_k > rcond s_1, so nothing is dropped.
inline double gram_bound(double rcond) {
  return rcond * largest_gram_condition < 0.5 ? largest_gram_condition : 0.5 / rcond;
}

struct Gram {
  int64_t rows;
  int64_t columns;
  Pack<double>* a;       // rows x columns, scaled
  Pack<double>* square;  // the upper triangle of A^T A, then the reflectors
  Pack<double>* v;
  Pack<double>* product;  // A V
  Pack<double>* values;   // their lengths
  Pack<double>* counts;   // scratch
  BidiagonalFactors<double> bidiagonal;
  TridiagonalScratch<double> scratch;
  RotationBuffer<double> rotations;
  Pack<float>* correction;  // columns x columns
  Pack<float>* change;      // rows x columns
  Mask<double> accepted;

  Gram(Arena& arena, int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_) {
    a = arena.matrix<double>(rows, columns);
    square = arena.matrix<double>(columns, columns);
    v = arena.matrix<double>(columns, columns);
    product = arena.matrix<double>(rows, columns);
    for (Pack<double>** vector : {&values, &counts, &bidiagonal.diagonal, &bidiagonal.superdiagonal, &bidiagonal.tau_right,
                                  &scratch.v, &scratch.w, &scratch.y})
      *vector = arena.take<Pack<double>>(columns);
    rotations.left = arena.take<Shears<double>>(buffered_sweeps * columns);
    rotations.right = arena.take<Shears<double>>(buffered_sweeps * columns);
    correction = arena.matrix<float>(columns, columns);
    change = arena.matrix<float>(rows, columns);
  }
};

// u_j - sum_i E_ij s_i / (s_i + s_j) u_i in place of u_j: P = Y (Y^T Y)^(-1/2) V^T to first order in E. Pairs of which E is
// below the rounding of a float do not count, so that a lane's bits do not depend on what the others need.
inline void correct_columns(const Gram& w, const Pack<double>& smallest, const Pack<double>& largest, Pack<float>* u) {
  const int64_t n = w.columns, stride = row_stride(n);
  const Pack<double> limit = Pack<double>(0x1p-30) * largest * largest;
  int64_t first = 0;
  while (first < n && !any(w.accepted & (w.values[first] * smallest <= limit))) ++first;
  const int64_t count = n - first;
  if (count < 2) return;
  Pack<float>* block = u + first;
  const Plain<float> columns = {block, stride};
  const Transposed<float> rows = {block, stride};
  called_product<0>(rows, columns, count, w.rows, count, w.correction);
  const int64_t e_stride = row_stride(count);
  const Pack<double> zero(0.0);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < count; ++j) {
      Pack<float>& e = w.correction[i * e_stride + j];
      const Pack<double> si = w.values[first + i], sj = w.values[first + j];
      const Pack<double> weight = select(si * sj <= limit, si / (si + sj), zero);
      e = i == j ? Pack<float>(0.0f) : convert<float>(weight) * e;
    }
  called_product<0>(columns, plain(w.correction, count), w.rows, count, count, w.change);
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < count; ++j)
      block[i * stride + j] = block[i * stride + j] - w.change[i * e_stride + j];
}

// The upper triangle of A^T A.
[[gnu::always_inline]] inline void form_gram(const Gram& w, int64_t rows, int64_t n) {
  const int64_t stride = row_stride(n);
  // Whole blocks of 4 x 4, then the columns that are left.
  const int64_t whole = n / 4 * 4;
  for_each_lower_entry(
      transposed(w.a, n), plain(w.a, n), whole, rows,
      [&](int64_t i, int64_t j, int part, const auto& sum) { w.square[j * stride + i].part[part] = sum; });
  const Transposed<double> last = {w.a + whole, stride};
  for_each_entry(last, plain(w.a, n), n - whole, rows, n, [&](int64_t i, int64_t j, int part, const auto& sum) {
    w.square[j * stride + whole + i].part[part] = sum;
  });
}

// From w.a the factors and P in the accepted lanes, those where s_1 <= bound s_k. In the others they hold nothing of use.
// Not inlined: equal matrices must give equal bits everywhere.
[[gnu::noinline]] inline void gram_polar(Gram& w, double bound, const PolarFactors<float>& f, Pack<float>* p) {
  const DenormalsAreZero scope;
  const int64_t rows = w.rows, n = w.columns, stride = row_stride(n);
  Pack<double>*d = w.bidiagonal.diagonal, *e = w.bidiagonal.superdiagonal;
  form_gram(w, rows, n);
  tridiagonalise(w.square, n, w.scratch, d, e, w.bidiagonal.tau_right);
  factor_tridiagonal(d, e, n);
  set_identity(w.v, n, n);
  diagonalise(d, e, n, static_cast<Pack<double>*>(nullptr), w.v, iteration_tolerance<float, double>(), w.rotations);
  apply_right_reflectors(w.square, w.bidiagonal, w.v, n);
  called_product<0>(plain(w.a, n), plain(w.v, n), rows, n, n, w.product);

  const Pack<double> zero(0.0), one(1.0);
  for (int64_t j = 0; j < n; ++j) w.values[j] = zero;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j)
      w.values[j] = w.values[j] + w.product[i * stride + j] * w.product[i * stride + j];
  Pack<double> smallest, largest;
  for (int64_t j = 0; j < n; ++j) {
    w.values[j] = sqrt(w.values[j]);
    smallest = j == 0 ? w.values[0] : min(smallest, w.values[j]);
    largest = j == 0 ? w.values[0] : max(largest, w.values[j]);
    w.counts[j] = one / select(w.values[j] == zero, one, w.values[j]);
    f.s[j] = convert<float>(w.values[j]);
  }
  w.accepted = (zero < smallest) & (largest <= Pack<double>(bound) * smallest);
  if (!any(w.accepted)) return;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j)
      f.u[i * stride + j] = convert<float>(w.product[i * stride + j] * w.counts[j]);
  convert_matrix(w.v, n, n, f.v);
  correct_columns(w, smallest, largest, f.u);
  called_product<0>(plain(f.u, n), transposed(f.v, n), rows, n, n, p);
}

struct GramPolarLayout {
  Gram gram;
  PolarFactors<float> factors;
  Pack<float>* p;
  int32_t* rank;

  GramPolarLayout(Arena& arena, int64_t rows, int64_t columns)
      : gram(arena, rows, columns),
        factors(arena, rows, columns),
        p(arena.matrix<float>(rows, columns)),
        rank(arena.take<int32_t>(lane_count * columns)) {}
};

inline void lanes_gram_polar_factor(RangeSource& ranges, const float* a, int64_t m, int64_t n, double rcond, float* p,
                                    float* u, float* s, float* vh, ItemSink& rest) {
  const Shape shape{m, n};
  Groups groups(ranges);
  Workspace<GramPolarLayout> workspace(shape.rows(), shape.columns());
  GramPolarLayout& w = *workspace;
  Gram& gram = w.gram;
  const FactorBatch<float> factors{u, s, vh};
  for (int64_t first, end; groups.next(first, end);) {
    const Items items(first, end);
    load(place_matrices(a, items, shape), gram.rows, gram.columns, gram.columns, gram.a);
    const GroupScale scale = normalise(gram.a, gram.rows, gram.columns, 0.0);
    groups.following(first, end);
    prefetch<false>(place_matrices(a, first, end, shape), gram.rows, gram.columns);
    const Placement<float> result = place_matrices(p, items, shape);
    prefetch<true>(result, gram.rows, gram.columns);
    if (u != nullptr) {
      prefetch<true>(place_left(factors, items, shape), gram.rows, gram.columns);
      prefetch<true>(place_right(factors, items, shape), gram.columns, gram.columns);
    }
    gram_polar(gram, gram_bound(rcond), w.factors, w.p);
    bool wanted[lane_count];
    if (!part_items(gram.accepted, items, wanted, rest)) continue;
    store(w.p, gram.rows, gram.columns, gram.columns, nullptr, only(result, wanted));
    if (u != nullptr)
      store_factors(FactorPacks<float, double>{gram.rows, gram.columns, w.factors.u, w.factors.v, gram.values, gram.counts},
                    scale, true, w.rank, items, shape, factors, wanted);
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
