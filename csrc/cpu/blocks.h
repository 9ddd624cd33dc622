// The blocks of a stack of images by their number.
#pragma once

#include "cpu/kernels.h"

namespace svdrd {
namespace SVDRD_ISA {

// Where block `item` of a stack of images begins.
inline int64_t block_offset(const LossProblem& problem, int64_t item) {
  const int64_t across = problem.width / problem.block_width;
  const int64_t in_image = (problem.height / problem.block_height) * across;
  const int64_t block = item % in_image;
  return (item / in_image) * problem.height * problem.width + (block / across) * problem.block_height * problem.width +
         (block % across) * problem.block_width;
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
