// The SVD of the bidiagonal matrices in the lanes by the implicit shifted QR iteration (Golub and Kahan 1965; the
// shift, the zero-shift case and the sweep follow Demmel and Kahan 1990 and LAPACK's xBDSQR).
//
// Every lane has its own window [low, high] of the unreduced block it works on and its own shift. One sweep runs over
// the union of the windows; outside its own window a lane keeps its values by selection and rotates by exactly (1, 0),
// so no lane can tell what the others hold. The rotations of a few sweeps are kept and then applied to the vectors
// while a few of their rows stay in the first-level cache: that part, 8 n^3 of the multiply-adds, then runs near the
// arithmetic peak.
#pragma once

#include <algorithm>

#include "cpu/lanes/bidiagonal.h"
#include "cpu/lanes/size.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

constexpr int buffered_sweeps = 4;

// x <- c x + s y, y <- c y - s x.
template <typename T>
struct Rotation {
  Pack<T> cosine;  // >= 0
  Pack<T> sine;
};

// The same in three multiply-adds in place of two and two products: x <- x + t y, y <- y - s x, x <- x + t y with
// t = s / (1 + c), the tangent of half the angle.
template <typename T>
struct Shears {
  Pack<T> tangent;
  Pack<T> minus_sine;

  Shears() = default;
  explicit Shears(const Rotation<T>& r)
      : tangent(r.sine / (Pack<T>(T(1)) + r.cosine)), minus_sine(-r.sine) {}

  // x_after may be x or y, and y_after the other.
  [[gnu::always_inline]] void apply(const Pack<T>& x, const Pack<T>& y, Pack<T>& x_after, Pack<T>& y_after) const {
    const Pack<T> sheared = multiply_add(tangent, y, x);
    const Pack<T> rotated = multiply_add(minus_sine, sheared, y);
    x_after = multiply_add(tangent, rotated, sheared);
    y_after = rotated;
  }
};

template <typename T>
struct RotationBuffer {
  Shears<T>* left;   // buffered_sweeps x columns
  Shears<T>* right;  // buffered_sweeps x columns
  int64_t columns;
  int sweeps;
  int64_t first[buffered_sweeps];
  int64_t last[buffered_sweeps];
};

// Rotates columns k and k + 1 of `block` rows for k = first .. last - 1: the chain through the shared column is what
// limits a single row, several rows hide its latency and share the loads of the rotations.
template <typename T, int block>
[[gnu::always_inline]] inline void rotate_rows(Pack<T>* a, int64_t stride, const Shears<T>* rotations, int64_t first,
                                               int64_t last) {
  Pack<T> x[block];
  for (int i = 0; i < block; ++i) x[i] = a[i * stride + first];
  for (int64_t k = first; k < last; ++k) {
    const Shears<T> rotation = rotations[k];
    for (int i = 0; i < block; ++i) {
      const Pack<T> y = a[i * stride + k + 1];
      rotation.apply(x[i], y, a[i * stride + k], x[i]);
    }
  }
  for (int i = 0; i < block; ++i) a[i * stride + last] = x[i];
}

// Four sweeps at once: at step t sweep q rotates columns t - q and t - q + 1, so that an entry passes through all of them
// between one load and one store.
template <typename T, int block>
struct Wave {
  Pack<T>* a;
  int64_t stride;
  const Shears<T>* rotations;
  int64_t columns;
  Pack<T> x[buffered_sweeps][block];  // column t - q, for sweep q to rotate

  // Sweeps from .. to - 1: those before have ended at the last column, those after have not begun.
  template <int from, int to>
  [[gnu::always_inline]] inline void step(int64_t t) {
    Pack<T> z[block];
    for (int i = 0; i < block; ++i) {
      if constexpr (from == 0)
        z[i] = a[i * stride + t + 1];
      else
        z[i] = x[from - 1][i];
    }
    for (int q = from; q < to; ++q) {
      const Shears<T> rotation = rotations[q * columns + t - q];
      for (int i = 0; i < block; ++i) {
        const Pack<T> before = x[q][i];
        rotation.apply(before, z[i], z[i], x[q][i]);
      }
    }
    for (int i = 0; i < block; ++i) {
      if constexpr (to == buffered_sweeps)
        a[i * stride + t - buffered_sweeps + 1] = z[i];
      else
        x[to][i] = z[i];
    }
  }
};

// The rotations of columns first .. last, at least three of each sweep.
template <typename T, int block>
[[gnu::always_inline]] inline void rotate_rows_in_a_wave(Pack<T>* a, int64_t stride, const Shears<T>* rotations,
                                                         int64_t columns, int64_t first, int64_t last) {
  static_assert(buffered_sweeps == 4);
  Wave<T, block> wave{a, stride, rotations, columns, {}};
  for (int i = 0; i < block; ++i) wave.x[0][i] = a[i * stride + first];
  wave.template step<0, 1>(first);
  wave.template step<0, 2>(first + 1);
  wave.template step<0, 3>(first + 2);
  for (int64_t t = first + 3; t < last; ++t) wave.template step<0, 4>(t);
  wave.template step<1, 4>(last);
  wave.template step<2, 4>(last + 1);
  wave.template step<3, 4>(last + 2);
  for (int i = 0; i < block; ++i) a[i * stride + last] = wave.x[3][i];
}

// Whether the buffer is full and was applied. Rotations outside of their sweep's range are overwritten.
template <typename T>
[[gnu::always_inline]] inline bool apply_in_waves(Pack<T>* a, Shears<T>* rotations, int64_t columns,
                                                     const RotationBuffer<T>& buffer) {
  constexpr int block = Pack<T>::parts < 4 ? 4 / Pack<T>::parts : 1;
  const int64_t first = *std::min_element(buffer.first, buffer.first + buffered_sweeps);
  const int64_t last = *std::max_element(buffer.last, buffer.last + buffered_sweeps);
  if (buffer.sweeps < buffered_sweeps || last - first < buffered_sweeps - 1) return false;
  const Shears<T> none(Rotation<T>{Pack<T>(T(1)), Pack<T>(T(0))});
  for (int q = 0; q < buffered_sweeps; ++q) {
    Shears<T>* sweep = rotations + q * columns;
    std::fill(sweep + first, sweep + buffer.first[q], none);
    std::fill(sweep + buffer.last[q], sweep + last, none);
  }
  const int64_t stride = row_stride(columns), in_blocks = columns / block * block;
  for (int64_t i = 0; i < in_blocks; i += block)
    rotate_rows_in_a_wave<T, block>(a + i * stride, stride, rotations, columns, first, last);
  for (int64_t i = in_blocks; i < columns; ++i)
    rotate_rows_in_a_wave<T, 1>(a + i * stride, stride, rotations, columns, first, last);
  return true;
}

// a: columns x columns.
template <int64_t known, typename T>
[[gnu::noinline]] void apply_rotations(Pack<T>* a, Shears<T>* rotations, const RotationBuffer<T>& buffer) {
  constexpr int block = 8 / Pack<T>::parts;
  const int64_t columns = known_or<known>(buffer.columns), rows = columns;
  const int64_t stride = row_stride(columns), in_blocks = rows / block * block;
  if constexpr (vector_bytes == 64) {  // 16 registers are too few for waves
    if (apply_in_waves(a, rotations, columns, buffer)) return;
  }
  for (int64_t i = 0; i < in_blocks; i += block)
    for (int q = 0; q < buffer.sweeps; ++q)
      rotate_rows<T, block>(a + i * stride, stride, rotations + q * columns, buffer.first[q], buffer.last[q]);
  for (int64_t i = in_blocks; i < rows; ++i)
    for (int q = 0; q < buffer.sweeps; ++q)
      rotate_rows<T, 1>(a + i * stride, stride, rotations + q * columns, buffer.first[q], buffer.last[q]);
}

// c f + s g = r, c g - s f = 0; r has the sign of f. Pairs below the negligible size are left alone.
template <typename T>
[[gnu::always_inline]] inline Rotation<T> make_rotation(const Pack<T>& f, const Pack<T>& g, const Mask<T>& wanted,
                                                        Pack<T>& r) {
  const Pack<T> bound(negligible_entry<T>() * negligible_entry<T>());
  const Pack<T> squared = sum_of_products(f, f, g, g);
  const Mask<T> rotates = wanted & (bound <= squared);
  const Pack<T> inverse = reciprocal_sqrt(max(squared, bound));
  const Mask<T> negative = f < Pack<T>(T(0));
  r = select(rotates, select(negative, -squared, squared) * inverse, f);
  return {select(rotates, abs(f) * inverse, Pack<T>(T(1))),
          select(rotates, select(negative, -g, g) * inverse, Pack<T>(T(0)))};
}

// The unreduced block at the bottom of what each lane has left, and the shift for it.
template <typename T>
struct Window {
  Mask<T> active;
  Pack<T> low;  // indices as numbers of type T: exact, and comparable lane by lane
  Pack<T> high;
  Pack<T> start;  // f of the first rotation: (d_low^2 - shift^2) / d_low
};

// Sets negligible superdiagonal entries to zero among the first `top` and finds each lane's window.
template <typename T>
[[gnu::always_inline]] inline Window<T> find_window(Pack<T>* d, Pack<T>* e, int64_t top,
                                                    const Pack<T>& absolute_tolerance) {
  const Pack<T> relative_tolerance(std::numeric_limits<T>::epsilon());
  const Pack<T> zero(T(0));
  Window<T> w;
  Mask<T> found = no_lanes<T>();
  Mask<T> ended = no_lanes<T>();
  Mask<T> singular = no_lanes<T>();
  w.low = w.high = zero;
  Pack<T> bottom = zero, above_bottom = zero, coupling = zero, first = zero;
  for (int64_t k = top - 1; k >= 0; --k) {
    const Pack<T> size = abs(e[k]);
    const Mask<T> negligible =
        (size <= relative_tolerance * (abs(d[k]) + abs(d[k + 1]))) | (size <= absolute_tolerance);
    e[k] = select(negligible, zero, e[k]);
    const Mask<T> opens = ~(negligible | found);
    w.high = select(opens, Pack<T>(T(k + 1)), w.high);
    bottom = select(opens, d[k + 1], bottom);
    above_bottom = select(opens, d[k], above_bottom);
    coupling = select(opens, e[k], coupling);
    found = found | opens;
    ended = ended | (found & negligible);
    const Mask<T> inside = found & ~ended;
    const Mask<T> zero_diagonal = inside & (abs(d[k]) <= absolute_tolerance);
    const Mask<T> zero_bottom = opens & (abs(d[k + 1]) <= absolute_tolerance);
    d[k] = select(zero_diagonal, zero, d[k]);
    d[k + 1] = select(zero_bottom, zero, d[k + 1]);
    singular = singular | zero_diagonal | zero_bottom;
    w.low = select(inside, Pack<T>(T(k)), w.low);
    first = select(inside, d[k], first);
    if (!any(~ended)) break;
  }
  w.active = found;

  // The shift is the smaller singular value of the trailing 2 x 2 block, f h / (the larger one). Only its ratio to
  // d_low is needed: (d_low^2 - shift^2) / d_low = d_low (1 - ratio^2).
  const Pack<T> f = abs(above_bottom), g = abs(coupling), h = abs(bottom);
  const Pack<T> tiny(negligible_entry<T>() * negligible_entry<T>());
  const Pack<T> sum = sum_of_products(f + h, f + h, g, g), difference = sum_of_products(f - h, f - h, g, g);
  const Pack<T> twice_larger =
      sum_of_products(sum, reciprocal_sqrt(max(sum, tiny)), difference, reciprocal_sqrt(max(difference, tiny)));
  const Pack<T> divisor = twice_larger * first;
  const Pack<T> ratio = Pack<T>(T(2)) * f * h / select(divisor == zero, Pack<T>(T(1)), divisor);
  // A zero on the diagonal, or a shift that rounding would not see: the zero-shift sweep, which also splits off a zero.
  const Mask<T> unshifted = singular | (first == zero) | (ratio * ratio <= relative_tolerance);
  w.start = select(unshifted, first, first - first * (ratio * ratio));
  return w;
}

// One QR sweep over every active lane's window; the rotations go to slot `buffer.sweeps` of the buffer.
template <typename T>
[[gnu::always_inline]] inline void sweep(Pack<T>* d, Pack<T>* e, const Window<T>& w, int64_t first, int64_t last,
                                         RotationBuffer<T>& buffer) {
  Shears<T>* left = buffer.left + buffer.sweeps * buffer.columns;
  Shears<T>* right = buffer.right + buffer.sweeps * buffer.columns;
  buffer.first[buffer.sweeps] = first;
  buffer.last[buffer.sweeps] = last;
  ++buffer.sweeps;
  Pack<T> f(T(0)), g(T(0));
  Pack<T> dk = d[first], ek = e[first];
  for (int64_t k = first; k < last; ++k) {
    const Pack<T> index{T(k)};
    const Pack<T> next{T(k + 1)};
    const Mask<T> starts = w.active & (w.low == index);
    const Mask<T> inside = w.active & (w.low <= index) & (index < w.high);
    f = select(starts, w.start, f);
    g = select(starts, ek, g);
    Pack<T> r;
    // Not read back from right[k]: the way through memory would be in every lane's chain of rotations.
    const Rotation<T> from_right = make_rotation(f, g, inside, r);
    right[k] = Shears<T>(from_right);
    if (k > first) e[k - 1] = select(inside & ~starts, r, e[k - 1]);
    const Pack<T> c = from_right.cosine, s = from_right.sine;
    const Pack<T> d_next = d[k + 1];
    f = sum_of_products(c, dk, s, ek);
    ek = difference_of_products(c, ek, s, dk);
    g = s * d_next;
    const Pack<T> d_rotated = c * d_next;
    const Rotation<T> from_left = make_rotation(f, g, inside, r);
    left[k] = Shears<T>(from_left);
    d[k] = select(inside, r, dk);
    const Pack<T> cl = from_left.cosine, sl = from_left.sine;
    f = sum_of_products(cl, ek, sl, d_rotated);
    dk = select(inside, difference_of_products(cl, d_rotated, sl, ek), d_next);
    e[k] = select(inside, f, e[k]);
    if (k + 1 < last) {
      const Mask<T> continues = inside & (next < w.high);
      g = sl * e[k + 1];
      ek = select(continues, cl * e[k + 1], e[k + 1]);
      e[k + 1] = ek;
    }
  }
  d[last] = dk;
}

// Superdiagonal entries up to tolerance * (the largest entry) count as zero.
// d, e -> the singular values (signed, unsorted) in d; the first `columns` rows of u and v are multiplied from the right
// by the singular vectors of the bidiagonal matrix, where they are not null.
template <int64_t known, typename T>
void diagonalise(Pack<T>* d, Pack<T>* e, int64_t columns, Pack<T>* u, Pack<T>* v, T tolerance,
                 RotationBuffer<T>& buffer) {
  Pack<T> largest = abs(d[0]);
  for (int64_t k = 1; k < columns; ++k) largest = max(largest, max(abs(d[k]), abs(e[k - 1])));
  const Pack<T> absolute_tolerance = largest * Pack<T>(tolerance);
  buffer.columns = columns;
  buffer.sweeps = 0;
  int64_t top = columns - 1;
  const auto apply_buffered = [&] {
    if (u != nullptr) apply_rotations<known>(u, buffer.left, buffer);
    if (v != nullptr) apply_rotations<known>(v, buffer.right, buffer);
    buffer.sweeps = 0;
  };
  // Two sweeps a singular value are typical. The bound only guards the loop: whatever it would leave, u and v stay
  // orthogonal.
  for (int64_t iteration = 0; iteration < 40 * columns; ++iteration) {
    const Window<T> w = find_window(d, e, top, absolute_tolerance);
    if (!any(w.active)) break;
    const int64_t first = static_cast<int64_t>(smallest_lane(select(w.active, w.low, Pack<T>(T(columns)))));
    const int64_t last = static_cast<int64_t>(largest_lane(w.high));
    top = last;
    sweep(d, e, w, first, last, buffer);
    if (buffer.sweeps == buffered_sweeps) apply_buffered();
  }
  apply_buffered();
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
