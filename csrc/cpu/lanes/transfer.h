// From matrices in memory to matrices in the lanes and back: interleaving, exact scaling by powers of two, non-finite
// items. What is called once or twice a group, from many places, is not inlined: GCC would spend a tenth of its time there.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Where the matrices of one group lie: entry (i, j) of the matrix in lane l is at base[l][i * row_stride + j *
// column_stride].
template <typename T>
struct Placement {
  T* base[lane_count];
  int64_t row_stride;
  int64_t column_stride;
  int count;  // lanes in use; in the others load() writes zero matrices
};

// `to` without the lanes that are not wanted, which store() passes over.
template <typename T>
Placement<T> only(Placement<T> to, const bool* wanted) {
  for (int l = 0; l < to.count; ++l)
    if (!wanted[l]) to.base[l] = nullptr;
  return to;
}

// GCC has __builtin_shufflevector from version 12 on, Clang has no __builtin_shuffle.
#if defined(__clang__)
#define SVDRD_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SVDRD_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif

// Four numbers of each of four rows become four of each of four columns.
template <typename T>
struct Four {
  typedef T Vector __attribute__((vector_size(4 * sizeof(T))));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index __attribute__((vector_size(4 * sizeof(T))));
  Vector row[4];

  void transpose() {
    const Vector a = SVDRD_SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = SVDRD_SHUFFLE(row[0], row[1], 2, 6, 3, 7);
    const Vector c = SVDRD_SHUFFLE(row[2], row[3], 0, 4, 1, 5), d = SVDRD_SHUFFLE(row[2], row[3], 2, 6, 3, 7);
    row[0] = SVDRD_SHUFFLE(a, c, 0, 1, 4, 5);
    row[1] = SVDRD_SHUFFLE(a, c, 2, 3, 6, 7);
    row[2] = SVDRD_SHUFFLE(b, d, 0, 1, 4, 5);
    row[3] = SVDRD_SHUFFLE(b, d, 2, 3, 6, 7);
  }
};
#undef SVDRD_SHUFFLE

// How a matrix in memory and its Packs are walked: along the index whose entries lie side by side in memory.
struct Walk {
  bool by_columns;
  int64_t outer_count, inner_count;    // entries of the other index, and of the contiguous one
  int64_t outer_stride, inner_stride;  // from entry to entry in memory
  int64_t outer_packs, inner_packs;    // from Pack to Pack

  template <typename T>
  Walk(const Placement<T>& placement, int64_t rows, int64_t columns, int64_t stride) {
    by_columns = placement.row_stride == 1 && placement.column_stride != 1;
    outer_count = by_columns ? columns : rows;
    inner_count = by_columns ? rows : columns;
    outer_stride = by_columns ? placement.column_stride : placement.row_stride;
    inner_stride = by_columns ? placement.row_stride : placement.column_stride;
    outer_packs = by_columns ? 1 : stride;
    inner_packs = by_columns ? stride : 1;
  }
};

// Fetches the matrices into the caches, for writing if `write`: the group after the present one, while that is computed.
template <bool write, typename T>
void prefetch(const Placement<T>& placement, int64_t rows, int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  const Walk walk(placement, rows, columns, 0);
  for (int l = 0; l < placement.count; ++l)
    for (int64_t i = 0; i < walk.outer_count; ++i)
      for (int64_t j = 0; j < walk.inner_count; j += line)
        __builtin_prefetch(placement.base[l] + i * walk.outer_stride + j * walk.inner_stride, write);
}

// `padded` columns of Packs are written, those beyond the matrix with zeros.
template <typename W, typename T>
[[gnu::noinline]] void load(const Placement<const T>& from, int64_t rows, int64_t columns, int64_t padded, Pack<W>* a) {
  typedef W Converted __attribute__((vector_size(4 * sizeof(W))));
  W* entries = reinterpret_cast<W*>(a);
  const int64_t stride = row_stride(padded);
  const Walk walk(from, rows, columns, stride);
  int l = 0;
  if (walk.inner_stride == 1)
    for (; l + 4 <= from.count; l += 4)
      for (int64_t i = 0; i < walk.outer_count; ++i) {
        const int64_t at = i * walk.outer_stride;
        W* to = entries + i * walk.outer_packs * lane_count + l;
        int64_t j = 0;
        for (; j + 4 <= walk.inner_count; j += 4) {
          Four<T> four;
          for (int r = 0; r < 4; ++r) __builtin_memcpy(&four.row[r], from.base[l + r] + at + j, sizeof(four.row[r]));
          four.transpose();
          for (int r = 0; r < 4; ++r) {
            Converted values;
            native_convert(four.row[r], values);
            __builtin_memcpy(to + (j + r) * walk.inner_packs * lane_count, &values, sizeof(values));
          }
        }
        for (; j < walk.inner_count; ++j)
          for (int r = 0; r < 4; ++r)
            to[j * walk.inner_packs * lane_count + r] = static_cast<W>(from.base[l + r][at + j]);
      }
  for (; l < lane_count; ++l)
    for (int64_t i = 0; i < rows; ++i) {
      W* to = entries + i * stride * lane_count + l;
      for (int64_t j = 0; j < columns; ++j)
        to[j * lane_count] =
            l < from.count ? static_cast<W>(from.base[l][i * from.row_stride + j * from.column_stride]) : W(0);
    }
  const Pack<W> zero(W(0));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = columns; j < padded; ++j) a[i * stride + j] = zero;
}

// Writes columns that `store` put one after the other, `columns` of `rows` entries each, as rows: both multiples of 4.
template <typename T>
void transpose(const T* from, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += 4)
    for (int64_t j = 0; j < columns; j += 4) {
      Four<T> four;
      for (int r = 0; r < 4; ++r) __builtin_memcpy(&four.row[r], from + (j + r) * rows + i, sizeof(four.row[r]));
      four.transpose();
      for (int r = 0; r < 4; ++r) __builtin_memcpy(to + (i + r) * to_stride + j, &four.row[r], sizeof(four.row[r]));
    }
}

// store() from the lane `first` on, entry by entry.
template <typename T, typename W>
SVDRD_ONE_COPY void store_entries(const Pack<W>* a, int first, int64_t rows, int64_t columns, int64_t stride,
                                  const int32_t* rank, const Placement<T>& to) {
  for (int l = first; l < to.count; ++l) {
    if (to.base[l] == nullptr) continue;
    const int32_t* own = rank == nullptr ? nullptr : rank + l * columns;
    for (int64_t i = 0; i < rows; ++i) {
      T* target = to.base[l] + i * to.row_stride;
      const W* source = reinterpret_cast<const W*>(a + i * stride) + l;
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

// Column j of lane l's matrix goes to column rank[l * columns + j], or to column j where rank is null.
// + 0 turns -0 into +0: which zero a lane holds may depend on how often its neighbours made it rotate by (1, 0).
template <typename T, typename W>
[[gnu::noinline]] void store(const Pack<W>* a, int64_t rows, int64_t columns, int64_t padded, const int32_t* rank,
                             const Placement<T>& to) {
  typedef W Lanes __attribute__((vector_size(4 * sizeof(W))));
  const W* entries = reinterpret_cast<const W*>(a);
  const int64_t stride = row_stride(padded);
  const Walk walk(to, rows, columns, stride);
  int l = 0;
  // To rows with their entries in another order: as columns into a buffer first, because those need no reordering.
  constexpr int64_t buffered = 1024;
  if (rank != nullptr && to.column_stride == 1 && rows % 4 == 0 && columns % 4 == 0 && rows * columns <= buffered) {
    T buffer[4][buffered];
    for (; l + 4 <= to.count; l += 4) {
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t i = 0; i < rows; i += 4) {
          Four<T> four;
          for (int r = 0; r < 4; ++r) {
            Lanes values;
            __builtin_memcpy(&values, entries + ((i + r) * stride + j) * lane_count + l, sizeof(values));
            native_convert(values + W(0), four.row[r]);
          }
          four.transpose();
          for (int r = 0; r < 4; ++r)
            __builtin_memcpy(buffer[r] + rank[(l + r) * columns + j] * rows + i, &four.row[r], sizeof(four.row[r]));
        }
      for (int r = 0; r < 4; ++r)
        if (to.base[l + r] != nullptr) transpose(buffer[r], rows, columns, to.base[l + r], to.row_stride);
    }
  } else if (walk.inner_stride == 1 && (rank == nullptr || walk.by_columns)) {
    for (; l + 4 <= to.count; l += 4)
      for (int64_t i = 0; i < walk.outer_count; ++i) {
        const W* from = entries + i * walk.outer_packs * lane_count + l;
        T* targets[4];
        for (int r = 0; r < 4; ++r)
          targets[r] = to.base[l + r] == nullptr
                           ? nullptr
                           : to.base[l + r] + (rank == nullptr ? i : rank[(l + r) * columns + i]) * walk.outer_stride;
        int64_t j = 0;
        for (; j + 4 <= walk.inner_count; j += 4) {
          Four<T> four;
          for (int r = 0; r < 4; ++r) {
            Lanes values;
            __builtin_memcpy(&values, from + (j + r) * walk.inner_packs * lane_count, sizeof(values));
            native_convert(values + W(0), four.row[r]);
          }
          four.transpose();
          for (int r = 0; r < 4; ++r)
            if (targets[r] != nullptr) __builtin_memcpy(targets[r] + j, &four.row[r], sizeof(four.row[r]));
        }
        for (; j < walk.inner_count; ++j)
          for (int r = 0; r < 4; ++r)
            if (targets[r] != nullptr)
              targets[r][j] = static_cast<T>(from[j * walk.inner_packs * lane_count + r] + W(0));
      }
  } else if (rank != nullptr) {
    // To rows in another order that are no multiples of 4: entry by entry, but read four lanes at a time.
    for (; l + 4 <= to.count; l += 4)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          Lanes values;
          __builtin_memcpy(&values, entries + (i * stride + j) * lane_count + l, sizeof(values));
          typename Four<T>::Vector converted;
          native_convert(values + W(0), converted);
          for (int r = 0; r < 4; ++r)
            if (to.base[l + r] != nullptr)
              to.base[l + r][i * to.row_stride + rank[(l + r) * columns + j] * to.column_stride] = converted[r];
        }
  }
  if (l < to.count) store_entries(a, l, rows, columns, stride, rank, to);
}

template <typename T>
[[gnu::noinline]] void store_nan(int64_t rows, int64_t columns, int lane, const Placement<T>& to) {
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

// 2^exponent, a normal number.
template <typename T>
inline T power_of_two(int exponent) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int mantissa_bits = std::numeric_limits<T>::digits - 1, bias = std::numeric_limits<T>::max_exponent - 1;
  const Bits bits = static_cast<Bits>(exponent + bias) << mantissa_bits;
  T r;
  __builtin_memcpy(&r, &bits, sizeof(r));
  return r;
}

// The e with a in [2^(e-1), 2^e), for positive finite a: as of frexp(), which is a call.
inline int exponent_above(double a) {
  uint64_t bits;
  __builtin_memcpy(&bits, &a, sizeof(bits));
  int exponent = static_cast<int>(bits >> 52) - 1022;
  if (exponent == -1022) (void)__builtin_frexp(a, &exponent);  // a denormal
  return exponent;
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
[[gnu::noinline]] GroupScale normalise(Pack<W>* a, int64_t rows, int64_t columns, double floor) {
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
    scale.exponent[l] = scale.finite[l] && size > 0 ? exponent_above(size) : 0;
  }
  const ScaleFactors<W> factors(scale.exponent, -1);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      a[i * stride + j] = select(not_finite, Pack<W>(W(0)), factors(a[i * stride + j]));
  return scale;
}

// a * 2^(sign exponent) with what overflows clamped to the largest finite number.
template <typename T>
[[gnu::noinline]] void scale_and_clamp(Pack<T>* a, int64_t rows, int64_t columns, const int* exponent, int sign) {
  const int64_t stride = row_stride(columns);
  const ScaleFactors<T> factors(exponent, sign);
  const Pack<T> bound(std::numeric_limits<T>::max());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) a[i * stride + j] = max(min(factors(a[i * stride + j]), bound), -bound);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
