// The polar factor of well-conditioned float32 matrices in the lanes, with the factors of its derivative, by way of A^T A in
// double (docs/design/cpu_small.md has the counts and the errors).
//
// A^T A = Q T Q^T is tridiagonalised, T = B^T B, and B = X S W^T by the QR iteration of the SVD: V = Q W. Only the rotations
// of W are applied, and A^T A has half the entries of A: that is little more than half of an SVD. The squares lose digits:
// s_i u_i = A v_i are orthogonal but for E = U^T U - I, of order 2^-53 s_1^2 / (s_i s_j), which is corrected to first order.
// P = U V^T asks for no more: V need not be right, only orthonormal.
#pragma once

#include <optional>

#include "cpu/lanes/factor.h"
#include "cpu/lanes/lanes.h"
#include "cpu/lanes/polar.h"
#include "cpu/lanes/product.h"
#include "cpu/lanes/transfer.h"
#include "cpu/lanes/tridiagonal.h"

namespace svdrd {
namespace SVDRD_ISA {

// The largest s_1 norm(A^-1), Frobenius, that is accepted: s_1 / s_k is no larger, so E is at most 2^-17, and its square
// below the rounding of a float.
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

// Whether s_1 norm(A^-1) <= bound, Frobenius, or a little more, where T = B^T B, from d, e of B: the longest column of B is
// taken for s_1. `row` is the squared length of row j of B^-1, which is (I_j - e_j row_{j+1}) / d_j.
inline Mask<double> well_conditioned(const Pack<double>* d, const Pack<double>* e, int64_t n, double bound) {
  const Pack<double> one(1.0);
  Pack<double> longest(0.0), row(0.0), rows(0.0);
  for (int64_t j = n - 1; j >= 0; --j) {
    const Pack<double> square = d[j] * d[j];
    row = (j + 1 == n ? one : multiply_add(e[j] * e[j], row, one)) / square;
    rows = rows + row;
    longest = max(longest, j == 0 ? square : multiply_add(e[j - 1], e[j - 1], square));
  }
  // An entry of A is 1/2 or more, so `longest` is at least 1 / (4 n), but in lanes without a matrix, which are zero.
  return (longest * rows <= Pack<double>(bound * bound)) & (Pack<double>(0x1p-12) <= longest);
}

// Tridiagonalises w.a^T w.a. Accepted are then the lanes that are well_conditioned: what has to be refused is known before
// most of the work is done. Not inlined, as what follows: equal matrices must give equal bits everywhere.
[[gnu::noinline]] inline void begin_gram_polar(Gram& w, double bound) {
  const DenormalsAreZero scope;
  Pack<double>*d = w.bidiagonal.diagonal, *e = w.bidiagonal.superdiagonal;
  form_gram(w, w.rows, w.columns);
  tridiagonalise(w.square, w.columns, w.scratch, d, e, w.bidiagonal.tau_right);
  factor_tridiagonal(d, e, w.columns);
  w.accepted = well_conditioned(d, e, w.columns, bound);
}

// The factors and P in the accepted lanes, which are those of begin_gram_polar where s_1 <= bound s_k for certain. In the
// others they hold nothing of use.
[[gnu::noinline]] inline void finish_gram_polar(Gram& w, double bound, const PolarFactors<float>& f, Pack<float>* p) {
  const DenormalsAreZero scope;
  const int64_t rows = w.rows, n = w.columns, stride = row_stride(n);
  Pack<double>*d = w.bidiagonal.diagonal, *e = w.bidiagonal.superdiagonal;
  set_identity(w.v, n, n);
  diagonalise(d, e, n, static_cast<Pack<double>*>(nullptr), w.v, iteration_tolerance<float, double>(), 0.0,
              w.rotations);
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
  w.accepted = w.accepted & (zero < smallest) & (largest <= Pack<double>(bound) * smallest);
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

// One thread's part of a batch. What the Gram matrix does not take is factored by the SVD as soon as it fills a group.
class GramPolar {
 public:
  GramPolar(const Shape& shape, const float* a, double rcond, float* p, const FactorBatch<float>& factors)
      : shape_(shape), a_(a), rcond_(rcond), p_(p), factors_(factors), workspace_(shape.rows(), shape.columns()) {}

  // Begins a group, before that of `following`. Returns those that are not refused by now.
  Items begin(const Items& items, const Items& following) {
    Gram& gram = (*workspace_).gram;
    load(place_matrices(a_, items, shape_), gram.rows, gram.columns, gram.columns, gram.a);
    scale_ = normalise(gram.a, gram.rows, gram.columns, 0.0);
    prefetch<false>(place_matrices(a_, following, shape_), gram.rows, gram.columns);
    prefetch<true>(place_matrices(p_, items, shape_), gram.rows, gram.columns);
    if (factors_.u != nullptr) {
      prefetch<true>(place_left(factors_, items, shape_), gram.rows, gram.columns);
      prefetch<true>(place_right(factors_, items, shape_), gram.columns, gram.columns);
    }
    begin_gram_polar(gram, gram_bound(rcond_));
    for (bool& flag : wanted_) flag = true;
    return part(items);
  }

  // Computes what begin() returned of these, its last items.
  void finish(const Items& items) {
    GramPolarLayout& w = *workspace_;
    const Gram& gram = w.gram;
    finish_gram_polar(w.gram, gram_bound(rcond_), w.factors, w.p);
    if (part(items).count == 0) return;
    store(w.p, gram.rows, gram.columns, gram.columns, nullptr, only(place_matrices(p_, items, shape_), wanted_));
    if (factors_.u == nullptr) return;
    const FactorPacks<float, double> factors{gram.rows, gram.columns, w.factors.u, w.factors.v, gram.values, gram.counts};
    store_factors(factors, scale_, true, w.rank, items, shape_, factors_, wanted_);
  }

  // What waits for the SVD.
  const Items& refused() const { return refused_; }

 private:
  // Those that are accepted; each of the others is refused once.
  Items part(const Items& items) {
    const Pack<double> flags = select((*workspace_).gram.accepted, Pack<double>(1.0), Pack<double>(0.0));
    Items accepted;
    for (int l = 0; l < items.count; ++l)
      if (flags.lane(l) != 0) {
        accepted.add(items.number[l]);
      } else if (wanted_[l]) {
        wanted_[l] = false;
        refuse(items.number[l]);
      }
    return accepted;
  }

  void refuse(int64_t item) {
    refused_.add(item);
    if (refused_.count < lane_count) return;
    if (!svd_) svd_.emplace(shape_.rows(), shape_.columns());
    svd_polar_of_items(**svd_, refused_, shape_, a_, rcond_, 0.0, p_, factors_);
    refused_.count = 0;
  }

  const Shape shape_;
  const float* const a_;
  const double rcond_;
  float* const p_;
  const FactorBatch<float> factors_;
  Workspace<GramPolarLayout> workspace_;
  GroupScale scale_;
  bool wanted_[lane_count];
  Items refused_;
  std::optional<Workspace<PolarLayout<float>>> svd_;
};

inline void lanes_gram_polar_factor(RangeSource& ranges, const float* a, int64_t m, int64_t n, double rcond, float* p,
                                    float* u, float* s, float* vh, ItemSink& rest) {
  GramPolar polar(Shape{m, n}, a, rcond, p, FactorBatch<float>{u, s, vh});
  Groups groups(ranges);
  // Where more than a fourth of a group is refused, the others wait until they fill one. `begun`: those that wait are the
  // accepted ones of `items`, and what begin() made of them is still there.
  Items items, waiting;
  bool begun = false;
  const auto compute_waiting = [&] {
    polar.begin(waiting, Items());
    polar.finish(waiting);
    waiting.count = 0;
  };
  for (int64_t first, end; groups.next(first, end);) {
    items = Items(first, end);
    groups.following(first, end);
    const Items accepted = polar.begin(items, Items(first, end));
    begun = false;
    if (4 * accepted.count >= 3 * items.count) {
      polar.finish(items);
    } else if (accepted.count > 0) {
      begun = waiting.count == 0;
      if (waiting.count + accepted.count > lane_count) compute_waiting();
      waiting.add(accepted);
    }
  }
  if (begun)
    polar.finish(items);
  else if (waiting.count > 0)
    compute_waiting();
  polar.refused().give(rest);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
