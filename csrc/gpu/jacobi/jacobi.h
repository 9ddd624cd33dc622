// The singular value decomposition of one matrix by one team of lanes: one-sided Jacobi, all pairs of a round at once.
//
// W = A V starts as A with V = I. A rotation of two columns of W that makes them orthogonal rotates the same columns of
// V; when all pairs are orthogonal, the lengths of W's columns are the singular values and their directions U. The pairs
// of a sweep are played as a round-robin tournament: in each round every column meets another one, so that n / 2
// rotations run side by side, and after n - 1 rounds everybody has met everybody.
//
// The algorithm sees A or A^T, whichever has at least as many rows as columns.
#pragma once

#include "gpu/team.h"

namespace svdrd {
namespace teams {

// One matrix in memory: entry (i, j) is at entries[i * row_stride + j * column_stride].
template <typename T>
struct Matrix {
  T* entries;
  int64_t row_stride;
  int64_t column_stride;

  SVDRD_LANES T& operator()(int i, int j) const {
    return entries[i * row_stride + j * column_stride];
  }
};

// The lanes of a team take turns at the entries of a matrix, neighbours in memory going to neighbouring lanes.
template <typename T, typename Function>
SVDRD_LANES void for_entries(const Matrix<T>& a, int rows, int columns, int lane, int lanes, const Function& f) {
  const int count = rows * columns;
  if (a.column_stride <= a.row_stride) {
    for (int e = lane; e < count; e += lanes) f(e / columns, e % columns);
  } else {
    for (int e = lane; e < count; e += lanes) f(e % rows, e / rows);
  }
}

// What a team holds of its matrix. Column j of W, and below it column j of V, is at column(j); its singular value is
// values[j], in units of 2^(exponent - headroom) of the matrix.
template <typename T>
struct Factors {
  int rows;     // of W; at least `columns`
  int columns;
  int stride;   // from one column to the next
  T* entries;   // columns x stride
  T* values;    // columns
  T* partial;   // one for each lane
  int* places;  // columns: the place of each value in descending order
  int exponent;
  bool finite;   // a matrix with NaN or Inf is replaced by zeros
  bool flipped;  // W started as the transpose of a square A

  SVDRD_LANES T* column(int j) const { return entries + j * stride; }
  SVDRD_LANES T& u(int i, int j) const { return entries[j * stride + i]; }
  SVDRD_LANES T& v(int i, int j) const { return entries[j * stride + rows + i]; }
};

// How many lanes work on each pair of columns: a power of two up to 32.
SVDRD_BOTH int lanes_per_pair(int lanes, int columns) {
  const int pairs = (columns + 1) / 2;
  int width = 1;
  while (width < 32 && 2 * width * pairs <= lanes) width *= 2;
  return width;
}

// An odd multiple of the lanes that read neighbouring entries, which keeps neighbouring columns off each other's memory
// banks.
SVDRD_BOTH int padded(int length, int lanes) {
  const int multiple = (length + lanes - 1) / lanes;
  return (multiple + 1 - multiple % 2) * lanes;
}

// |a|, NaN for Inf too.
template <typename T>
SVDRD_LANES T finite_magnitude(T a) {
  const T size = magnitude(a);
  return size <= Limits<T>::largest ? size : Limits<T>::nan;
}

// NaN stays NaN, which max would drop.
template <typename T>
SVDRD_LANES T larger_or_nan(T most, T size) {
  return !(size <= most) ? (most == most ? size : most) : most;
}

// The largest of the lanes' `partial`, NaN if one of them is NaN.
template <typename T>
SVDRD_LANES T largest_partial(const T* partial, int lanes) {
  T most = T(0);
  for (int lane = 0; lane < lanes; ++lane) most = larger_or_nan(most, partial[lane]);
  return most;
}

// Of a square matrix A and A^T converge differently: with the rows graded, the columns are all but parallel and A takes
// three times as many sweeps. The more uneven side's norms have to be the columns'; sums of their fourth powers tell.
template <typename Team, typename T>
SVDRD_LANES void flip_graded_rows(const Team& team, Factors<T>& f) {
  const int n = f.columns;
  team.each([&](int lane) {
    T rows_less_columns = T(0);
    for (int i = lane; i < n; i += team.size()) {
      T row = T(0), column = T(0);
      for (int j = 0; j < n; ++j) {
        const T in_row = times_power_of_two(f.u(i, j), -Limits<T>::headroom);
        const T in_column = times_power_of_two(f.u(j, i), -Limits<T>::headroom);
        row = fma(in_row, in_row, row);
        column = fma(in_column, in_column, column);
      }
      rows_less_columns = rows_less_columns + (row * row - column * column);
    }
    f.partial[lane] = rows_less_columns;
  });
  team.sync();
  T rows_less_columns = T(0);
  for (int lane = 0; lane < team.size(); ++lane) rows_less_columns = rows_less_columns + f.partial[lane];
  f.flipped = rows_less_columns > T(0);
  team.each([&](int lane) {
    if (!f.flipped) return;
    for (int e = lane; e < n * n; e += team.size()) {
      const int i = e % n, j = e / n;
      if (i <= j) continue;
      const T lower = f.u(i, j);
      f.u(i, j) = f.u(j, i);
      f.u(j, i) = lower;
    }
  });
  team.sync();
}

// Where W has A^T, its entries are A's with the indices exchanged.
template <typename T>
SVDRD_LANES Matrix<T> as_held(const Factors<T>& f, const Matrix<T>& a) {
  return f.flipped ? Matrix<T>{a.entries, a.column_stride, a.row_stride} : a;
}

// W <- A 2^(headroom - exponent), V <- I.
template <typename Team, typename T>
SVDRD_LANES void load(const Team& team, Factors<T>& f, const Matrix<const T>& a) {
  team.each([&](int lane) {
    T most = T(0);
    for_entries(a, f.rows, f.columns, lane, team.size(), [&](int i, int j) {
      const T entry = a(i, j);
      most = larger_or_nan(most, finite_magnitude(entry));
      f.u(i, j) = entry;
    });
    f.partial[lane] = most;
  });
  team.sync();
  const T most = largest_partial(f.partial, team.size());
  f.finite = most == most;
  f.exponent = f.finite ? exponent_of(static_cast<double>(most)) : 0;
  const int shift = Limits<T>::headroom - f.exponent;
  team.each([&](int lane) {
    for_entries(a, f.rows, f.columns, lane, team.size(), [&](int i, int j) {
      f.u(i, j) = f.finite ? times_power_of_two(f.u(i, j), shift) : T(0);
    });
    for (int e = lane; e < f.columns * f.columns; e += team.size()) {
      const int i = e % f.columns, j = e / f.columns;
      f.v(i, j) = i == j ? T(1) : T(0);
    }
  });
  team.sync();
  f.flipped = false;
  if (f.rows == f.columns) flip_graded_rows(team, f);
}

// The products of two columns with themselves and with each other.
template <typename T>
struct PairProducts {
  T first;
  T second;
  T mixed;
};

template <typename T>
SVDRD_LANES PairProducts<T> operator+(const PairProducts<T>& a, const PairProducts<T>& b) {
  return {a.first + b.first, a.second + b.second, a.mixed + b.mixed};
}

struct Pair {
  int first;
  int second;
  bool plays;  // false for the one left over of an odd number of columns, and for lanes without a pair
};

// The circle method: the last player stays, the others move on by one place a round.
SVDRD_LANES Pair pair_of_round(int pair, int round, int columns) {
  const int players = columns + columns % 2, moving = players - 1;
  int one = round + pair, other = pair == 0 ? moving : round - pair;
  if (one >= moving) one -= moving;
  if (other < 0) other += moving;
  const Pair result{one < other ? one : other, one < other ? other : one, false};
  return {result.first, result.second, 2 * pair < players && result.second < columns};
}

// Quadratic convergence leaves cosines far below this; it need only stand above the rounding of the products.
template <typename T>
SVDRD_LANES T orthogonality_tolerance(int rows) {
  return square_root(static_cast<T>(rows)) * Limits<T>::epsilon;
}

// 28 were seen: 64 columns of doubles whose singular values fall evenly from 1 to 1e-20.
constexpr int most_sweeps = 160;

// The rotation by an angle of at most 45 degrees that makes two columns orthogonal, as
//   x <- x - s (y + r x),  y <- y + s (x - r y),  s = sin, r = tan of the half angle:
// small rotations then add rounding in proportion to their angle, and V stays orthogonal through hundreds of them.
// Columns stay where they are: with the longer one first, matrices took up to twice as many sweeps.
template <typename T>
struct Rotation {
  T s;
  T r;
  bool needed;
};

template <typename T>
SVDRD_LANES Rotation<T> rotation_of(const PairProducts<T>& p, T tolerance) {
  const bool needed = smaller(p.first, p.second) >= Limits<T>::negligible_square &&
                      magnitude(p.mixed) > tolerance * square_root(p.first) * square_root(p.second);
  if (!needed) return {T(0), T(0), false};
  const T zeta = (p.second - p.first) / (p.mixed + p.mixed), size = magnitude(zeta);
  const T tangent = T(1) / (size + (size > Limits<T>::huge ? size : square_root(fma(size, size, T(1)))));
  const T t = zeta < T(0) ? -tangent : tangent;
  const T c = T(1) / square_root(fma(t, t, T(1))), s = t * c;
  return {s, s / (T(1) + c), true};
}

// Whether the columns are orthogonal at the end.
template <typename Team, typename T>
SVDRD_LANES bool orthogonalise(const Team& team, const Factors<T>& f) {
  const int width = lanes_per_pair(team.size(), f.columns), groups = team.size() / width;
  const int rounds = f.columns + f.columns % 2 - 1, pairs = (f.columns + 1) / 2, length = f.rows + f.columns;
  const T tolerance = orthogonality_tolerance<T>(f.rows);
  const auto group = team.map([&](int lane) { return lane / width; });
  const auto first_row = team.map([&](int lane) { return lane % width; });
  for (int sweep = 0; sweep < most_sweeps; ++sweep) {
    auto rotated = team.map([](int) { return false; });
    for (int round = 0; round < rounds; ++round) {
      for (int first_pair = 0; first_pair < pairs; first_pair += groups) {
        const auto partial_products = team.map([&](int lane) {
          PairProducts<T> p{T(0), T(0), T(0)};
          const Pair pair = pair_of_round(first_pair + team.at(group, lane), round, f.columns);
          if (!pair.plays) return p;
          const T *x = f.column(pair.first), *y = f.column(pair.second);
          for (int i = team.at(first_row, lane); i < f.rows; i += width) {
            const T xi = x[i], yi = y[i];
            p.first = fma(xi, xi, p.first);
            p.second = fma(yi, yi, p.second);
            p.mixed = fma(xi, yi, p.mixed);
          }
          return p;
        });
        const auto products = team.group_sum(partial_products, width);
        // A lane rotates the rows that it alone has read.
        team.each([&](int lane) {
          const Pair pair = pair_of_round(first_pair + team.at(group, lane), round, f.columns);
          if (!pair.plays) return;
          const Rotation<T> r = rotation_of(team.at(products, lane), tolerance);
          if (!r.needed) return;
          team.at(rotated, lane) = true;
          T *x = f.column(pair.first), *y = f.column(pair.second);
          for (int i = team.at(first_row, lane); i < length; i += width) {
            const T xi = x[i], yi = y[i];
            x[i] = fma(-r.s, fma(r.r, xi, yi), xi);
            y[i] = fma(r.s, fma(-r.r, yi, xi), yi);
          }
        });
      }
      team.sync();
    }
    if (!team.any(rotated)) return true;
  }
  return false;
}

// The singular values and U from W. A column that counts as zero becomes one, with the value 0.
template <typename Team, typename T>
SVDRD_LANES void normalise_columns(const Team& team, const Factors<T>& f) {
  const int width = lanes_per_pair(team.size(), 2 * f.columns), groups = team.size() / width;
  for (int first = 0; first < f.columns; first += groups) {
    const auto partial_squares = team.map([&](int lane) {
      const int j = first + lane / width;
      T sum = T(0);
      if (j >= f.columns) return sum;
      for (int i = lane % width; i < f.rows; i += width) sum = fma(f.u(i, j), f.u(i, j), sum);
      return sum;
    });
    const auto squares = team.group_sum(partial_squares, width);
    team.each([&](int lane) {
      const int j = first + lane / width;
      if (j >= f.columns) return;
      const T square = team.at(squares, lane);
      const T value = square < Limits<T>::negligible_square ? T(0) : square_root(square);
      const T inverse = value > T(0) ? T(1) / value : T(0);
      for (int i = lane % width; i < f.rows; i += width) f.u(i, j) = f.u(i, j) * inverse;
      if (lane % width == 0) f.values[j] = value;
    });
  }
  team.sync();
}

// U's columns are unit vectors or zero, V is complete. What did not converge counts as not finite.
template <typename Team, typename T>
SVDRD_LANES void decompose(const Team& team, Factors<T>& f, const Matrix<const T>& a) {
  load(team, f, a);
  f.finite = orthogonalise(team, f) && f.finite;
  normalise_columns(team, f);
}

template <typename T>
SVDRD_LANES T largest_value(const Factors<T>& f) {
  T most = T(0);
  for (int j = 0; j < f.columns; ++j) most = larger(most, f.values[j]);
  return most;
}

template <typename Team, typename T>
SVDRD_LANES void rank_values(const Team& team, const Factors<T>& f) {
  team.each([&](int lane) {
    for (int j = lane; j < f.columns; j += team.size()) {
      int place = 0;
      for (int i = 0; i < f.columns; ++i)
        place += f.values[i] > f.values[j] || (f.values[i] == f.values[j] && i < j);
      f.places[j] = place;
    }
  });
  team.sync();
}

// Fills U's zero columns up to an orthonormal set: each with the unit vector that is farthest from the columns there
// are, less its part among them, twice. `scratch` has room for f.columns numbers.
template <typename Team, typename T>
SVDRD_LANES void complete_u(const Team& team, const Factors<T>& f, T* scratch) {
  const auto missing = team.map([&](int) {
    bool some = false;
    for (int j = 0; j < f.columns; ++j) some = some || !(f.values[j] > T(0));
    return some;
  });
  if (!team.any(missing)) return;
  for (int j = 0; j < f.columns; ++j) {
    const bool fills = !(f.values[j] > T(0));
    if (!team.any(team.map([&](int) { return fills; }))) continue;
    // places is not in use yet: it takes the row of each lane's farthest unit vector, the first `columns` lanes search.
    const int searchers = smaller(team.size(), f.columns);
    team.each([&](int lane) {
      if (lane >= searchers) return;
      T least = T(2);
      for (int i = lane; i < f.rows; i += searchers) {
        T inside = T(0);
        for (int l = 0; l < f.columns; ++l) inside = fma(f.u(i, l), f.u(i, l), inside);
        if (inside < least) {
          least = inside;
          f.places[lane] = i;
        }
      }
      f.partial[lane] = least;
    });
    team.sync();
    int best = 0;
    for (int lane = 1; lane < searchers; ++lane)
      if (f.partial[lane] < f.partial[best]) best = lane;
    const int unit = f.places[best];
    team.each([&](int lane) {
      for (int l = lane; l < f.columns; l += team.size()) scratch[l] = f.u(unit, l);
    });
    team.sync();
    for (int pass = 0; pass < 2; ++pass) {
      team.each([&](int lane) {
        for (int i = lane; i < f.rows; i += team.size()) {
          T rest = pass == 0 ? (i == unit ? T(1) : T(0)) : f.u(i, j);
          for (int l = 0; l < f.columns; ++l)
            if (l != j) rest = fma(-scratch[l], f.u(i, l), rest);
          if (fills) f.u(i, j) = rest;
        }
      });
      team.sync();
      if (pass == 1) break;
      team.each([&](int lane) {
        for (int l = lane; l < f.columns; l += team.size()) {
          T product = T(0);
          for (int i = 0; i < f.rows; ++i) product = fma(f.u(i, l), f.u(i, j), product);
          scratch[l] = product;
        }
      });
      team.sync();
    }
    team.each([&](int lane) {
      T square = T(0);
      for (int i = lane; i < f.rows; i += team.size()) square = fma(f.u(i, j), f.u(i, j), square);
      f.partial[lane] = square;
    });
    team.sync();
    T square = T(0);
    for (int lane = 0; lane < team.size(); ++lane) square = square + f.partial[lane];
    const T inverse = square > T(0) ? T(1) / square_root(square) : T(0);
    team.each([&](int lane) {
      for (int i = lane; i < f.rows; i += team.size())
        if (fills) f.u(i, j) = f.u(i, j) * inverse;
    });
    team.sync();
  }
}

// The value that stands for `scaled` in the matrix's own units.
template <typename T>
SVDRD_LANES T unscaled_value(const Factors<T>& f, T scaled) {
  return times_power_of_two(scaled, f.exponent - Limits<T>::headroom);
}

// u, s, vh in descending order; left has the vectors as its columns, right as its columns too.
template <typename Team, typename T>
SVDRD_LANES void store_factors(const Team& team, const Factors<T>& f, bool keep_in_range, const Matrix<T>& left, T* s,
                               const Matrix<T>& right) {
  const T nan = Limits<T>::nan;
  const Matrix<T>&of_u = f.flipped ? right : left, &of_v = f.flipped ? left : right;
  team.each([&](int lane) {
    for_entries(of_u, f.rows, f.columns, lane, team.size(),
                [&](int i, int j) { of_u(i, f.places[j]) = f.finite ? f.u(i, j) : nan; });
    for_entries(of_v, f.columns, f.columns, lane, team.size(),
                [&](int i, int j) { of_v(i, f.places[j]) = f.finite ? f.v(i, j) : nan; });
    for (int j = lane; j < f.columns; j += team.size()) {
      T value = unscaled_value(f, f.values[j]);
      // What is written as zero is read as dropped, and 1 / Inf as no gradient at all.
      if (keep_in_range && f.values[j] > T(0)) value = smaller(larger(value, Limits<T>::denormal), Limits<T>::largest);
      s[f.places[j]] = f.finite ? value : nan;
    }
  });
}

}  // namespace teams
}  // namespace svdrd
