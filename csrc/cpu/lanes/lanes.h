// svd() and polar_factor() of cpu/svdrd.h, with the polar factor's backward, on a range of the batch, lane_count matrices at a
// time.
//
// The lanes hold each matrix or its transpose, whichever has at least as many rows as columns. svd() works in the type
// of its input. The polar factor of float32 matrices is factored in double: its rank decision compares with 4 eps * s_1
// of float32, and must not see rounding of its own.
#pragma once

#include "cpu/kernels.h"
#include "cpu/lanes/factor.h"
#include "cpu/lanes/polar.h"
#include "cpu/lanes/transfer.h"

namespace svdrd {
namespace SVDRD_ISA {

struct Shape {
  int64_t m;
  int64_t n;
  bool wide() const { return m < n; }
  int64_t rows() const { return m < n ? n : m; }
  int64_t columns() const { return m < n ? m : n; }
};

// The ranges cut into groups of lane_count items.
class Groups {
 public:
  explicit Groups(RangeSource& ranges) : ranges_(ranges) {}

  bool next(int64_t& first, int64_t& end) {
    if (at_ >= range_end_ && !ranges_.next(at_, range_end_)) return false;
    first = at_;
    end = at_ = end_of_group();
    return true;
  }

  // The group after the one that next() gave, of the same range; empty where that was the last.
  void following(int64_t& first, int64_t& end) const {
    first = at_;
    end = end_of_group();
  }

 private:
  int64_t end_of_group() const { return range_end_ - at_ < lane_count ? range_end_ : at_ + lane_count; }

  RangeSource& ranges_;
  int64_t at_ = 0;
  int64_t range_end_ = 0;
};

// The matrices of a group, by their numbers in the batch.
struct Items {
  int64_t number[lane_count];
  int count = 0;

  Items() = default;
  Items(int64_t first, int64_t end) {
    for (int64_t item = first; item < end; ++item) add(item);
  }
  Items(const int64_t* numbers, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) add(numbers[i]);
  }
  void add(int64_t item) { number[count++] = item; }
  void add(const Items& items) {
    for (int l = 0; l < items.count; ++l) add(items.number[l]);
  }
  void give(ItemSink& sink) const {
    if (count > 0) sink.add(number, count);
  }
};

// Names the items of a group to `rest` that are not accepted. wanted: lane_count flags of those that are. Returns whether
// there is one.
inline bool part_items(const Mask<double>& accepted, const Items& items, bool* wanted, ItemSink& rest) {
  const Pack<double> flags = select(accepted, Pack<double>(1.0), Pack<double>(0.0));
  Items refused;
  for (int l = 0; l < items.count; ++l) {
    wanted[l] = flags.lane(l) != 0;
    if (!wanted[l]) refused.add(items.number[l]);
  }
  refused.give(rest);
  return refused.count < items.count;
}

// Items of a batch that lie `item_size` numbers from one another.
template <typename T>
Placement<T> place(T* batch, const Items& items, int64_t item_size, int64_t row_stride, int64_t column_stride) {
  Placement<T> r;
  r.row_stride = row_stride;
  r.column_stride = column_stride;
  r.count = items.count;
  for (int l = 0; l < r.count; ++l) r.base[l] = batch + items.number[l] * item_size;
  return r;
}

// m x n matrices, seen the way the lanes hold them.
template <typename T>
Placement<T> place_matrices(T* batch, const Items& items, const Shape& shape) {
  return shape.wide() ? place(batch, items, shape.m * shape.n, int64_t{1}, shape.n)
                      : place(batch, items, shape.m * shape.n, shape.n, int64_t{1});
}
template <typename T>
Placement<T> place_matrices(T* batch, int64_t first, int64_t end, const Shape& shape) {
  return place_matrices(batch, Items(first, end), shape);
}

// The factors of a batch: three tensors, or parts of one whose items are `saved_size` numbers long.
template <typename T>
struct FactorBatch {
  T* u;
  T* s;
  T* vh;
  int64_t saved_size = 0;

  int64_t item_size(int64_t size) const { return saved_size == 0 ? size : saved_size; }
};

template <typename T>
FactorBatch<T> saved_factors(T* saved, const SavedLayout& layout) {
  return {saved + layout.left, saved + layout.values, saved + layout.right, layout.size};
}

// Of A^T = U S V^T, U is what the caller calls V, lying transposed as Vh.
template <typename T>
Placement<T> place_left(const FactorBatch<T>& to, const Items& items, const Shape& shape) {
  const int64_t k = shape.columns();
  return shape.wide() ? place(to.vh, items, to.item_size(k * shape.n), int64_t{1}, shape.n)
                      : place(to.u, items, to.item_size(shape.m * k), k, int64_t{1});
}
template <typename T>
Placement<T> place_left(T* u, T* vh, int64_t first, int64_t end, const Shape& shape) {
  return place_left(FactorBatch<T>{u, nullptr, vh}, Items(first, end), shape);
}

template <typename T>
Placement<T> place_right(const FactorBatch<T>& to, const Items& items, const Shape& shape) {
  const int64_t k = shape.columns();
  return shape.wide() ? place(to.u, items, to.item_size(shape.m * k), k, int64_t{1})
                      : place(to.vh, items, to.item_size(k * shape.n), int64_t{1}, shape.n);
}
template <typename T>
Placement<T> place_right(T* u, T* vh, int64_t first, int64_t end, const Shape& shape) {
  return place_right(FactorBatch<T>{u, nullptr, vh}, Items(first, end), shape);
}

template <typename T>
Placement<T> place_values(const FactorBatch<T>& to, const Items& items, const Shape& shape) {
  return place(to.s, items, to.item_size(shape.columns()), int64_t{1}, int64_t{1});
}

// The factors of a group, values in no order. counts: columns Packs of scratch.
template <typename V, typename W>
struct FactorPacks {
  int64_t rows;
  int64_t columns;
  const Pack<V>* u;
  const Pack<V>* v;
  const Pack<W>* values;
  Pack<W>* counts;
};

template <typename W>
FactorPacks<W, W> packs_of(const Factorisation<W>& f) {
  return {f.rows, f.columns, f.u, f.v, f.values(), f.bidiagonal.left_products};
}

// Writes u, s and vh of one group in descending order, NaN where the input was not finite. u and vh may be null. `wanted`:
// of which lanes, unless it is null.
template <typename T, typename V, typename W>
void store_factors(const FactorPacks<V, W>& f, const GroupScale& scale, bool keep_in_range, int32_t* rank,
                   const Items& items, const Shape& shape, const FactorBatch<T>& to, const bool* wanted = nullptr) {
  const int64_t k = shape.columns();
  const bool vectors = to.u != nullptr;
  const auto chosen = [&](const Placement<T>& all) { return wanted == nullptr ? all : only(all, wanted); };
  Placement<T> left{}, right{};
  const Placement<T> values = chosen(place_values(to, items, shape));
  rank_descending(f.values, k, f.counts, rank);
  if (vectors) {
    left = chosen(place_left(to, items, shape));
    right = chosen(place_right(to, items, shape));
    store(f.u, f.rows, f.columns, f.columns, rank, left);
    store(f.v, f.columns, f.columns, f.columns, rank, right);
  }
  const W* entries = reinterpret_cast<const W*>(f.values);
  for (int l = 0; l < values.count; ++l) {
    if (values.base[l] == nullptr) continue;
    const int half = scale.exponent[l] / 2;
    const double first_factor = power_of_two<double>(half),
                 second_factor = power_of_two<double>(scale.exponent[l] - half);
    for (int64_t j = 0; j < k; ++j) {
      const W scaled = entries[j * lane_count + l];
      T value = static_cast<T>((static_cast<double>(scaled) * first_factor) * second_factor);
      if (keep_in_range && scaled > 0) {
        // What is written as zero is read as dropped, and 1/Inf as no gradient at all.
        if (value == T(0)) value = std::numeric_limits<T>::denorm_min();
        if (value > std::numeric_limits<T>::max()) value = std::numeric_limits<T>::max();
      }
      values.base[l][rank[l * k + j]] = value;
    }
    if (!scale.finite[l]) {
      if (vectors) store_nan(f.rows, f.columns, l, left);
      if (vectors) store_nan(f.columns, f.columns, l, right);
      store_nan(int64_t{1}, k, l, values);
    }
  }
}

template <typename T>
struct SvdLayout {
  Factorisation<T> f;
  int32_t* rank;

  SvdLayout(Arena& arena, int64_t rows, int64_t columns)
      : f(arena, rows, columns), rank(arena.take<int32_t>(lane_count * columns)) {}
};

template <typename T>
void lanes_svd(RangeSource& ranges, const T* a, int64_t m, int64_t n, T* u, T* s, T* vh) {
  const Shape shape{m, n};
  Groups groups(ranges);
  Workspace<SvdLayout<T>> workspace(shape.rows(), shape.columns());
  SvdLayout<T>& w = *workspace;
  for (int64_t first, end; groups.next(first, end);) {
    load(place_matrices(a, first, end, shape), w.f.rows, w.f.columns, w.f.columns, w.f.a);
    const GroupScale scale = normalise(w.f.a, w.f.rows, w.f.columns, 0.0);
    int64_t next_first, next_end;
    groups.following(next_first, next_end);
    prefetch<false>(place_matrices(a, next_first, next_end, shape), w.f.rows, w.f.columns);
    if (u != nullptr) {
      prefetch<true>(place_left(u, vh, first, end, shape), w.f.rows, w.f.columns);
      prefetch<true>(place_right(u, vh, first, end, shape), w.f.columns, w.f.columns);
    }
    factorise(w.f, iteration_tolerance<T, T>(), T(0), u != nullptr);
    store_factors(packs_of(w.f), scale, false, w.rank, Items(first, end), shape, FactorBatch<T>{u, s, vh});
  }
}

template <typename T>
struct PolarLayout {
  Factorisation<double> f;
  EmptyLines empty;
  Pack<double>* unrounded;
  Pack<T>* p;
  int32_t* rank;

  PolarLayout(Arena& arena, int64_t rows, int64_t columns)
      : f(arena, rows, columns),
        empty(arena, rows, columns),
        unrounded(arena.matrix<double>(rows, columns)),
        p(arena.matrix<T>(rows, columns)),
        rank(arena.take<int32_t>(lane_count * columns)) {}
};

template <typename T>
void svd_polar_of_items(PolarLayout<T>& w, const Items& items, const Shape& shape, const T* a, double rcond,
                        double smooth, T* p, const FactorBatch<T>& factors) {
  load(place_matrices(a, items, shape), w.f.rows, w.f.columns, w.f.columns, w.f.a);
  const GroupScale scale = normalise(w.f.a, w.f.rows, w.f.columns, smooth);
  if constexpr (sizeof(T) == 8) w.empty.take_from(w.f.a);
  factorise(w.f, iteration_tolerance<T, double>(), dropped_values(rcond, smooth));
  if constexpr (sizeof(T) == 8)
    if (smooth == 0 && may_be_noise(w.f, rcond)) {
      load(place_matrices(a, items, shape), w.f.rows, w.f.columns, w.f.columns, w.unrounded);
      normalise(w.unrounded, w.f.rows, w.f.columns, smooth);
      lower_noise(w.f, w.unrounded);
    }
  polar_from_factors(w.f, rcond, smooth, scale, w.unrounded, w.empty, w.p);
  const Placement<T> result = place_matrices(p, items, shape);
  store(w.p, w.f.rows, w.f.columns, w.f.columns, nullptr, result);
  for (int l = 0; l < result.count; ++l)
    if (!scale.finite[l]) store_nan(w.f.rows, w.f.columns, l, result);
  if (factors.u != nullptr) store_factors(packs_of(w.f), scale, true, w.rank, items, shape, factors);
}

template <typename T>
void lanes_polar_factor(RangeSource& ranges, const T* a, int64_t m, int64_t n, double rcond, double smooth, T* p, T* u,
                        T* s, T* vh) {
  const Shape shape{m, n};
  Groups groups(ranges);
  Workspace<PolarLayout<T>> workspace(shape.rows(), shape.columns());
  for (int64_t first, end; groups.next(first, end);)
    svd_polar_of_items(*workspace, Items(first, end), shape, a, rcond, smooth, p, FactorBatch<T>{u, s, vh});
}

template <typename T>
void lanes_rest_polar_factor(RangeSource& ranges, const int64_t* numbers, const T* a, int64_t m, int64_t n,
                             double rcond, T* p, T* u, T* s, T* vh, T* saved) {
  const Shape shape{m, n};
  const SavedLayout layout(m, n);
  const FactorBatch<T> factors = saved == nullptr ? FactorBatch<T>{u, s, vh} : saved_factors(saved, layout);
  Groups groups(ranges);
  Workspace<PolarLayout<T>> workspace(shape.rows(), shape.columns());
  for (int64_t first, end; groups.next(first, end);) {
    const Items items(numbers, first, end);
    svd_polar_of_items(*workspace, items, shape, a, rcond, 0.0, p, factors);
    if (saved != nullptr)
      for (int l = 0; l < items.count; ++l) {
        T* item = saved + items.number[l] * layout.size;
        item[layout.kind] = SavedLayout::factors;
        item[layout.scale] = item[layout.condition] = T(0);
      }
  }
}

template <typename T>
struct BackwardLayout {
  Pack<T>* upstream;
  Pack<T>* grad;
  PolarFactors<T> factors;
  BackwardScratch<T> scratch;

  BackwardLayout(Arena& arena, int64_t rows, int64_t columns)
      : upstream(arena.matrix<T>(rows, columns)),
        grad(arena.matrix<T>(rows, columns)),
        factors(arena, rows, columns),
        scratch(arena, rows, columns) {}
};

template <typename T>
void svd_polar_backward_of_items(BackwardLayout<T>& w, const Items& items, const Shape& shape, const T* grad,
                                 const FactorBatch<const T>& factors, double smooth, T* grad_a) {
  const int64_t rows = shape.rows(), columns = shape.columns();
  const Pack<T> zero(T(0)), floor(smallest_divisor<T>());
  load(place_matrices(grad, items, shape), rows, columns, columns, w.upstream);
  load(place_left(factors, items, shape), rows, columns, columns, w.factors.u);
  load(place_right(factors, items, shape), columns, columns, columns, w.factors.v);
  load(place_values(factors, items, shape), 1, columns, columns, w.factors.s);
  const GroupScale value_scale = normalise(w.factors.s, 1, columns, smooth);
  const GroupScale upstream_scale = normalise(w.upstream, rows, columns, 0.0);
  for (int64_t j = 0; j < columns; ++j)
    w.factors.s[j] = select(w.factors.s[j] == zero, zero, max(w.factors.s[j], floor));
  polar_backward(w.upstream, w.factors, scaled_smooth<T>(smooth, value_scale), smooth > 0, rows, columns, w.scratch,
                 w.grad);
  int exponent[lane_count];
  for (int l = 0; l < lane_count; ++l) exponent[l] = upstream_scale.exponent[l] - value_scale.exponent[l];
  scale_and_clamp(w.grad, rows, columns, exponent, 1);
  const Placement<T> result = place_matrices(grad_a, items, shape);
  store(w.grad, rows, columns, columns, nullptr, result);
  for (int l = 0; l < result.count; ++l)
    if (!value_scale.finite[l] || !upstream_scale.finite[l]) store_nan(rows, columns, l, result);
}

template <typename T>
void lanes_polar_factor_backward(RangeSource& ranges, const T* grad, const T* u, const T* s, const T* vh, int64_t m,
                                 int64_t n, double smooth, T* grad_a) {
  const Shape shape{m, n};
  const int64_t rows = shape.rows(), columns = shape.columns();
  const FactorBatch<const T> factors{u, s, vh};
  Groups groups(ranges);
  Workspace<BackwardLayout<T>> workspace(rows, columns);
  for (int64_t first, end; groups.next(first, end);) {
    const Items items(first, end);
    groups.following(first, end);
    const Items next(first, end);
    prefetch<false>(place_matrices(grad, next, shape), rows, columns);
    prefetch<false>(place_left(factors, next, shape), rows, columns);
    prefetch<false>(place_right(factors, next, shape), columns, columns);
    prefetch<true>(place_matrices(grad_a, items, shape), rows, columns);
    svd_polar_backward_of_items(*workspace, items, shape, grad, factors, smooth, grad_a);
  }
}

template <typename T>
void lanes_rest_polar_factor_backward(RangeSource& ranges, const int64_t* numbers, const T* grad, const T* saved,
                                      int64_t m, int64_t n, T* grad_a) {
  const Shape shape{m, n};
  const FactorBatch<const T> factors = saved_factors(saved, SavedLayout(m, n));
  Groups groups(ranges);
  Workspace<BackwardLayout<T>> workspace(shape.rows(), shape.columns());
  for (int64_t first, end; groups.next(first, end);)
    svd_polar_backward_of_items(*workspace, Items(numbers, first, end), shape, grad, factors, 0.0, grad_a);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
