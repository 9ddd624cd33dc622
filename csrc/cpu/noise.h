// What the kernels take for noise of float64 matrices, and how far they go to make a polar factor a partial isometry again.
#pragma once

namespace svdrd {
namespace SVDRD_ISA {

// Singular values up to this times s_1 may be noise of what is exactly zero: of flat matrices of 500 rows 45 eps was seen.
constexpr double noise_of_zero = 0x1p-44;

// A step of the iteration of Newton and Schulz takes a singular value of 1 - t to 1 - 1.5 t^2 or more, so after one that
// changed no entry by more than this nothing is left but rounding.
constexpr double isometry_change = 1e-8;

// From 0.05 on, values are at 1 after so many. They multiply a value that is zero but for rounding by 1.5 each.
constexpr int isometry_steps = 16;

}  // namespace SVDRD_ISA
}  // namespace svdrd
