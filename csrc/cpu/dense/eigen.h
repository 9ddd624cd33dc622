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

// So many distances from poles share a division, as many as hide it behind the other operations. Of poles that are kept
// no two are closer than rounding, and none is closer to a root than rounding squared, so the product of the distances
// stays a normalised number.
constexpr int pole_block = lanes<double> == 8 ? 4 : 2;

inline void take_reciprocals(Lanes (&x)[2]) {
  const Lanes inverse = 1 / (x[0] * x[1]), x0 = inverse * x[1];
  x[1] = inverse * x[0];
  x[0] = x0;
}

inline void take_reciprocals(Lanes (&x)[4]) {
  const Lanes first = x[0] * x[1], second = x[2] * x[3], inverse = 1 / (first * second);
  const Lanes of_first = inverse * second, of_second = inverse * first;
  const Lanes x0 = of_first * x[1], x2 = of_second * x[3];
  x[1] = of_first * x[0];
  x[3] = of_second * x[2];
  x[0] = x0;
  x[2] = x2;
}

// The secular equation f = 1 / rho + sum_i z_i^2 / (d_i - lambda) = 0: k poles d, ascending and distinct, z2 = z^2, no
// z_i zero. Further poles above all roots, with z2 = 0, fill the last block.
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
  int64_t first_low, last_low;  // the lower poles of the first root and the last one
  LaneMask is_last, done;
  Lanes d_low, d_high, z2_low, z2_high;  // of the two poles
  Lanes origin;                          // the one near by
  Lanes t;                               // the root is origin + t
  Lanes below, above;                    // bounds on t
};

// What of `roots` follows from the numbers of the roots. Those beyond the last one repeat it.
inline void place_roots(const SecularEquation& equation, const int64_t* numbers, int64_t count, SecularRoots& roots) {
  constexpr int64_t w = lanes<double>;
  int64_t low[w], last[w];
  double poles[4][w];
  for (int64_t l = 0; l < w; ++l) {
    const int64_t j = numbers[l < count ? l : count - 1];
    last[l] = j == equation.k - 1 ? -1 : 0;
    low[l] = j + last[l];
    poles[0][l] = equation.d[low[l]];
    poles[1][l] = equation.d[low[l] + 1];
    poles[2][l] = equation.z2[low[l]];
    poles[3][l] = equation.z2[low[l] + 1];
  }
  roots.first_low = low[0];
  roots.last_low = low[w - 1];
  __builtin_memcpy(&roots.is_last, last, sizeof last);
  roots.d_low = load(poles[0]);
  roots.d_high = load(poles[1]);
  roots.z2_low = load(poles[2]);
  roots.z2_high = load(poles[3]);
  roots.done = LaneMask{};
}

// Where poles lie of the roots in the lanes.
enum class Side { below, mixed, above };

// The sums over the poles below a root, psi, and above it, phi, and of their derivatives. Of the last root phi holds
// the last pole, as in its interpolation.
struct PoleSums {
  Lanes psi{}, psi_slope{}, phi{}, phi_slope{};

  // A block of poles with their weights, and the reciprocals of their distances.
  template <Side side>
  void add(const double* d, const double* z2, const Lanes (&inverse)[pole_block], Lanes d_low) {
#pragma GCC unroll 4
    for (int l = 0; l < pole_block; ++l) {
      const Lanes term = z2[l] * inverse[l];
      if constexpr (side == Side::mixed) {
        const LaneMask below = d[l] <= d_low;
        psi = below ? psi + term : psi;
        psi_slope = below ? psi_slope + term * inverse[l] : psi_slope;
        phi = below ? phi : phi + term;
        phi_slope = below ? phi_slope : phi_slope + term * inverse[l];
      } else {
        (side == Side::below ? psi : phi) += term;
        (side == Side::below ? psi_slope : phi_slope) += term * inverse[l];
      }
    }
  }
};

// Adds the poles first .. end - 1, whole blocks of them, to the sums of one group of roots, or of two at once, which
// hides the latencies.
template <int count, Side side, Side other_side>
inline void add_poles(const SecularEquation& equation, const SecularRoots* roots, int64_t first, int64_t end,
                      PoleSums* sums) {
  const auto add = [&](auto of_side, const SecularRoots& group, int64_t i, PoleSums& sum)
                       __attribute__((always_inline)) {
    Lanes distance[pole_block];
#pragma GCC unroll 4
    for (int l = 0; l < pole_block; ++l) distance[l] = (equation.d[i + l] - group.origin) - group.t;
    take_reciprocals(distance);
    sum.add<decltype(of_side)::value>(equation.d + i, equation.z2 + i, distance, group.d_low);
  };
  PoleSums sum = sums[0], other_sum = sums[count - 1];
  for (int64_t i = first; i < end; i += pole_block) {
    add(std::integral_constant<Side, side>(), roots[0], i, sum);
    if constexpr (count == 2) add(std::integral_constant<Side, other_side>(), roots[1], i, other_sum);
  }
  sums[0] = sum;
  if constexpr (count == 2) sums[1] = other_sum;
}

// The sums over all poles.
template <int count>
inline void sum_poles(const SecularEquation& equation, const SecularRoots* roots, PoleSums* sums) {
  const int64_t first = round_down(roots[0].first_low + 1, pole_block);
  const int64_t last = round_up(roots[count - 1].last_low + 1, pole_block);
  add_poles<count, Side::below, Side::below>(equation, roots, 0, first, sums);
  const int64_t middle = round_up(roots[0].last_low + 1, pole_block);
  if (count == 2 && middle == round_down(roots[count - 1].first_low + 1, pole_block)) {  // adjacent groups
    add_poles<count, Side::mixed, Side::below>(equation, roots, first, middle, sums);
    add_poles<count, Side::above, Side::mixed>(equation, roots, middle, last, sums);
  } else {
    add_poles<count, Side::mixed, Side::mixed>(equation, roots, first, last, sums);
  }
  add_poles<count, Side::above, Side::above>(equation, roots, last, round_up(equation.k, pole_block), sums);
}

// Sets the roots to the middle of their intervals, seen from the pole below, or from the last pole.
inline void place_in_the_middle(const SecularEquation& equation, SecularRoots& roots) {
  roots.origin = roots.is_last ? roots.d_high : roots.d_low;
  roots.t = roots.is_last ? splat(equation.reach / 2) : (roots.d_high - roots.d_low) / 2;
}

// The step from t to where f would vanish if it were c + s / (d_low - t) + S / (d_high - t), with the value of f at t
// and the derivatives of psi and phi.
inline Lanes interpolated_step(const SecularRoots& roots, Lanes f, Lanes psi_slope, Lanes phi_slope) {
  const Lanes low_gap = (roots.d_low - roots.origin) - roots.t, high_gap = (roots.d_high - roots.origin) - roots.t;
  const Lanes slope = psi_slope + phi_slope, b = low_gap * high_gap * f;
  const Lanes a = (low_gap + high_gap) * f - low_gap * high_gap * slope;
  const Lanes signed_c = f - low_gap * psi_slope - high_gap * phi_slope;
  const Lanes c = roots.is_last ? magnitude(signed_c) : signed_c;
  const Lanes root = square_root(magnitude(a * a - 4 * b * c));
  const LaneMask cancels = roots.is_last ? a < 0 : a > 0;
  const Lanes signed_root = roots.is_last ? -root : root;
  Lanes numerator = cancels ? 2 * b : a - signed_root;
  Lanes denominator = cancels ? a + signed_root : 2 * c;
  // f rises, so the step has to go the other way.
  const LaneMask wrong = (numerator < 0) ^ (denominator < 0) ^ (f >= 0);
  numerator = wrong ? -f : numerator;
  denominator = wrong ? slope : denominator;
  return numerator / denominator;
}

// Brackets the roots and sets t near them. sums: of the poles at the middle of the intervals. A first guess takes the
// two nearest poles and holds everything else constant; the second lets that rise as it does in the middle.
inline void start_roots(const SecularEquation& equation, const PoleSums& sums, SecularRoots& roots) {
  const LaneMask is_last = roots.is_last;
  const Lanes zero{}, gap = roots.d_high - roots.d_low, middle = roots.t;
  Lanes inverse[2] = {(roots.d_low - roots.origin) - middle, (roots.d_high - roots.origin) - middle};
  take_reciprocals(inverse);
  const Lanes of_low = roots.z2_low * inverse[0], of_high = roots.z2_high * inverse[1];
  const Lanes f = equation.inverse_rho + sums.psi + sums.phi, rest = f - of_low - of_high;
  const Lanes psi_rise = sums.psi_slope - of_low * inverse[0], phi_rise = sums.phi_slope - of_high * inverse[1];
  const LaneMask left = f >= 0, from_low = left & ~is_last;
  roots.origin = from_low ? roots.d_low : roots.d_high;
  roots.below = is_last ? (left ? zero : middle) : (left ? zero : -gap / 2);
  roots.above = is_last ? (left ? middle : splat(equation.reach)) : (left ? gap / 2 : zero);
  // From the pole below, rest t^2 - a t + b = 0. From the pole above, rest t^2 + a t - b = 0, of which the root wanted is
  // negative. The last root: rest t^2 - a t - b = 0, the positive one.
  const Lanes sum = roots.z2_low + roots.z2_high, whole = rest * gap;
  const Lanes a = is_last ? sum - whole : (left ? whole + sum : whole - sum);
  const Lanes b = (from_low ? roots.z2_low : roots.z2_high) * gap;
  const Lanes root = square_root(magnitude(a * a + (from_low ? -4 * b * rest : 4 * b * rest)));
  const LaneMask cancels = from_low ? a > 0 : a < 0;
  const Lanes numerator = cancels ? 2 * b : a + (from_low ? -root : root);
  const Lanes denominator = cancels ? (from_low ? a + root : root - a) : 2 * rest;
  const Lanes distance = numerator / denominator, guess = is_last | from_low ? distance : -distance;
  roots.t = ((guess > roots.below) & (guess < roots.above)) ? guess : (roots.below + roots.above) / 2;
  const Lanes moved = roots.t - (is_last | from_low ? middle : -middle);
  Lanes there[2] = {(roots.d_low - roots.origin) - roots.t, (roots.d_high - roots.origin) - roots.t};
  take_reciprocals(there);
  const Lanes low_there = roots.z2_low * there[0], high_there = roots.z2_high * there[1];
  const Lanes next = roots.t + interpolated_step(roots, rest + (psi_rise + phi_rise) * moved + low_there + high_there,
                                                 psi_rise + low_there * there[0], phi_rise + high_there * there[1]);
  roots.t = ((next > roots.below) & (next < roots.above)) ? next : roots.t;
}

// One step towards the roots from the sums at them.
inline void improve_roots(const SecularEquation& equation, const PoleSums& sums, int step_number, SecularRoots& roots) {
  const Lanes t = roots.t;
  const Lanes f = equation.inverse_rho + sums.psi + sums.phi, slope = sums.psi_slope + sums.phi_slope;
  const Lanes noise =
      epsilon * (4 * (magnitude(sums.psi) + magnitude(sums.phi)) + equation.inverse_rho + magnitude(t) * slope);
  const LaneMask done = roots.done | (magnitude(f) <= noise);
  const Lanes below = f < 0 ? t : roots.below, above = f < 0 ? roots.above : t;
  const Lanes step = interpolated_step(roots, f, sums.psi_slope, sums.phi_slope);
  Lanes next = t + step;
  // Bisection where the interpolation left the bracket, and now and then in any case, so that every bracket closes.
  const LaneMask trusted = step_number % 16 == 0 ? LaneMask{} : (next > below) & (next < above);
  next = trusted ? next : (below + above) / 2;
  // The convergence is quadratic relative to the distance t from the nearest pole: after so small a step none is needed.
  roots.t = done ? t : next;
  roots.below = below;
  roots.above = above;
  roots.done = done | (trusted & (magnitude(step) <= 1e-9 * magnitude(t)));
}

// Up to so many steps towards the roots of one group, or of two; fewer where all are done before.
template <int count>
inline void improve_roots(const SecularEquation& equation, int steps, SecularRoots* roots) {
  for (int step_number = 1; step_number <= steps; ++step_number) {
    if (all_lanes(count == 2 ? roots[0].done & roots[1].done : roots[0].done)) return;
    PoleSums sums[count];
    sum_poles<count>(equation, roots, sums);
    for (int group = 0; group < count; ++group) improve_roots(equation, sums[group], step_number, roots[group]);
  }
}

// A sixth of the roots takes more than three steps. Those that are late are finished in groups of their own.
constexpr int first_steps = 3, most_steps = 80;

// The first steps of groups of adjacent roots; root `first` is in the first lane.
template <int count>
inline void begin_roots(const SecularEquation& equation, int64_t first, SecularRoots* roots) {
  constexpr int64_t w = lanes<double>;
  PoleSums sums[count];
  for (int group = 0; group < count; ++group) {
    int64_t numbers[w];
    for (int64_t l = 0; l < w; ++l) numbers[l] = first + group * w + l;
    const int64_t left = equation.k - numbers[0];
    place_roots(equation, numbers, left < w ? left : w, roots[group]);
    place_in_the_middle(equation, roots[group]);
  }
  sum_poles<count>(equation, roots, sums);
  for (int group = 0; group < count; ++group) start_roots(equation, sums[group], roots[group]);
  improve_roots<count>(equation, first_steps, roots);
}

// The other steps of `some` roots, which are brought together from their groups.
template <int count>
inline void finish_roots(const SecularEquation& equation, const int64_t* numbers, int64_t some, SecularRoots* roots) {
  constexpr int64_t w = lanes<double>;
  SecularRoots together[count];
  for (int group = 0; group < count; ++group) {
    const int64_t left = some - group * w;
    place_roots(equation, numbers + group * w, left < w ? left : w, together[group]);
    for (int64_t l = 0; l < w; ++l) {
      const int64_t j = numbers[group * w + (l < left ? l : left - 1)];
      const SecularRoots& own = roots[j / w];
      together[group].origin[l] = own.origin[j % w];
      together[group].t[l] = own.t[j % w];
      together[group].below[l] = own.below[j % w];
      together[group].above[l] = own.above[j % w];
    }
  }
  improve_roots<count>(equation, most_steps, together);
  // The group of a root may belong to another part, too: no more than the root itself is written.
  for (int64_t l = 0; l < some; ++l) {
    const double t = together[l / w].t[l % w];
    __builtin_memcpy(reinterpret_cast<char*>(&roots[numbers[l] / w].t) + numbers[l] % w * sizeof t, &t, sizeof t);
  }
}

// lambda: the roots. Row i of gaps holds d_i - lambda_j to full relative accuracy, which is what makes the eigenvectors
// orthogonal. k >= 2, rho > 0. d and z2 have room for whole blocks.
inline void solve_secular_equation(int64_t k, double* d, double* z2, double rho, double* lambda, double* gaps,
                                   int64_t stride, Scratch& scratch) {
  constexpr int64_t w = lanes<double>;
  double total = 0;
  for (int64_t i = 0; i < k; ++i) total += z2[i];
  const SecularEquation equation{k, d, z2, 1 / rho, rho * total};
  for (int64_t i = k; i < round_up(k, pole_block); ++i) {
    d[i] = d[k - 1] + 2 * equation.reach;
    z2[i] = 0;
  }
  const int64_t groups = (k + w - 1) / w;
  ScratchScope scope(scratch);
  SecularRoots* const roots = scratch.take<SecularRoots>(groups);
  share_merge(scratch, k, (groups + 1) / 2, [=](int64_t part) {
    const int64_t group = 2 * part;
    if (group + 1 < groups)
      begin_roots<2>(equation, group * w, roots + group);
    else
      begin_roots<1>(equation, group * w, roots + group);
  });
  int64_t* const late = scratch.take<int64_t>(k);
  int64_t late_count = 0;
  for (int64_t j = 0; j < k; ++j)
    if (!roots[j / w].done[j % w]) late[late_count++] = j;
  share_merge(scratch, k, (late_count + 2 * w - 1) / (2 * w), [=](int64_t part) {
    const int64_t first = part * 2 * w, some = late_count - first < 2 * w ? late_count - first : 2 * w;
    if (some > w)
      finish_roots<2>(equation, late + first, some, roots);
    else
      finish_roots<1>(equation, late + first, some, roots);
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
  // So many vectors share a division. Of poles that are kept no two are closer than rounding, so the product of the
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
        product *= above / below;
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
      // A plane rotation takes z_pending to zero. What it puts between the two poles has to be negligible.
      const double square = z[j] * z[j] + z[pending] * z[pending];
      if (__builtin_fabs((d[j] - d[pending]) * z[j] * z[pending]) <= tolerance * square) {
        const double length = __builtin_sqrt(square), c = z[j] / length, s = z[pending] / length;
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
    // Of a row to be multiplied what is zero is not read.
    const int64_t row_kind = kind[kept[i]];
    const bool whole = ends || k == 1;
    const int64_t begin = row_kind == 2 && !whole ? n1 : 0, end = row_kind == 0 && !whole ? n1 : columns;
    place[i] = next[row_kind]++;
    copy(rows + place[i] * rows_stride + begin, q + kept[i] * stride + begin, end - begin);
  }
  for (int64_t i = 0; i < deflated_count; ++i) {
    copy(rows + (k + i) * rows_stride, q + deflated[i] * stride, columns);
    new_d[k + i] = d[deflated[i]];
  }

  const int64_t padded = round_up(k, w);
  static_assert(w % pole_block == 0, "vectors hold whole blocks");
  double* poles = scratch.take_zeros<double>(padded);
  double* z_kept = scratch.take<double>(k);
  double* z2 = scratch.take<double>(padded);
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
        const auto add = [&](int64_t i, Lanes inverse) {
          const Lanes component = weights[i] * inverse;
          store(components + place[i] * gap_stride + j, component);
          square += component * component;
        };
        int64_t i = 0;
        for (; i + pole_block <= k; i += pole_block) {
          Lanes inverse[pole_block];
          for (int l = 0; l < pole_block; ++l) inverse[l] = load(gaps + (i + l) * gap_stride + j);
          take_reciprocals(inverse);
          for (int l = 0; l < pole_block; ++l) add(i + l, inverse[l]);
        }
        for (; i < k; ++i) add(i, 1 / load(gaps + i * gap_stride + j));
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
