// Symmetric eigenvalue problem in float64: tridiagonalisation, divide and conquer, back-transformation.
//
// Sources: divide and conquer is Cuppen's with the deflation of Dongarra and Sorensen (1987) and the eigenvectors of Gu
// and Eisenstat (1995); the secular equation is solved by the "middle way" of Li (LAPACK Working Note 89), as many roots
// at a time as a vector has lanes.
// Eigenvectors are rows throughout: permutations and plane rotations then touch contiguous memory.
#pragma once

#include "cpu/dense/tridiagonal_ql.h"
#include "cpu/dense/tridiagonalise.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

// What a merge of k poles shares: its roots and the sums over all poles, unless they are too few to be worth it.
template <typename Part>
inline void share_merge(Scratch& scratch, int64_t k, int64_t count, const Part& part) {
  constexpr int64_t least_shared = 128;
  if (k >= least_shared)
    share(scratch, count, part);
  else
    for (int64_t i = 0; i < count; ++i) part(i);
}

// The secular equation f = 1 / rho + sum_i z_i^2 / (d_i - lambda) = 0: k poles d, ascending and distinct, z2 = z^2, no z_i
// zero.
struct SecularEquation {
  int64_t k;
  const double* d;
  const double* z2;
  double inverse_rho;
  double reach;  // no root is further above the last pole
};

// Roots that are sought together, one in each lane: root j lies between poles j and j + 1, the last one above every pole.
// It takes the two poles below it for its interpolation.
struct SecularRoots {
  LaneMask low, is_last, done;
  Lanes origin;        // the pole near by
  Lanes t;             // the root is origin + t
  Lanes below, above;  // bounds on t
};

// What of `roots` follows from the numbers of the roots. Those beyond the last one repeat it.
inline void place_roots(const SecularEquation& equation, const int64_t* numbers, int64_t count, SecularRoots& roots) {
  for (int64_t l = 0; l < lanes<double>; ++l) {
    const int64_t j = numbers[l < count ? l : count - 1];
    roots.is_last[l] = j == equation.k - 1 ? -1 : 0;
    roots.low[l] = j == equation.k - 1 ? j - 1 : j;
  }
}

struct NearPoles {
  Lanes d_low, d_high, z2_low, z2_high;

  NearPoles(const SecularEquation& equation, const SecularRoots& roots) {
    for (int64_t l = 0; l < lanes<double>; ++l) {
      d_low[l] = equation.d[roots.low[l]];
      d_high[l] = equation.d[roots.low[l] + 1];
      z2_low[l] = equation.z2[roots.low[l]];
      z2_high[l] = equation.z2[roots.low[l] + 1];
    }
  }
};

// Brackets the roots and sets t to those of the two nearest poles with everything else held constant.
inline void start_roots(const SecularEquation& equation, SecularRoots& roots) {
  constexpr int64_t w = lanes<double>;
  const NearPoles near(equation, roots);
  const LaneMask is_last = roots.is_last;
  const int64_t first_low = roots.low[0], last_low = roots.low[w - 1];
  const Lanes zero{}, gap = near.d_high - near.d_low;
  // The function at the middle of the interval, without its two nearest poles.
  const Lanes middle = is_last ? splat(equation.reach / 2) : gap / 2;
  const Lanes middle_origin = is_last ? near.d_high : near.d_low;
  Lanes rest = splat(equation.inverse_rho);
  for (int64_t i = 0; i < equation.k; ++i) {
    const Lanes term = equation.z2[i] * reciprocal((equation.d[i] - middle_origin) - middle);
    if (i >= first_low && i <= last_low + 1) {
      const LaneMask skip = (roots.low == i) | (roots.low == i - 1);
      rest += skip ? zero : term;
    } else {
      rest += term;
    }
  }
  const Lanes of_near = near.z2_low / ((near.d_low - middle_origin) - middle) +
                        near.z2_high / ((near.d_high - middle_origin) - middle);
  const LaneMask left = rest + of_near >= 0;
  const LaneMask from_low = left & ~is_last;
  roots.origin = from_low ? near.d_low : near.d_high;
  roots.below = is_last ? (left ? zero : middle) : (left ? zero : -gap / 2);
  roots.above = is_last ? (left ? middle : splat(equation.reach)) : (left ? gap / 2 : zero);
  const Lanes a0 = is_last ? near.z2_low + near.z2_high - rest * gap
                           : (left ? rest * gap + near.z2_low + near.z2_high : rest * gap - near.z2_low - near.z2_high);
  const Lanes b0 = is_last ? near.z2_high * gap : (left ? near.z2_low * gap : -near.z2_high * gap);
  // Interior: rest t^2 - a0 t + b0 = 0; last: rest t^2 - a0 t - b0 = 0, the positive root.
  const Lanes root0 = square_root(magnitude(is_last ? a0 * a0 + 4 * b0 * rest : a0 * a0 - 4 * b0 * rest));
  const Lanes inner = left ? (a0 > 0 ? 2 * b0 / (a0 + root0) : (a0 - root0) / (2 * rest))
                           : (a0 < 0 ? 2 * b0 / (a0 - root0) : (a0 + root0) / (2 * rest));
  const Lanes outer = a0 < 0 ? 2 * b0 / (root0 - a0) : (a0 + root0) / (2 * rest);
  const Lanes t = is_last ? outer : inner;
  roots.t = ((t > roots.below) & (t < roots.above)) ? t : (roots.below + roots.above) / 2;
  roots.done = LaneMask{};
}

// Up to so many steps towards the roots; fewer where all are done before.
inline void improve_roots(const SecularEquation& equation, int steps, SecularRoots& roots) {
  constexpr int64_t w = lanes<double>;
  const double* const d = equation.d;
  const double* const z2 = equation.z2;
  const NearPoles near(equation, roots);
  const LaneMask low = roots.low, is_last = roots.is_last;
  const int64_t first_low = low[0], last_low = low[w - 1];
  const Lanes zero{}, origin = roots.origin;
  Lanes t = roots.t, below = roots.below, above = roots.above;
  LaneMask done = roots.done;
  for (int step_number = 1; step_number <= steps && !all_lanes(done); ++step_number) {
    Lanes psi = zero, psi_slope = zero, phi = zero, phi_slope = zero;
    int64_t i = 0;
    for (; i <= first_low; ++i) {
      const Lanes inverse = reciprocal((d[i] - origin) - t), term = z2[i] * inverse;
      psi += term;
      psi_slope += term * inverse;
    }
    for (; i <= last_low; ++i) {
      const Lanes inverse = reciprocal((d[i] - origin) - t), term = z2[i] * inverse, slope = term * inverse;
      const LaneMask is_low = low >= i;
      psi += is_low ? term : zero;
      psi_slope += is_low ? slope : zero;
      phi += is_low ? zero : term;
      phi_slope += is_low ? zero : slope;
    }
    for (; i < equation.k; ++i) {
      const Lanes inverse = reciprocal((d[i] - origin) - t), term = z2[i] * inverse;
      phi += term;
      phi_slope += term * inverse;
    }
    const Lanes f = equation.inverse_rho + psi + phi, slope = psi_slope + phi_slope;
    const Lanes noise =
        epsilon * (4 * (magnitude(psi) + magnitude(phi)) + equation.inverse_rho + magnitude(t) * slope);
    done |= magnitude(f) <= noise;
    if (all_lanes(done)) break;
    below = f < 0 ? t : below;
    above = f < 0 ? above : t;
    const Lanes low_gap = (near.d_low - origin) - t, high_gap = (near.d_high - origin) - t;
    const Lanes a = (low_gap + high_gap) * f - low_gap * high_gap * slope;
    const Lanes b = low_gap * high_gap * f;
    const Lanes c_signed = f - low_gap * psi_slope - high_gap * phi_slope;
    const Lanes c = is_last ? magnitude(c_signed) : c_signed;
    const Lanes root = square_root(magnitude(a * a - 4 * b * c));
    const Lanes inner_step = a <= 0 ? (a - root) / (2 * c) : 2 * b / (a + root);
    const Lanes outer_step = a >= 0 ? (a + root) / (2 * c) : 2 * b / (a - root);
    Lanes step = is_last ? outer_step : inner_step;
    step = f * step < 0 ? step : -f / slope;
    Lanes next = t + step;
    // Bisection where the interpolation left the bracket, and now and then in any case, so that every bracket closes.
    const LaneMask trusted = step_number % 16 == 0 ? LaneMask{} : (next > below) & (next < above);
    next = trusted ? next : (below + above) / 2;
    // The convergence is quadratic relative to the distance t from the nearest pole: after so small a step none is
    // needed.
    t = done ? t : next;
    done |= trusted & (magnitude(step) <= 1e-9 * magnitude(t));
  }
  roots.t = t;
  roots.below = below;
  roots.above = above;
  roots.done = done;
}

// lambda: the roots. Row i of gaps holds d_i - lambda_j to full relative accuracy, which is what makes the eigenvectors
// orthogonal. k >= 2, rho > 0.
inline void solve_secular_equation(int64_t k, const double* d, const double* z2, double rho, double* lambda, double* gaps,
                                   int64_t stride, Scratch& scratch) {
  constexpr int64_t w = lanes<double>;
  // Of adjacent roots in the lanes the slowest takes 5.6 steps, the average root 3.7. Those that are late are finished in
  // groups of their own.
  constexpr int first_steps = 4, most_steps = 80;
  double total = 0;
  for (int64_t i = 0; i < k; ++i) total += z2[i];
  const SecularEquation equation{k, d, z2, 1 / rho, rho * total};
  const int64_t groups = (k + w - 1) / w;
  ScratchScope scope(scratch);
  SecularRoots* const roots = scratch.take<SecularRoots>(groups);
  share_merge(scratch, k, groups, [=](int64_t group) {
    int64_t numbers[w];
    for (int64_t l = 0; l < w; ++l) numbers[l] = group * w + l;
    const int64_t left = k - group * w;
    place_roots(equation, numbers, left < w ? left : w, roots[group]);
    start_roots(equation, roots[group]);
    improve_roots(equation, first_steps, roots[group]);
  });
  int64_t* const late = scratch.take<int64_t>(k);
  int64_t late_count = 0;
  for (int64_t j = 0; j < k; ++j)
    if (!roots[j / w].done[j % w]) late[late_count++] = j;
  share_merge(scratch, k, (late_count + w - 1) / w, [=](int64_t part) {
    const int64_t* const numbers = late + part * w;
    const int64_t count = late_count - part * w < w ? late_count - part * w : w;
    SecularRoots together;
    place_roots(equation, numbers, count, together);
    together.done = LaneMask{};
    const auto exchange = [&](bool back) {
      for (int64_t l = 0; l < (back ? count : w); ++l) {
        const int64_t j = numbers[l < count ? l : count - 1];
        SecularRoots& own = roots[j / w];
        if (back) {
          own.t[j % w] = together.t[l];
        } else {
          together.origin[l] = own.origin[j % w];
          together.t[l] = own.t[j % w];
          together.below[l] = own.below[j % w];
          together.above[l] = own.above[j % w];
        }
      }
    };
    exchange(false);
    improve_roots(equation, most_steps, together);
    exchange(true);
  });
  share_merge(scratch, k, groups, [=](int64_t group) {
    const Lanes origin = roots[group].origin, t = roots[group].t, sums = origin + t;
    for (int64_t i = 0; i < k; ++i) store(gaps + i * stride + group * w, (d[i] - origin) - t);
    for (int64_t l = 0; l < w && group * w + l < k; ++l) lambda[group * w + l] = sums[l];
  });
}

// z as the roots imply it (Gu and Eisenstat): with these the computed lambda are the exact eigenvalues of a nearby
// problem.
inline void secular_weights(int64_t k, const double* d, const double* gaps, int64_t stride, const double* z,
                            double* weights, Scratch& scratch) {
  constexpr int64_t w = lanes<double>;
  constexpr int64_t together = 16;
  // So many vectors share a reciprocal. Of poles that are kept no two are closer than rounding, so the product of the
  // distances stays a normalised number.
  constexpr int64_t shared = 4;
  LaneMask index;
  for (int64_t l = 0; l < w; ++l) index[l] = l;
  share_merge(scratch, k, (k + together - 1) / together, [=](int64_t part) {
    const Lanes one = splat(1.0);
    for (int64_t i = part * together; i < k && i < (part + 1) * together; ++i) {
      Lanes product = one;
      for (int64_t first = 0; first < k; first += shared * w) {
        Lanes above = one, below = one;
        for (int64_t j0 = first; j0 < k && j0 < first + shared * w; j0 += w) {
          const LaneMask column = index + j0;
          const Lanes gap = load(gaps + i * stride + j0), pole_gap = d[i] - load(d + j0);
          above *= column < k ? gap : one;
          below *= column < k && column != i ? pole_gap : one;
        }
        product *= above * reciprocal(below);
      }
      double parts[w], total = 1;
      store(parts, product);
      for (int64_t l = 0; l < w; ++l) total *= parts[l];
      weights[i] = __builtin_copysign(__builtin_sqrt(__builtin_fabs(total)), z[i]);
    }
  });
}

// What is wanted beside the eigenvalues: the whole eigenvectors, the first and the last entry of each, which is what the
// values of a larger matrix take of its parts, or nothing.
enum class Wanted { vectors, ends, nothing };

// Joins the eigen decompositions of two halves, sizes n1 and n - n1, coupled by e: rows 0..n1 of q hold eigenvectors in
// columns 0..n1, the other rows in the other columns, d their values. On return all rows of q are eigenvectors, in no
// special order. Where no vectors are wanted, each row of q holds the ends of an eigenvector alone.
inline void merge_halves(double* d, double e, int64_t n, int64_t n1, double* q, int64_t stride, Wanted wanted,
                         Scratch& scratch) {
  constexpr int64_t w = lanes<double>;
  ScratchScope scope(scratch);
  double* z = scratch.take<double>(n);
  int64_t* order = scratch.take<int64_t>(n);
  const double rho = 2 * __builtin_fabs(e);
  const double sign = e < 0 ? -1 : 1;
  const double half = 0.70710678118654752440;
  const bool ends = wanted != Wanted::vectors;
  const int64_t columns = ends ? 2 : n;
  double largest = 0, largest_z = 0;
  for (int64_t i = 0; i < n; ++i) {
    double* row = q + i * stride;
    double& inner = i < n1 ? row[ends ? 1 : n1 - 1] : row[ends ? 0 : n1];
    z[i] = half * (i < n1 ? inner : sign * inner);
    if (ends) inner = 0;
    if (__builtin_fabs(z[i]) > largest_z) largest_z = __builtin_fabs(z[i]);
    if (__builtin_fabs(d[i]) > largest) largest = __builtin_fabs(d[i]);
  }
  sort_ascending(d, order, n, scratch);
  const double tolerance = 4 * epsilon * (largest > largest_z ? largest : largest_z);

  // Deflation. A row's kind says where it is nonzero: 0 in the first half, 1 in both, 2 in the second.
  int64_t* kept = scratch.take<int64_t>(n);
  int64_t* deflated = scratch.take<int64_t>(n);
  int64_t* kind = scratch.take<int64_t>(n);
  for (int64_t i = 0; i < n; ++i) kind[i] = i < n1 ? 0 : 2;
  int64_t k = 0, deflated_count = 0, pending = -1;
  for (int64_t position = 0; position < n; ++position) {
    const int64_t j = order[position];
    if (rho * __builtin_fabs(z[j]) <= tolerance) {
      deflated[deflated_count++] = j;
      continue;
    }
    if (pending >= 0) {
      const double length = __builtin_sqrt(z[j] * z[j] + z[pending] * z[pending]);
      const double c = z[j] / length, s = z[pending] / length;
      if (__builtin_fabs((d[j] - d[pending]) * c * s) <= tolerance) {
        z[j] = length;
        z[pending] = 0;
        rotate(q + pending * stride, q + j * stride, c, s, columns);
        const double d_pending = d[pending], d_j = d[j];
        d[pending] = d_pending * c * c + d_j * s * s;
        d[j] = d_pending * s * s + d_j * c * c;
        if (kind[j] != kind[pending]) kind[j] = kind[pending] = 1;
        deflated[deflated_count++] = pending;
      } else {
        kept[k++] = pending;
      }
    }
    pending = j;
  }
  if (pending >= 0) kept[k++] = pending;
  if (k == 0) return;

  // The rows in the order of their kinds, so that each half of the columns multiplies only the rows that are nonzero
  // there.
  const int64_t rows_stride = ends ? columns : row_stride<double>(n);
  double* rows = scratch.take<double>(n * rows_stride);
  double* new_d = scratch.take<double>(n);
  int64_t* place = scratch.take<int64_t>(k);
  int64_t count[3] = {0, 0, 0};
  for (int64_t i = 0; i < k; ++i) ++count[kind[kept[i]]];
  int64_t next[3] = {0, count[0], count[0] + count[1]};
  for (int64_t i = 0; i < k; ++i) {
    place[i] = next[kind[kept[i]]]++;
    copy(rows + place[i] * rows_stride, q + kept[i] * stride, columns);
  }
  for (int64_t i = 0; i < deflated_count; ++i) {
    copy(rows + (k + i) * rows_stride, q + deflated[i] * stride, columns);
    new_d[k + i] = d[deflated[i]];
  }

  const int64_t padded = round_up(k, w);
  double* poles = scratch.take_zeros<double>(padded);
  double* z_kept = scratch.take<double>(k);
  double* z2 = scratch.take<double>(k);
  const int64_t gap_stride = row_stride<double>(k);
  double* gaps = scratch.take<double>(k * gap_stride);
  for (int64_t i = 0; i < k; ++i) {
    poles[i] = d[kept[i]];
    z_kept[i] = z[kept[i]];
    z2[i] = z_kept[i] * z_kept[i];
  }
  if (k == 1) {
    new_d[0] = poles[0] + rho * z2[0];
    copy(q, rows, columns);
  } else {
    double* weights = scratch.take<double>(k);
    double* components = scratch.take<double>(k * gap_stride);
    solve_secular_equation(k, poles, z2, rho, new_d, gaps, gap_stride, scratch);
    if (wanted == Wanted::nothing) {
      for (int64_t i = 0; i < n; ++i) d[i] = new_d[i];
      return;
    }
    secular_weights(k, poles, gaps, gap_stride, z_kept, weights, scratch);
    constexpr int64_t columns_together = 64;
    share_merge(scratch, k, (padded + columns_together - 1) / columns_together, [=](int64_t part) {
      const int64_t begin = part * columns_together;
      const int64_t end = padded < begin + columns_together ? padded : begin + columns_together;
      for (int64_t j = begin; j < end; j += w) {
        Lanes square{};
        for (int64_t i = 0; i < k; ++i) {
          const Lanes component = weights[i] * reciprocal(load(gaps + i * gap_stride + j));
          store(components + place[i] * gap_stride + j, component);
          square += component * component;
        }
        const Lanes factor = 1 / square_root(square);
        for (int64_t i = 0; i < k; ++i)
          store(components + i * gap_stride + j, load(components + i * gap_stride + j) * factor);
      }
    });
    const int64_t second = count[0];
    if (ends) {
      for (int64_t j = 0; j < padded; j += w) {
        Lanes first_entry{}, last_entry{};
        for (int64_t i = 0; i < k; ++i) {
          const Lanes component = load(components + i * gap_stride + j);
          first_entry += component * rows[i * rows_stride];
          last_entry += component * rows[i * rows_stride + 1];
        }
        for (int64_t l = 0; l < w && j + l < k; ++l) {
          q[(j + l) * stride] = first_entry[l];
          q[(j + l) * stride + 1] = last_entry[l];
        }
      }
    } else {
      gemm<double>(k, n1, count[0] + count[1], transposed(components, gap_stride), plain(rows, rows_stride), q, stride,
                   scratch);
      gemm<double>(k, n - n1, k - second, transposed(components + second * gap_stride, gap_stride),
                   plain(rows + second * rows_stride + n1, rows_stride), q + n1, stride, scratch);
    }
  }
  for (int64_t i = k; i < n; ++i) copy(q + i * stride, rows + i * rows_stride, columns);
  for (int64_t i = 0; i < n; ++i) d[i] = new_d[i];
}

// Where divide and conquer cuts a tridiagonal matrix of n > leaf_size rows.
inline int64_t first_part(int64_t n) { return round_up(n / 2, 8) < n ? round_up(n / 2, 8) : n / 2; }

struct Range {
  int64_t first, size;
};

// Cuts d, e into leaves, in order, each of which is then a matrix of its own. Returns their number.
inline int64_t cut_into_leaves(double* d, const double* e, Range range, Range* leaves) {
  if (range.size <= leaf_size) {
    leaves[0] = range;
    return 1;
  }
  const int64_t n1 = first_part(range.size), cut = range.first + n1;
  d[cut - 1] -= __builtin_fabs(e[cut - 1]);
  d[cut] -= __builtin_fabs(e[cut - 1]);
  const int64_t count = cut_into_leaves(d, e, {range.first, n1}, leaves);
  return count + cut_into_leaves(d, e, {cut, range.size - n1}, leaves + count);
}

// Eigenvalues and eigenvectors of the leaves of d, e, written to d and q as tridiagonal_eigen says.
inline void solve_leaves(double* d, const double* e, const Range* leaves, int64_t count, double negligible, double* q,
                         int64_t stride, bool ends) {
  constexpr int64_t w = lanes<double>;
  Leaves together;
  for (int64_t first = 0; first < count; first += w) {
    const int64_t used = count - first < w ? count - first : w;
    const Range* group = leaves + first;
    int64_t n = 0;
    for (int64_t l = 0; l < used; ++l) n = group[l].size > n ? group[l].size : n;
    const int64_t columns = ends ? 2 : n;
    double parts[2 * leaf_size][w] = {};
    for (int64_t l = 0; l < used; ++l)
      for (int64_t i = 0; i < group[l].size; ++i) {
        parts[i][l] = d[group[l].first + i];
        if (i + 1 < group[l].size) parts[leaf_size + i][l] = e[group[l].first + i];
      }
    for (int64_t i = 0; i < n; ++i) {
      together.d[i] = load(parts[i]);
      together.e[i] = load(parts[leaf_size + i]);
      for (int64_t j = 0; j < columns; ++j) together.rows[i * columns + j] = splat(!ends && i == j ? 1.0 : 0.0);
    }
    if (ends)
      for (int64_t l = 0; l < used; ++l) {
        together.rows[0][l] = 1;
        together.rows[2 * (group[l].size - 1) + 1][l] = 1;
      }
    if (ends)
      ql_of_leaves<2>(together, n, negligible, columns);
    else if (n == 8)
      ql_of_leaves<8>(together, n, negligible, columns);
    else
      ql_of_leaves<0>(together, n, negligible, columns);
    for (int64_t i = 0; i < n; ++i) store(parts[i], together.d[i]);
    for (int64_t l = 0; l < used; ++l) {
      const Range leaf = group[l];
      for (int64_t i = 0; i < leaf.size; ++i) d[leaf.first + i] = parts[i][l];
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        double entries[w];
        store(entries, together.rows[i * columns + j]);
        for (int64_t l = 0; l < used; ++l) {
          const Range leaf = group[l];
          if (i < leaf.size && (ends || j < leaf.size))
            q[(leaf.first + i) * stride + (ends ? 0 : leaf.first) + j] = entries[l];
        }
      }
  }
}

// Takes the eigenvectors of the leaves of d, e to those of the whole.
inline void merge_leaves(double* d, const double* e, int64_t n, double* q, int64_t stride, Wanted wanted,
                         Scratch& scratch) {
  if (n <= leaf_size) return;
  const bool ends = wanted != Wanted::vectors;
  const int64_t n1 = first_part(n);
  const Wanted of_halves = ends ? Wanted::ends : Wanted::vectors;
  merge_leaves(d, e, n1, q, stride, of_halves, scratch);
  merge_leaves(d + n1, e + n1, n - n1, q + n1 * stride + (ends ? 0 : n1), stride, of_halves, scratch);
  merge_halves(d, e[n1 - 1], n, n1, q, stride, wanted, scratch);
}

// Eigenvalues d and eigenvectors (rows of q, which must come zeroed) of the tridiagonal matrix d, e, in no special
// order. Where no vectors are wanted, q is n x 2.
inline void tridiagonal_eigen(double* d, const double* e, int64_t n, double negligible, double* q, int64_t stride,
                              Wanted wanted, Scratch& scratch) {
  ScratchScope scope(scratch);
  Range* leaves = scratch.take<Range>(n);
  const int64_t count = cut_into_leaves(d, e, {0, n}, leaves);
  solve_leaves(d, e, leaves, count, negligible, q, stride, wanted != Wanted::vectors);
  merge_leaves(d, e, n, q, stride, wanted, scratch);
}

// What of the off-diagonal entries of d, e counts as zero.
inline double negligible_coupling(const double* d, const double* e, int64_t n) {
  double norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double row = __builtin_fabs(d[i]) + __builtin_fabs(e[i]);
    if (row > norm) norm = row;
  }
  return 0.01 * epsilon * norm;
}

// Eigenvalues and eigenvectors of the symmetric a (n x n; the whole 8 x 8 blocks are read and must hold zeros beyond n,
// and a is destroyed): row i of v belongs to d[i]; order[i] is the row of the i-th largest.
inline void symmetric_eigen(double* a, int64_t a_stride, int64_t n, double* d, double* v, int64_t v_stride,
                            int64_t* order, Scratch& scratch) {
  ScratchScope scope(scratch);
  double* e = scratch.take_zeros<double>(n);
  double* tau = scratch.take_zeros<double>(n);
  tridiagonalise(a, a_stride, n, d, e, tau, scratch);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) v[i * v_stride + j] = 0;
  tridiagonal_eigen(d, e, n, negligible_coupling(d, e, n), v, v_stride, Wanted::vectors, scratch);
  if (n > 1) apply_reflectors(v, v_stride, n, a, a_stride, n - 1, n, 1, tau, false, scratch);
  sort_descending(d, order, n, scratch);
}

// The eigenvalues alone, of an a as above: d[order[i]] is the i-th largest.
inline void symmetric_eigenvalues(double* a, int64_t a_stride, int64_t n, double* d, int64_t* order, Scratch& scratch) {
  ScratchScope scope(scratch);
  double* e = scratch.take_zeros<double>(n);
  double* tau = scratch.take_zeros<double>(n);
  tridiagonalise(a, a_stride, n, d, e, tau, scratch);
  double* ends = scratch.take_zeros<double>(2 * n);
  tridiagonal_eigen(d, e, n, negligible_coupling(d, e, n), ends, 2, Wanted::nothing, scratch);
  sort_descending(d, order, n, scratch);
}

}  // namespace dense
}  // namespace SVDRD_ISA
}  // namespace svdrd
