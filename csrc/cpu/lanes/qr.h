// The SVD of the bidiagonal matrices in the lanes by the implicit shifted QR iteration (Golub and Kahan 1965; the
// shift, the zero-shift case and the sweep follow Demmel and Kahan 1990 and LAPACK's xBDSQR).
//
// Every lane has its own window [low, high] of the unreduced block it works on and its own shift. One sweep runs over
// the union of the windows; outside its own window a lane's entries pass through unchanged and it rotates by exactly
// (1, 0), so no lane can tell what the others hold. The rotations of a few sweeps are kept and then applied to the vectors
// while a few of their rows stay in the first-level cache: that part, 6 n^3 of the multiply-adds, then runs near the
// arithmetic peak.
#pragma once

#include <algorithm>

#include "cpu/lanes/bidiagonal.h"
#include "cpu/lanes/size.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

constexpr int buffered_sweeps = 4;

// The rotation x <- c x + s y, y <- c y - s x, c >= 0, in three multiply-adds in place of two and two products:
// x <- x + t y, y <- y - s x, x <- x + t y with t = s / (1 + c), the tangent of half the angle.
template <typename T>
struct Shears {
  Pack<T> tangent;
  Pack<T> minus_sine;

  [[gnu::always_inline]] static Shears none() { return {Pack<T>(T(0)), Pack<T>(T(0))}; }
  // c = length * inverse. Written out: whether it is rounded before it is added would be the compiler's choice.
  using Native = typename Pack<T>::Native;
  [[gnu::always_inline]] void set(int part, const Native& length, const Native& inverse, const Native& sine) {
    const Native one = Native{} + T(1);
    tangent.part[part] = sine / native_multiply_add<T>(length, inverse, one);
    minus_sine.part[part] = -sine;
  }

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
  for (int q = 0; q < buffered_sweeps; ++q) {
    Shears<T>* sweep = rotations + q * columns;
    std::fill(sweep + first, sweep + buffer.first[q], Shears<T>::none());
    std::fill(sweep + buffer.last[q], sweep + last, Shears<T>::none());
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

// The two rotations of a step of the sweep, of the columns k and k + 1 and of the rows. The step meets
//     f  g  .                      r1
//     d  e  .      and leaves      r2  f' g'
//     .  d1 e1                     .   d' e'
// where the first row is that of the step before: c1 f + s1 g = r1, c1 g - s1 f = 0, c2 (c1 d + s1 e) + s2 s1 d1 = r2.
// With n = f d + g e and b = g d1 the second root is that of (n^2 + b^2) / (f^2 + g^2), so that both are taken at once:
// a sweep waits for one root a step. Where no rotation is wanted, or f and g are negligible, neither rotates, by exactly
// (1, 0): r1 = f, r2 = d, f' = e, d' = d1, g' = 0, e' = e1. Where the entries of the second are negligible, only the first
// does.
template <typename T>
struct Step {
  using Native = typename Pack<T>::Native;
  using Bits = typename NativeTypes<T>::MaskVector;

  Native f, g, d, e;

  // One register of each Pack.
  [[gnu::always_inline]] void take(Native d1, Native e1, Bits wanted, int part, Shears<T>& right, Shears<T>& left,
                                   Native& r1, Native& r2) {
    const Native one = Native{} + T(1), bound = Native{} + negligible_entry<T>() * negligible_entry<T>();
    Native fs = f, gs = g, unit = one;
    if constexpr (sizeof(T) == 4) {
      // The fourth powers of what is just not negligible are no floats.
      Native factor;
      native_powers_of_two<T>(native_abs<T>(f) + native_abs<T>(g), unit, factor);
      fs = f * factor;
      gs = g * factor;
    }
    const auto sum = [](const Native& a, const Native& b, const Native& c, const Native& d) {
      return native_multiply_add<T>(a, b, c * d);
    };
    const auto difference = [](const Native& a, const Native& b, const Native& c, const Native& d) {
      return native_difference_of_products<T>(a, b, c, d);
    };
    const Native square1 = sum(fs, fs, gs, gs);
    const Native n = sum(fs, d, gs, e), a = difference(fs, e, gs, d), b = gs * d1, h = fs * d1;
    const Native square2 = sum(n, n, b, b);
    const Bits rotates1 = wanted & (bound <= square1 * unit * unit);
    const Bits rotates2 = rotates1 & (bound * square1 <= square2);
    const Native inverse1 = native_reciprocal_sqrt<T>(native_max<T>(square1, bound));
    const Native least = sizeof(T) == 4 ? T(0.5) * bound : bound * bound;  // square2 of what rotates; a normal number
    const Native inverse2 = native_reciprocal_sqrt<T>(native_max<T>(square2, least));
    const Native both = inverse1 * inverse2;
    const Bits sign1 = native_sign<T>(fs), sign_n = native_sign<T>(n), sign2 = sign1 ^ sign_n;
    const auto with = [](const Bits& sign, const Native& x) { return (Native)((Bits)x ^ sign); };
    const auto where = [](const Bits& mask, const Native& x) { return (Native)((Bits)x & mask); };

    right.set(part, native_abs<T>(fs), inverse1, where(rotates1, with(sign1, gs) * inverse1));
    const Native sine = where(rotates2, with(sign_n, b) * inverse2);
    left.set(part, native_abs<T>(n), inverse2, sine);
    r1 = native_select<T>(rotates1, with(sign1, square1) * (inverse1 * unit), f);
    Native diagonal = native_select<T>(rotates2, with(sign2, square2) * both, d);
    Native f_after = native_select<T>(rotates2, with(sign2, sum(n, a, b, h)) * both, e);
    Native d_after = native_select<T>(rotates2, with(sign2, difference(n, h, b, a)) * both, d1);
    const Bits only_first = rotates1 & ~rotates2;
    if (native_any<T>(only_first)) {
      diagonal = native_select<T>(only_first, with(sign1, n) * inverse1, diagonal);
      f_after = native_select<T>(only_first, with(sign1, a) * inverse1, f_after);
      d_after = native_select<T>(only_first, with(sign1, h) * inverse1, d_after);
    }
    r2 = diagonal;
    f = f_after;
    d = d_after;
    g = sine * e1;
    e = native_select<T>(rotates2, (native_abs<T>(n) * inverse2) * e1, e1);
  }
};

// Matrices of floats are factored for svd() alone, which drops nothing.
template <typename T>
constexpr bool may_drop = sizeof(T) == 8;

// The unreduced block at the bottom of what each lane has left, and the shift for it.
template <typename T>
struct Window {
  Mask<T> active;
  Pack<T> low;  // indices as numbers of type T: exact, and comparable lane by lane; low > high where nothing is left
  Pack<T> high;
  Pack<T> start;  // f of the first rotation: (d_low^2 - shift^2) / d_low
  Pack<T> first;  // d_low
};

// Sets negligible superdiagonal entries to zero among the first `top` and finds each lane's window, one register of each
// Pack at a time: what is carried along fits the registers then. An entry is negligible up to `absolute_tolerance`, or up to
// the rounding of its neighbours on the diagonal, either times `slack`. A block with a zero above it of which the squares
// add up to no more than `dropped` is passed over, where `drops`.
template <typename T>
[[gnu::always_inline]] inline Window<T> find_window(Pack<T>* d, Pack<T>* e, int64_t top,
                                                    const Pack<T>& absolute_tolerance, const Pack<T>& slack,
                                                    bool drops, const Pack<T>& dropped) {
  using Native = typename Pack<T>::Native;
  using Bits = typename NativeTypes<T>::MaskVector;
  const auto choose = [](const Bits& mask, const Native& x, const Native& y) { return native_select<T>(mask, x, y); };
  const auto without = [](const Bits& mask, const Native& x) { return (Native)(~mask & (Bits)x); };
  const Native zero{}, one = zero + T(1);
  Window<T> w;
  for (int p = 0; p < Pack<T>::parts; ++p) {
    const Native least = absolute_tolerance.part[p] * slack.part[p];
    const Native relative = std::numeric_limits<T>::epsilon() * slack.part[p];
    Bits found{}, ended{}, singular{};
    Native low = zero + T(top + 1), high{}, bottom{}, above_bottom{}, coupling{}, first{};
    Native size_here = native_abs<T>(d[top].part[p]);
    Native squares = size_here * size_here;
    for (int64_t k = top - 1; k >= 0; --k) {
      const Native size_below = size_here, dk = d[k].part[p], ek = e[k].part[p];
      size_here = native_abs<T>(dk);
      const Bits negligible = native_abs<T>(ek) <= native_max<T>(relative * (size_here + size_below), least);
      e[k].part[p] = without(negligible, ek);
      if (may_drop<T> && drops) {
        // Of a block that is dropped only its upper part may be among the first `top`, which then is dropped, too.
        const Bits passed = found & ~ended & negligible & (squares <= dropped.part[p]);
        found &= ~passed;
        singular &= ~passed;
        low = choose(passed, zero + T(top + 1), low);
        high = without(passed, high);
        squares = native_multiply_add<T>(dk, dk, without(negligible, native_multiply_add<T>(ek, ek, squares)));
      }
      const Bits opens = ~(negligible | found);
      high = choose(opens, zero + T(k + 1), high);
      bottom = choose(opens, d[k + 1].part[p], bottom);
      above_bottom = choose(opens, dk, above_bottom);
      coupling = choose(opens, ek, coupling);
      found |= opens;
      ended |= found & negligible;
      const Bits inside = found & ~ended;
      low = choose(inside, zero + T(k), low);
      first = choose(inside, dk, first);
      const Bits zero_here = inside & (size_here <= least), zero_below = opens & (size_below <= least);
      singular |= zero_here | zero_below;
      if (native_any<T>(zero_here | zero_below)) {
        d[k].part[p] = without(zero_here, dk);
        d[k + 1].part[p] = without(zero_below, d[k + 1].part[p]);
        first = without(zero_here, first);
        above_bottom = without(zero_here & opens, above_bottom);
        bottom = without(zero_below, bottom);
      }
      if (!native_any<T>(~ended)) break;
    }
    w.active.part[p] = found;
    w.low.part[p] = low;
    w.high.part[p] = high;

    // The shift is the smaller singular value of the trailing 2 x 2 block, f h / (the larger one). Only its ratio to
    // d_low is needed: (d_low^2 - shift^2) / d_low = d_low (1 - ratio^2).
    const Native f = native_abs<T>(above_bottom), g = native_abs<T>(coupling), h = native_abs<T>(bottom);
    const Native tiny = zero + negligible_entry<T>() * negligible_entry<T>();
    const Native sum = native_multiply_add<T>(f + h, f + h, g * g);
    const Native difference = native_multiply_add<T>(f - h, f - h, g * g);
    const Native difference_root = difference * native_reciprocal_sqrt<T>(native_max<T>(difference, tiny));
    const Native twice_larger =
        native_multiply_add<T>(sum, native_reciprocal_sqrt<T>(native_max<T>(sum, tiny)), difference_root);
    const Native divisor = twice_larger * first;
    const Native ratio = T(2) * f * h / choose(divisor == zero, one, divisor);
    // A zero on the diagonal, or a shift that rounding would not see: the zero-shift sweep, which also splits off a zero.
    const Bits unshifted = singular | (first == zero) | (ratio * ratio <= std::numeric_limits<T>::epsilon());
    // Where singular values are equal to rounding, so may be the shift and d_low. From a start of zero a sweep does no more
    // than exchange rows, for ever; a shift that is off by its own rounding serves as well.
    const Native rounding = zero + T(8) * std::numeric_limits<T>::epsilon();
    const Native exact = native_multiply_add<T>(-ratio, ratio, one);
    const Native relative_start = choose(native_abs<T>(exact) < rounding, rounding, exact);
    w.start.part[p] = choose(unshifted, first, first * relative_start);
    w.first.part[p] = first;
  }
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
  // Outside of its window a lane carries its own entries along: e_{k-1} in f, d_k and e_k. Behind it there is a zero in e.
  using Native = typename Pack<T>::Native;
  constexpr int parts = Pack<T>::parts;
  Step<T> step[parts];
  for (int p = 0; p < parts; ++p) {
    step[p].f = first == 0 ? Native{} : e[first - 1].part[p];
    step[p].g = Native{};
    step[p].d = d[first].part[p];
    step[p].e = e[first].part[p];
  }
  for (int64_t k = first; k < last; ++k) {
    const Native index = Native{} + T(k);
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p) {
      Step<T>& s = step[p];
      const typename Step<T>::Bits starts = w.low.part[p] == index;
      const typename Step<T>::Bits inside = (w.low.part[p] <= index) & (index < w.high.part[p]);
      const Native above = s.f;
      s.f = native_select<T>(starts, w.start.part[p], s.f);
      s.g = native_select<T>(starts, s.e, s.g);
      Native r1;
      s.take(d[k + 1].part[p], k + 1 < last ? e[k + 1].part[p] : Native{}, inside, p, right[k], left[k], r1,
             d[k].part[p]);
      if (k > first) e[k - 1].part[p] = native_select<T>(starts, above, r1);
    }
  }
  for (int p = 0; p < parts; ++p) {
    e[last - 1].part[p] = step[p].f;
    d[last].part[p] = step[p].d;
  }
}

// Every so many sweeps that a lane's window ends at the same entry, one is done without a shift. Where the squared shift
// lies halfway between two squared singular values, sweeps with it exchange the two for ever. Few take more than five.
constexpr int unshifted_every = 10;

// How many it may take before it is allowed more error, twice as much each time. 35 were seen, in a search for the most.
constexpr int patience = 100;

// Superdiagonal entries up to tolerance * (the largest entry) count as zero.
// d, e -> the singular values (signed, unsorted) in d; the first `columns` rows of u and v are multiplied from the right
// by the singular vectors of the bidiagonal matrix, where they are not null.
// Values of no more than drop times the largest of these may be left undone, as numbers of that size in d.
template <typename T>
void diagonalise(Pack<T>* d, Pack<T>* e, int64_t columns, Pack<T>* u, Pack<T>* v, T tolerance, T drop,
                 RotationBuffer<T>& buffer) {
  Pack<T> largest = abs(d[0]);
  for (int64_t k = 1; k < columns; ++k) largest = max(largest, max(abs(d[k]), abs(e[k - 1])));
  const Pack<T> absolute_tolerance = largest * Pack<T>(tolerance);
  const Pack<T> root_of_dropped = largest * Pack<T>(drop), dropped = root_of_dropped * root_of_dropped;
  const Pack<T> one(T(1));
  const Pack<T> period(static_cast<T>(unshifted_every));
  Pack<T> slack = one, last_high(T(0)), sweeps(T(0)), since_unshifted(T(0));
  buffer.columns = columns;
  buffer.sweeps = 0;
  int64_t top = columns - 1;
  const auto apply_buffered = [&] {
    with_known_size<8>(columns, columns, [&](auto known) {
      if (u != nullptr) apply_rotations<known>(u, buffer.left, buffer);
      if (v != nullptr) apply_rotations<known>(v, buffer.right, buffer);
    });
    buffer.sweeps = 0;
  };
  // Two sweeps a singular value are typical. All entries are negligible before the slack is 2^64.
  for (int64_t iteration = 0; iteration < (patience + 64) * columns; ++iteration) {
    Window<T> w = find_window(d, e, top, absolute_tolerance, slack, drop > T(0), dropped);
    if (!any(w.active)) break;
    sweeps = select(w.high == last_high, sweeps + one, one);
    since_unshifted = select((w.high == last_high) & (since_unshifted < period), since_unshifted + one, one);
    w.start = select(since_unshifted < period, w.start, w.first);
    slack = select(sweeps <= Pack<T>(T(patience)), one, slack + slack);
    last_high = w.high;
    const int64_t first = static_cast<int64_t>(smallest_lane(w.low));
    const int64_t last = static_cast<int64_t>(largest_lane(w.high));
    top = last;
    sweep(d, e, w, first, last, buffer);
    if (buffer.sweeps == buffered_sweeps) apply_buffered();
  }
  apply_buffered();
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
