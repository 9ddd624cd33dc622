// From matrices in memory to matrices in the lanes and back: interleaving, exact scaling by powers of two, non-finite
// items.
#pragma once

#include "simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Where the matrices of one group lie: entry (i, j) of the matrix in lane l is at base[l][i * row_stride + j *
// column_stride].
template <typename T>
struct Placement {
  T* base[lane_count];
  int64_t row_stride;
  int64_t column_stride;
  int count;  // lanes in use; the others are zero matrices
};

template <typename W, typename T>
void load(const Placement<const T>& from, int64_t rows, int64_t columns, Pack<W>* a) {
  W* entries = reinterpret_cast<W*>(a);
  const int64_t stride = row_stride(columns);
  for (int l = 0; l < lane_count; ++l) {
    for (int64_t i = 0; i < rows; ++i) {
      W* to = entries + i * stride * lane_count + l;
      if (l < from.count) {
        const T* source = from.base[l] + i * from.row_stride;
        for (int64_t j = 0; j < columns; ++j) to[j * lane_count] = static_cast<W>(source[j * from.column_stride]);
      } else {
        for (int64_t j = 0; j < columns; ++j) to[j * lane_count] = W(0);
      }
    }
  }
}

// Column j of lane l's matrix goes to column rank[l * columns + j], or to column j where rank is null.
// + 0 turns -0 into +0: which zero a lane holds may depend on how often its neighbours made it rotate by (1, 0).
template <typename T, typename W>
void store(const Pack<W>* a, int64_t rows, int64_t columns, const int32_t* rank, const Placement<T>& to) {
  const W* entries = reinterpret_cast<const W*>(a);
  const int64_t stride = row_stride(columns);
  for (int l = 0; l < to.count; ++l) {
    const int32_t* own = rank == nullptr ? nullptr : rank + l * columns;
    for (int64_t i = 0; i < rows; ++i) {
      T* target = to.base[l] + i * to.row_stride;
      const W* source = entries + i * stride * lane_count + l;
      if (rank == nullptr) {
        for (int64_t j = 0; j < columns; ++j)
          target[j * to.column_stride] = static_cast<T>(source[j * lane_count] + W(0));
      } else {
        for (int64_t j = 0; j < columns; ++j)
          target[own[j] * to.column_stride] = static_cast<T>(source[j * lane_count] + W(0));
      }
    }
  }
}

template <typename T>
void store_nan(int64_t rows, int64_t columns, int lane, const Placement<T>& to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      to.base[lane][i * to.row_stride + j * to.column_stride] = std::numeric_limits<T>::quiet_NaN();
}

struct GroupScale {
  int exponent[lane_count];  // the matrix in the lane was multiplied by 2^-exponent
  bool finite[lane_count];   // a matrix with NaN or Inf was replaced by zeros
};

inline GroupScale shift_lanes(const GroupScale& scale, int count) {
  GroupScale r = scale;
  for (int l = 0; l + count < lane_count; ++l) {
    r.exponent[l] = scale.exponent[l + count];
    r.finite[l] = scale.finite[l + count];
  }
  return r;
}

template <typename T>
inline T power_of_two(int exponent) {
  return sizeof(T) == 4 ? static_cast<T>(__builtin_ldexpf(1.0f, exponent))
                        : static_cast<T>(__builtin_ldexp(1.0, exponent));
}

// a * 2^exponent in two steps, since 2^149 itself is no float. Exponents beyond what two steps reach saturate.
template <typename T>
struct ScaleFactors {
  Pack<T> first;
  Pack<T> second;

  explicit ScaleFactors(const int* exponent, int sign) {
    constexpr int limit = 2 * (std::numeric_limits<T>::max_exponent - 3);
    for (int l = 0; l < lane_count; ++l) {
      int total = sign * exponent[l];
      total = total > limit ? limit : total < -limit ? -limit : total;
      const int half = total / 2;
      first.set_lane(l, power_of_two<T>(half));
      second.set_lane(l, power_of_two<T>(total - half));
    }
  }
  Pack<T> operator()(const Pack<T>& a) const { return (a * first) * second; }
};

// Scales every matrix exactly so that its largest entry, or `floor` if that is larger, falls into [1/2, 1).
template <typename W>
GroupScale normalise(Pack<W>* a, int64_t rows, int64_t columns, double floor) {
  const int64_t stride = row_stride(columns);
  Pack<W> largest(W(0));
  Mask<W> not_finite = no_lanes<W>();
  const Pack<W> bound(std::numeric_limits<W>::max());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const Pack<W> size = abs(a[i * stride + j]);
      not_finite = not_finite | ~(size <= bound);
      largest = max(size, largest);
    }
  const Pack<W> refused = select(not_finite, Pack<W>(W(1)), Pack<W>(W(0)));
  GroupScale scale;
  for (int l = 0; l < lane_count; ++l) {
    scale.finite[l] = refused.lane(l) == W(0);
    const double lane_largest = static_cast<double>(largest.lane(l));
    const double size = lane_largest > floor ? lane_largest : floor;
    scale.exponent[l] = 0;
    if (scale.finite[l] && size > 0) (void)__builtin_frexp(size, &scale.exponent[l]);
  }
  const ScaleFactors<W> factors(scale.exponent, -1);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      a[i * stride + j] = select(not_finite, Pack<W>(W(0)), factors(a[i * stride + j]));
  return scale;
}

// a * 2^exponent with what overflows clamped to the largest finite number.
template <typename T>
void scale_and_clamp(Pack<T>* a, int64_t rows, int64_t columns, const int* exponent) {
  const int64_t stride = row_stride(columns);
  const ScaleFactors<T> factors(exponent, 1);
  const Pack<T> bound(std::numeric_limits<T>::max());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) a[i * stride + j] = max(min(factors(a[i * stride + j]), bound), -bound);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
