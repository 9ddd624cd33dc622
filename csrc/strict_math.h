// Stops a compilation whose options let the compiler change results. csrc/CMakeLists.txt takes such options back; this is for
// compilers and ways to give options that it does not know.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(__ASSOCIATIVE_MATH__) || \
    defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "svdrd's kernels need NaN, signed zeros and the order of sums: compile without -ffast-math, -Ofast and their parts"
#endif
