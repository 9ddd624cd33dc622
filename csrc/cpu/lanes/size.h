// Square sizes of which the compiler knows: a kernel that is compiled for one of them has constant strides and loops that
// can be unrolled (docs/design/cpu_small.md has what that brings). Others go by the numbers that they are given.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Not in the groups of 4 lanes beside which AVX2 and AVX-512 have larger ones: a call on so few matrices is no faster
// for it.
#if defined(__AVX2__)
constexpr bool knows_sizes = lane_count > 4;
#else
constexpr bool knows_sizes = true;
#endif

// run(std::integral_constant<int64_t, N>) with N the size of a square matrix if it is one of `sizes`, else 0.
template <int64_t... sizes, typename Run>
inline void with_known_size(int64_t rows, int64_t columns, const Run& run) {
  bool found = false;
  if constexpr (knows_sizes)
    found = ((rows == sizes && columns == sizes && (run(std::integral_constant<int64_t, sizes>{}), true)) || ...);
  if (!found) run(std::integral_constant<int64_t, 0>{});
}

// What `given` is where the size is not known.
template <int64_t known>
constexpr int64_t known_or(int64_t given) {
  return known != 0 ? known : given;
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
