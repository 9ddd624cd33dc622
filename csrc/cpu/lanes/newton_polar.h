// polar_factor() of cpu/svdrd.h and its backward by Newton's iteration, on a range of the batch, lane_count matrices at a
// time: those that are well conditioned. The others are named to the caller, who has them factored by the SVD. Which way a
// matrix goes depends on the matrix alone.
//
// Of the iterates the forward saves H_0^-1 alone, to twice the digits of a float. The backward forms the others from it:
// H_{k+1} = (g_k H_k + H_k^-1 / g_k) / 2 with four inversions, of H_0^-1 and H_1 in double and of H_2 and H_3 in float. To
// form them costs less than to write and read them (docs/design/cpu_small.md has the counts).
#pragma once

#include "cpu/lanes/lanes.h"
#include "cpu/lanes/newton.h"

namespace svdrd {
namespace SVDRD_ISA {

struct NewtonPolarLayout {
  Newton newton;
  Pack<float>* p;

  NewtonPolarLayout(Arena& arena, int64_t rows, int64_t columns)
      : newton(arena, rows, columns), p(arena.matrix<float>(rows, newton.padded)) {}
};

// What the backward needs of the iterates of the lanes that are `wanted`, into `saved`.
inline void store_iterates(const Newton& w, const Items& items, const bool* wanted, const SavedLayout& layout,
                           float* saved) {
  const int64_t k = w.columns, stride = row_stride(w.padded);
  Pack<float>* square = w.inner;
  Pack<float>* diagonal = w.correction;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const Pack<double> value = w.inverse_h[0][i * stride + j];
      const Pack<float> rounded = convert<float>(value);
      const Pack<float> rest = convert<float>(value - convert<double>(rounded));
      square[i * stride + j] = rounded;
      if (j < i)
        square[j * stride + i] = rest;
      else
        diagonal[i] = rest;
    }
  const auto part = [&](int64_t at) { return only(place(saved + at, items, layout.size, k, int64_t{1}), wanted); };
  store(square, k, k, w.padded, nullptr, part(layout.left));
  store(diagonal, 1, k, k, nullptr, part(layout.values));
  for (int l = 0; l < items.count; ++l)
    if (wanted[l]) {
      float* item = saved + items.number[l] * layout.size;
      for (int64_t at = layout.left + k * k; at < layout.values; ++at) item[at] = 0.0f;
      for (int64_t at = layout.right; at < layout.kind; ++at) item[at] = 0.0f;
      item[layout.kind] = SavedLayout::iterates;
      item[layout.scale] = static_cast<float>(w.scale[0].lane(l));
      item[layout.condition] = static_cast<float>(w.condition.lane(l));
    }
}

inline void lanes_newton_polar_factor(RangeSource& ranges, const float* a, int64_t m, int64_t n, double rcond, float* p,
                                      float* saved, ItemSink& rest) {
  const Shape shape{m, n};
  const SavedLayout layout(m, n);
  Groups groups(ranges);
  Workspace<NewtonPolarLayout> workspace(shape.rows(), shape.columns());
  NewtonPolarLayout& w = *workspace;
  Newton& newton = w.newton;
  for (int64_t first, end; groups.next(first, end);) {
    const Items items(first, end);
    load(place_matrices(a, items, shape), newton.rows, newton.columns, newton.padded, newton.a);
    groups.following(first, end);
    prefetch<false>(place_matrices(a, first, end, shape), newton.rows, newton.columns);
    const Placement<float> result = place_matrices(p, items, shape);
    prefetch<true>(result, newton.rows, newton.columns);
    newton_polar(newton, newton_bound(rcond, 0.0, newton.rows), 0.0, w.p);
    bool wanted[lane_count];
    if (!part_items(newton.accepted, items, wanted, rest)) continue;
    store(w.p, newton.rows, newton.columns, newton.padded, nullptr, only(result, wanted));
    if (saved != nullptr) store_iterates(newton, items, wanted, layout, saved);
  }
}

// The matrices of a group, what their forward saved and room for the iterates that are formed again. Sizes as in Newton.
struct NewtonBackwardLayout {
  int64_t rows;
  int64_t columns;
  int64_t padded;
  Pack<float>* p;
  Pack<float>* upstream;
  Pack<float>* grad;
  Pack<float>* rounded;  // H_0^-1 in float
  Pack<double>* inverse_h0;
  Pack<float>* diagonal;
  Pack<double>* precise;                 // H_0, then H_1, their lower triangles
  Pack<float>* iterate;                  // H_2, then H_3 and H_4, their lower triangles
  Pack<float>* inverse_h[newton_steps];  // H_k^-1 but for k = 0
  Pack<float>* k4;
  BackwardBuffers buffers;
  Pack<double> scale[newton_steps];
  Pack<double> inverse_scale[newton_steps];
  Pack<float> inverse_centre;

  NewtonBackwardLayout(Arena& arena, int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), padded((columns_ + 3) / 4 * 4) {
    for (Pack<float>** matrix : {&p, &upstream, &grad, &buffers.outside}) *matrix = arena.matrix<float>(rows, padded);
    for (Pack<float>** matrix : {&rounded, &iterate, &inverse_h[1], &inverse_h[2], &inverse_h[3], &k4, &buffers.inner,
                                 &buffers.omega, &buffers.correction})
      *matrix = arena.matrix<float>(padded, padded);
    for (Pack<double>** matrix : {&inverse_h0, &precise, &buffers.precise, &buffers.precise_scratch})
      *matrix = arena.matrix<double>(padded, padded);
    diagonal = arena.take<Pack<float>>(padded);
  }
};

// H_0^-1 as store_iterates wrote it, padded so that H_1 is 1 there, and the scales.
inline void load_iterates(NewtonBackwardLayout& w, const Items& items, const SavedLayout& layout, const float* saved) {
  const int64_t k = w.columns, n = w.padded, stride = row_stride(n);
  load(place(saved + layout.left, items, layout.size, k, int64_t{1}), k, k, n, w.rounded);
  load(place(saved + layout.values, items, layout.size, k, int64_t{1}), 1, k, k, w.diagonal);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const Pack<float> rounded = w.rounded[i * stride + j];
      const Pack<float> rest = j < i ? w.rounded[j * stride + i] : w.diagonal[i];
      w.rounded[j * stride + i] = rounded;
      w.inverse_h0[i * stride + j] = w.inverse_h0[j * stride + i] = convert<double>(rounded) + convert<double>(rest);
    }
  Pack<double> condition(1.0);
  w.scale[0] = condition;
  for (int l = 0; l < items.count; ++l) {
    const float* item = saved + items.number[l] * layout.size;
    w.scale[0].set_lane(l, static_cast<double>(item[layout.scale]));
    condition.set_lane(l, static_cast<double>(item[layout.condition]));
  }
  for (int64_t i = k; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      w.rounded[i * stride + j] = Pack<float>(0.0f);
      w.inverse_h0[i * stride + j] = w.inverse_h0[j * stride + i] = Pack<double>(0.0);
    }
    w.inverse_h0[i * stride + i] = w.scale[0];
  }
  // As newton_polar finds them.
  Pack<double> ratio_of_bounds = condition;
  for (int k = 0; k < newton_steps; ++k) {
    const Pack<double> inverse_root_ratio = reciprocal_sqrt(ratio_of_bounds);
    const Pack<double> root_ratio = ratio_of_bounds * inverse_root_ratio;
    if (k > 0) w.scale[k] = inverse_root_ratio;
    w.inverse_scale[k] = k == 0 ? Pack<double>(1.0) / w.scale[0] : root_ratio;
    ratio_of_bounds = next_ratio_of_bounds(ratio_of_bounds, inverse_root_ratio);
  }
  w.inverse_centre = convert<float>(Pack<double>(2.0) / (Pack<double>(1.0) + ratio_of_bounds));
}

// The iterates where the backward formed them.
struct FormedIterates {
  const NewtonBackwardLayout& w;
  const Pack<double>* inverse_h0;
  const Pack<double>& scale0;
  const Pack<double>& inverse_scale0;

  explicit FormedIterates(const NewtonBackwardLayout& layout)
      : w(layout), inverse_h0(layout.inverse_h0), scale0(layout.scale[0]), inverse_scale0(layout.inverse_scale[0]) {}

  const Pack<float>* inverse_h(int k) const { return w.inverse_h[k]; }
  const Pack<float>* inverse_h0_single() const { return w.rounded; }
  Pack<float> scale(int k) const { return convert<float>(w.scale[k]); }
  Pack<float> inverse_scale(int k) const { return convert<float>(w.inverse_scale[k]); }
  Pack<float> inverse_centre() const { return w.inverse_centre; }
  const Pack<float>* k4() const { return w.k4; }
};

// H_{k+1} = (g_k H_k + H_k^-1 / g_k) / 2 in place of H_k, the lower triangle.
template <typename T>
[[gnu::always_inline]] inline void next_iterate(const NewtonBackwardLayout& w, int k, const Pack<T>* inverse, int64_t n,
                                                Pack<T>* iterate) {
  const int64_t stride = row_stride(n);
  const Pack<T> half(T(0.5)), forward = half * convert<T>(w.scale[k]), backward = half * convert<T>(w.inverse_scale[k]);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t at = i * stride; at <= i * stride + i; ++at)
      iterate[at] = sum_of_products(forward, iterate[at], backward, inverse[at]);
}

// From what load_iterates loaded, p and `upstream`. Not inlined: equal matrices must give equal bits everywhere.
template <int64_t known>
[[gnu::noinline]] void newton_backward(NewtonBackwardLayout& w) {
  const int64_t n = known_or<known>(w.padded), rows = known_or<known>(w.rows), stride = row_stride(n);
  const Pack<float> one(1.0f);
  Pack<double>* inverse = w.buffers.precise;
  invert_definite(w.inverse_h0, n, w.precise);
  next_iterate(w, 0, w.inverse_h0, n, w.precise);
  invert_definite(w.precise, n, inverse);
  convert_matrix(inverse, n, n, w.inverse_h[1]);
  next_iterate(w, 1, inverse, n, w.precise);
  convert_matrix(w.precise, n, n, w.iterate);
  for (int k = 2; k < newton_steps; ++k) {
    invert_definite(w.iterate, n, w.inverse_h[k]);
    next_iterate(w, k, w.inverse_h[k], n, w.iterate);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j)
      w.k4[i * stride + j] = w.k4[j * stride + i] = w.iterate[i * stride + j] * w.inverse_centre;
    w.k4[i * stride + i] = sum_of_products(w.iterate[i * stride + i], w.inverse_centre, -one, one);
  }
  const bool tall = known == 0 && rows > w.columns;
  FormedIterates iterates(w);
  divide_upstream<known>(iterates, rows, n, tall, w.p, w.upstream, w.buffers, w.grad);
  newton_vector_jacobian<known>(iterates, rows, n, tall, w.p, w.buffers, w.grad);
}

inline void newton_backward_of_items(NewtonBackwardLayout& w, const Items& items, const Shape& shape, const float* grad,
                                     const float* p, const float* saved, float* grad_a) {
  const int64_t rows = w.rows, columns = w.columns, padded = w.padded;
  load(place_matrices(grad, items, shape), rows, columns, padded, w.upstream);
  load(place_matrices(p, items, shape), rows, columns, padded, w.p);
  load_iterates(w, items, SavedLayout(shape.m, shape.n), saved);
  const GroupScale scale = normalise(w.upstream, rows, padded, 0.0);
  with_known_size<8>(rows, columns, [&](auto known) { newton_backward<known>(w); });
  scale_and_clamp(w.grad, rows, padded, scale.exponent, 1);
  const Placement<float> result = place_matrices(grad_a, items, shape);
  store(w.grad, rows, columns, padded, nullptr, result);
  for (int l = 0; l < result.count; ++l)
    if (!scale.finite[l]) store_nan(rows, columns, l, result);
}

inline void lanes_newton_polar_factor_backward(RangeSource& ranges, const float* grad, const float* p,
                                               const float* saved, int64_t m, int64_t n, float* grad_a,
                                               ItemSink& rest) {
  const Shape shape{m, n};
  const SavedLayout layout(m, n);
  Workspace<NewtonBackwardLayout> workspace(shape.rows(), shape.columns());
  Items items, others;
  const auto compute = [&] {
    newton_backward_of_items(*workspace, items, shape, grad, p, saved, grad_a);
    items.count = 0;
  };
  const auto give_others = [&] {
    others.give(rest);
    others.count = 0;
  };
  for (int64_t item, end; ranges.next(item, end);)
    for (; item < end; ++item) {
      if (saved[item * layout.size + layout.kind] != SavedLayout::iterates) {
        others.add(item);
        if (others.count == lane_count) give_others();
        continue;
      }
      items.add(item);
      if (item + lane_count < end) {  // most likely of the next group
        const Items next(item + lane_count, item + lane_count + 1);
        prefetch<false>(place_matrices(grad, next, shape), shape.rows(), shape.columns());
        prefetch<false>(place_matrices(p, next, shape), shape.rows(), shape.columns());
        prefetch<false>(place(saved, next, layout.size, layout.size, int64_t{1}), 1, layout.size);
      }
      if (items.count == lane_count) compute();
    }
  give_others();
  if (items.count > 0) compute();
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
