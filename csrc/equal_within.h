// When two entries of polar factors are equal, on the CPU and on GPUs.
#pragma once

namespace svdrd {

// Entries of two polar factors that differ by no more than this many eps of their type are equal but for rounding, and
// the sign of their difference is 0. svdrd/reference/definitions.py has the same number, and its reason.
constexpr int equal_within = 16;

}  // namespace svdrd
