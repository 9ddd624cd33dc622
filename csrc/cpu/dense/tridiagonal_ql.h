// Eigenvalues and eigenvectors of small tridiagonal matrices, the leaves of divide and conquer: as many at a time as a
// vector has lanes. Implicit QL with Wilkinson's shift (EISPACK's tql2).
//
// One rotation waits for the one before it, so a scalar QL leaves most of the processor idle. Here all lanes work on the
// same eigenvalue l and sweep over the same rows; where a lane's own unreduced block is shorter, or converged, it keeps
// its values by selection.
#pragma once

#include "cpu/dense/vector.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// The largest size of a leaf.
constexpr int64_t leaf_size = 12;

// One matrix in each lane: its diagonal, off-diagonal, and the rows that its rotations turn.
struct Leaves {
  Lanes d[leaf_size];
  Lanes e[leaf_size];
  Lanes rows[leaf_size * leaf_size];
};

// On return d holds the eigenvalues, in no special order. Off-diagonals up to `negligible` are treated as zero; those of a
// lane whose matrix is smaller than n must be. `known`: the number of columns if the compiler may know it, else 0.
template <int64_t known>
inline void ql_of_leaves(Leaves& leaves, int64_t n, double negligible, int64_t given_columns) {
  constexpr int most_iterations = 60;
  // Of a smaller square no root is taken: the pair counts as zero.
  constexpr double smallest_square = 1e-300;
  const int64_t columns = known != 0 ? known : given_columns;
  Lanes* const d = leaves.d;
  Lanes* const e = leaves.e;
  const Lanes zero{}, one = splat(1.0);
  LaneMask coupled[leaf_size];
  for (int64_t l = 0; l + 1 < n; ++l) {
    for (int iteration = 0; iteration < most_iterations; ++iteration) {
      // coupled[i]: row i + 1 is in the unreduced block that begins at l.
      LaneMask inside = zero == zero;
      Lanes bottom = d[l];
      int64_t last = l;
      for (int64_t i = l; i + 1 < n; ++i) {
        inside &= magnitude(e[i]) > 0.5 * epsilon * (magnitude(d[i]) + magnitude(d[i + 1])) + negligible;
        if (!any_lane(inside)) break;
        coupled[i] = inside;
        bottom = inside ? d[i + 1] : bottom;
        last = i + 1;
      }
      if (last == l) break;
      const Lanes difference = (d[l + 1] - d[l]) / (2 * e[l]);
      const Lanes root = square_root(difference * difference + 1);
      Lanes g = bottom - d[l] + e[l] / (difference + (difference < 0 ? -root : root));
      Lanes s = one, c = one, p = zero;
      Lanes carried[known != 0 ? known : leaf_size];
#pragma GCC unroll 8
      for (int64_t j = 0; j < columns; ++j) carried[j] = leaves.rows[last * columns + j];
      for (int64_t i = last - 1; i >= l; --i) {
        const LaneMask here = coupled[i];
        const Lanes f = s * e[i], b = c * e[i];
        const Lanes square = f * f + g * g;
        const LaneMask turns = square > smallest_square;
        const Lanes inverse = native_reciprocal_sqrt<double>(turns ? square : one);
        const Lanes sine = turns ? f * inverse : zero, cosine = turns ? g * inverse : one;
        // What couples the rows i + 1 and i + 2, if both are in the block.
        if (i + 1 < last) e[i + 1] = coupled[i + 1] ? (turns ? square * inverse : zero) : e[i + 1];
        const Lanes shifted = d[i + 1] - p;
        const Lanes r = (d[i] - shifted) * sine + 2 * cosine * b;
        const Lanes next_p = sine * r;
        d[i + 1] = here ? shifted + next_p : d[i + 1];
        g = here ? cosine * r - b : g;
        p = here ? next_p : p;
        s = here ? sine : s;
        c = here ? cosine : c;
        const Lanes turn_c = here ? cosine : one, turn_s = here ? sine : zero;
        Lanes* const row = leaves.rows + i * columns;
#pragma GCC unroll 8
        for (int64_t j = 0; j < columns; ++j) {
          const Lanes upper = row[j];
          row[j + columns] = turn_s * upper + turn_c * carried[j];
          carried[j] = turn_c * upper - turn_s * carried[j];
        }
      }
#pragma GCC unroll 8
      for (int64_t j = 0; j < columns; ++j) leaves.rows[l * columns + j] = carried[j];
      d[l] = coupled[l] ? d[l] - p : d[l];
      e[l] = coupled[l] ? g : e[l];
    }
  }
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
