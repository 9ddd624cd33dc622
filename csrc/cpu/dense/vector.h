// Vectors and the few vector loops that every dense algorithm needs.
//
// The code in dense*.h is compiled once per instruction set into its own namespace. It instantiates no template of the
// standard library that has code of its own: the linker would keep one copy for all instruction sets, perhaps the
// widest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dense/scratch.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

template <typename T>
using Vector = typename NativeTypes<T>::Vector;

template <typename T>
struct UnalignedTypes;
template <>
struct UnalignedTypes<float> {
  typedef float Vector __attribute__((vector_size(vector_bytes), aligned(4), may_alias));
};
template <>
struct UnalignedTypes<double> {
  typedef double Vector __attribute__((vector_size(vector_bytes), aligned(8), may_alias));
};

template <typename T>
constexpr int64_t lanes = vector_bytes / static_cast<int64_t>(sizeof(T));

template <typename T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename UnalignedTypes<T>::Vector*>(p);
}

template <typename T>
inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename UnalignedTypes<T>::Vector*>(p) = v;
}

template <typename T>
inline Vector<T> splat(T x) {
  return x - Vector<T>{};  // not 0 + x, which would turn -0 into 0 and cost an addition
}

constexpr double epsilon = 2.220446049250313e-16;

using Lanes = Vector<double>;
using LaneMask = NativeTypes<double>::MaskVector;

inline bool any_lane(LaneMask mask) { return native_any<double>(mask); }
inline bool all_lanes(LaneMask mask) { return !any_lane(~mask); }

inline Lanes magnitude(Lanes x) { return x < 0 ? -x : x; }
inline Lanes square_root(Lanes x) { return native_sqrt<double>(x); }

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// Lane l of the result is lane l ^ distance of a.
template <typename T, int distance, int... lane>
inline Vector<T> exchange_lanes(Vector<T> a, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, a, (lane ^ distance)...);
#else
  return __builtin_shuffle(a, typename NativeTypes<T>::MaskVector{(lane ^ distance)...});
#endif
}

template <typename T>
inline T sum_lanes(Vector<T> v) {
  using Indices = std::make_integer_sequence<int, static_cast<int>(lanes<T>)>;
  if constexpr (lanes<T> > 8) v += exchange_lanes<T, 8>(v, Indices{});
  if constexpr (lanes<T> > 4) v += exchange_lanes<T, 4>(v, Indices{});
  if constexpr (lanes<T> > 2) v += exchange_lanes<T, 2>(v, Indices{});
  return v[0] + v[1];
}

// a_0 b_0 a_1 b_1 ... from the first half of the lanes, or from the second.
template <typename T, bool second, int... lane>
inline Vector<T> interleave(Vector<T> a, Vector<T> b, std::integer_sequence<int, lane...>) {
  constexpr int w = static_cast<int>(lanes<T>), first = second ? w / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (lane % 2 * w + lane / 2 + first)...);
#else
  return __builtin_shuffle(a, b, typename NativeTypes<T>::MaskVector{(lane % 2 * w + lane / 2 + first)...});
#endif
}

// Of the pairs of lanes of a, then of b, the even or the odd ones.
template <bool odd, int... lane>
inline Lanes every_other_pair(Lanes a, Lanes b, std::integer_sequence<int, lane...>) {
  constexpr int first = odd ? 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (lane / 2 * 4 + first + lane % 2)...);
#else
  return __builtin_shuffle(a, b, LaneMask{(lane / 2 * 4 + first + lane % 2)...});
#endif
}

// a_0 b_0 a_2 b_2 ..., or a_1 b_1 a_3 b_3 ...: no lane leaves its pair, which takes the least time.
template <bool odd, int... lane>
inline Lanes lanes_in_pairs(Lanes a, Lanes b, std::integer_sequence<int, lane...>) {
  constexpr int w = static_cast<int>(lanes<double>), first = odd ? 1 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (lane / 2 * 2 + first + lane % 2 * w)...);
#else
  return __builtin_shuffle(a, b, LaneMask{(lane / 2 * 2 + first + lane % 2 * w)...});
#endif
}

// Lane l of the result is the sum of the lanes of v[l]. Each round adds neighbours, of two vectors into one.
inline Lanes sums_of_lanes(const Lanes* v) {
  constexpr int w = static_cast<int>(lanes<double>);
  constexpr std::make_integer_sequence<int, w> indices;
  Lanes sum[w / 2];
#pragma GCC unroll 4
  for (int i = 0; i < w / 2; ++i)
    sum[i] = lanes_in_pairs<false>(v[2 * i], v[2 * i + 1], indices) +
             lanes_in_pairs<true>(v[2 * i], v[2 * i + 1], indices);
#pragma GCC unroll 4
  for (int count = w / 4; count > 0; count /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
      sum[i] = every_other_pair<false>(sum[2 * i], sum[2 * i + 1], indices) +
               every_other_pair<true>(sum[2 * i], sum[2 * i + 1], indices);
  return sum[0];
}

// Transposes the square block of one vector a row: log2(lanes) perfect shuffles.
template <typename T>
inline void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int w = static_cast<int>(lanes<T>);
  using Indices = std::make_integer_sequence<int, w>;
  Vector<T> rows[w], next[w];
  for (int i = 0; i < w; ++i) rows[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int round = 1; round < w; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < w / 2; ++i) {
      next[2 * i] = interleave<T, false>(rows[i], rows[i + w / 2], Indices{});
      next[2 * i + 1] = interleave<T, true>(rows[i], rows[i + w / 2], Indices{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < w; ++i) store(to + i * to_stride, rows[i]);
}

// Row stride of a scratch matrix: whole groups of 8 and vectors, and never a multiple of 512 bytes, where a walk down a
// column would meet only a few sets of the first-level cache.
template <typename T>
inline int64_t row_stride(int64_t columns) {
  const int64_t step = lanes<T> > 8 ? lanes<T> : 8;
  const int64_t stride = round_up(columns, step);
  return stride * static_cast<int64_t>(sizeof(T)) % 512 == 0 ? stride + 64 / static_cast<int64_t>(sizeof(T)) : stride;
}

template <typename T>
inline T dot(const T* x, const T* y, int64_t n) {
  constexpr int64_t w = lanes<T>;
  Vector<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w)
    for (int64_t part = 0; part < 4; ++part) sum[part] += load(x + i + part * w) * load(y + i + part * w);
  for (; i + w <= n; i += w) sum[0] += load(x + i) * load(y + i);
  T total = sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

template <typename T>
inline void add_scaled(T* y, T alpha, const T* x, int64_t n) {
  constexpr int64_t w = lanes<T>;
  const Vector<T> factor = splat(alpha);
  int64_t i = 0;
  for (; i + w <= n; i += w) store(y + i, load(y + i) + factor * load(x + i));
  for (; i < n; ++i) y[i] += alpha * x[i];
}

// (x, y) <- (c x - s y, s x + c y)
template <typename T>
inline void rotate(T* x, T* y, T c, T s, int64_t n) {
  constexpr int64_t w = lanes<T>;
  const Vector<T> cosine = splat(c), sine = splat(s);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const Vector<T> a = load(x + i), b = load(y + i);
    store(x + i, cosine * a - sine * b);
    store(y + i, sine * a + cosine * b);
  }
  for (; i < n; ++i) {
    const T a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
}

template <typename T>
inline void copy(T* to, const T* from, int64_t n) {
  __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
}

// order[i] is the index of the i-th smallest (largest) key; equal keys keep their order. Natural merge sort: what divide
// and conquer leaves is two or three sorted runs.
inline void sort_ascending(const double* keys, int64_t* order, int64_t n, Scratch& scratch) {
  ScratchScope scope(scratch);
  int64_t* from = order;
  int64_t* to = scratch.take<int64_t>(n);
  int64_t* ends = scratch.take<int64_t>(n);  // of the runs
  int64_t runs = 0;
  for (int64_t first = 0, end; first < n; first = end) {
    end = first + 1;
    if (end < n && keys[end] < keys[first]) {
      while (end < n && keys[end] < keys[end - 1]) ++end;
      for (int64_t i = first; i < end; ++i) order[i] = first + end - 1 - i;
    } else {
      while (end < n && !(keys[end] < keys[end - 1])) ++end;
      for (int64_t i = first; i < end; ++i) order[i] = i;
    }
    ends[runs++] = end;
  }
  while (runs > 1) {
    int64_t merged = 0;
    for (int64_t run = 0, first = 0; run < runs; run += 2) {
      const int64_t middle = ends[run], end = run + 1 < runs ? ends[run + 1] : middle;
      for (int64_t i = first, j = middle, k = first; k < end; ++k) {
        const bool right = i == middle || (j < end && keys[from[j]] < keys[from[i]]);
        to[k] = from[right ? j : i];
        j += right;
        i += !right;
      }
      first = ends[merged++] = end;
    }
    runs = merged;
    int64_t* swap = from;
    from = to;
    to = swap;
  }
  if (from != order) copy(order, from, n);
}

inline void sort_descending(const double* keys, int64_t* order, int64_t n, Scratch& scratch) {
  ScratchScope scope(scratch);
  double* negated = scratch.take<double>(n);
  for (int64_t i = 0; i < n; ++i) negated[i] = -keys[i];
  sort_ascending(negated, order, n, scratch);
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
