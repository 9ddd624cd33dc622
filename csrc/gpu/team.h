// What the per-matrix algorithms of jacobi*.h are written in: a team of lanes that works on one matrix.
//
// The same source runs on a GPU, where a lane is a thread (gpu/team_device.cuh), and on the host, where one thread plays all
// lanes one after the other (checks/team_host.h). Code outside of each() and map() is uniform: every lane computes the same. A
// team offers
//
//   size()                 the number of lanes
//   each(f)                f(lane) on every lane
//   map(f)                 a value of f(lane) for every lane, of type Lanes<...>
//   at(values, lane)       a lane's own value, to be read and written inside each() and map()
//   group_sum(v, width)    the sum of v over each aligned group of `width` lanes, a power of two up to 32, on all of them
//   any(flags)             whether the flag is set on any lane of the teams that run in step with this one
//   sync()                 what the lanes wrote before it can be read by all of them after it
//
// Teams that share a warp run in step: they have the same sizes, and only any() may decide how often a loop runs.
//
// Every product that is added to something is an explicit fma(), and the compilers may not make others: so a device and
// the host give the same bits, and two copies of one function agree wherever they are inlined.
#pragma once

#include <cstdint>
#include <limits>
#ifndef __CUDACC__
#include <cmath>
#endif

#include "strict_math.h"

#ifdef __CUDACC__
#define SVDRD_LANES __device__ inline
#define SVDRD_BOTH __host__ __device__ inline
#else
#define SVDRD_LANES inline
#define SVDRD_BOTH inline
#endif

namespace svdrd {
namespace teams {

SVDRD_LANES float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
SVDRD_LANES double fma(double a, double b, double c) { return ::fma(a, b, c); }
SVDRD_LANES float square_root(float a) { return ::sqrtf(a); }
SVDRD_LANES double square_root(double a) { return ::sqrt(a); }
SVDRD_LANES float magnitude(float a) { return ::fabsf(a); }
SVDRD_LANES double magnitude(double a) { return ::fabs(a); }
SVDRD_LANES float times_power_of_two(float a, int exponent) { return ::ldexpf(a, exponent); }
SVDRD_LANES double times_power_of_two(double a, int exponent) { return ::ldexp(a, exponent); }

template <typename T>
SVDRD_LANES T larger(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
SVDRD_LANES T smaller(T a, T b) {
  return b < a ? b : a;
}

// e with a = f 2^e, 1/2 <= f < 1; 0 for a = 0.
SVDRD_LANES int exponent_of(double a) {
  int exponent = 0;
  (void)::frexp(a, &exponent);
  return exponent;
}

// sqrt(a^2 + b^2) of nonnegative numbers without overflow or underflow.
template <typename T>
SVDRD_LANES T hypotenuse(T a, T b) {
  const T most = larger(a, b), least = smaller(a, b);
  if (most == T(0)) return T(0);
  const T ratio = least / most;
  return most * square_root(fma(ratio, ratio, T(1)));
}

template <typename T>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float epsilon = 0x1p-23f;
  static constexpr float largest = std::numeric_limits<float>::max();
  static constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  static constexpr float denormal = std::numeric_limits<float>::denorm_min();
  // A matrix is scaled so that its largest entry lies in [2^39, 2^40): squares of entries 2^-90 times smaller than it
  // neither underflow, nor do sums of 2^20 of the largest squares overflow.
  static constexpr int headroom = 40;
  // A column whose squared length is below this has lost digits to underflow and counts as zero.
  static constexpr float negligible_square = 0x1p-103f;
  // Beyond this 1 + x^2 is x^2 to rounding.
  static constexpr float huge = 0x1p15f;
  // Relative to the largest singular value; what the gradient divides by is at least this, so that no quotient overflows.
  static constexpr float smallest_divisor = 1e-25f;
};

template <>
struct Limits<double> {
  static constexpr double epsilon = 0x1p-52;
  static constexpr double largest = std::numeric_limits<double>::max();
  static constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  static constexpr double denormal = std::numeric_limits<double>::denorm_min();
  static constexpr int headroom = 300;
  static constexpr double negligible_square = 0x1p-970;
  static constexpr double huge = 0x1p30;
  static constexpr double smallest_divisor = 1e-250;
};

}  // namespace teams
}  // namespace svdrd
