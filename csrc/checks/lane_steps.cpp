// Where the time of small matrices goes: the steps of the SVD of one group in the lanes (cpu/lanes), and of doubles those by
// the Gram matrix, one thread, beside the peak of the processor's multiply-adds, which is measured too.
// docs/design/cpu_small.md has the command and tables.
//
// Compiled once for each instruction set, with as many lanes as a register holds floats.
#include <algorithm>
#include <cstdio>
#include <type_traits>
#include <vector>

#include "checks/steps.h"
#include "cpu/lanes/factor.h"
#include "cpu/lanes/gram.h"

namespace {

using namespace svdrd::SVDRD_ISA;

template <typename W>
struct Layout {
  Factorisation<W> f;
  Layout(Arena& arena, int64_t rows, int64_t columns) : f(arena, rows, columns) {}
};

// The rotations of all sweeps: the union of the lanes' windows, as diagonalise has it.
template <typename W>
double rotation_steps(const std::vector<Pack<W>>& diagonals, Factorisation<W>& f, W tolerance) {
  Pack<W>*d = f.bidiagonal.diagonal, *e = f.bidiagonal.superdiagonal;
  const int64_t n = f.columns;
  std::copy(diagonals.begin(), diagonals.begin() + n, d);
  std::copy(diagonals.begin() + n, diagonals.end(), e);
  Pack<W> largest = abs(d[0]);
  for (int64_t k = 1; k < n; ++k) largest = max(largest, max(abs(d[k]), abs(e[k - 1])));
  f.rotations.columns = n;
  double steps = 0;
  for (int64_t top = n - 1;;) {
    const Window<W> w = find_window(d, e, top, largest * Pack<W>(tolerance), Pack<W>(W(1)), false, Pack<W>(W(0)));
    if (!any(w.active)) return steps;
    const int64_t first = static_cast<int64_t>(smallest_lane(select(w.active, w.low, Pack<W>(W(n)))));
    top = static_cast<int64_t>(largest_lane(w.high));
    f.rotations.sweeps = 0;
    sweep(d, e, w, first, top, f.rotations);
    steps += static_cast<double>(top - first);
  }
}

template <typename W>
void measure(int64_t n, int rounds) {
  Workspace<Layout<W>> workspace(n, n);
  Workspace<GramPolarLayout> gram_workspace(n, n);
  Factorisation<W>& f = (*workspace).f;
  const W tolerance = iteration_tolerance<float, W>();
  const int64_t stride = row_stride(n);
  std::vector<Pack<W>> a(static_cast<size_t>(n * stride), Pack<W>(W(0))), diagonals(static_cast<size_t>(2 * n - 1));
  for (int l = 0; l < lane_count; ++l) {
    const std::vector<float> x = photograph(n, n, static_cast<unsigned>(l + 1));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        a[static_cast<size_t>(i * stride + j)].set_lane(l, W(x[static_cast<size_t>(i * n + j)]) / W(4));
  }
  std::copy(a.begin(), a.end(), f.a);
  bidiagonalise(f.a, n, n, f.bidiagonal);
  for (int64_t j = 0; j < n; ++j) diagonals[static_cast<size_t>(j)] = f.bidiagonal.diagonal[j];
  for (int64_t j = 0; j + 1 < n; ++j) diagonals[static_cast<size_t>(n + j)] = f.bidiagonal.superdiagonal[j];

  const double size = static_cast<double>(n), cube = size * size * size * lane_count;
  const double rotations = 6 * size * lane_count * rotation_steps(diagonals, f, tolerance);  // for U and V
  constexpr bool single = std::is_same_v<W, float>;
  const double peak_now = peak<W>();
  Steps steps;
  const DenormalsAreZero scope;
  for (int round = 0; round < rounds; ++round) {
    const auto diagonalise_these = [&](bool vectors) {
      std::copy(diagonals.begin(), diagonals.begin() + n, f.bidiagonal.diagonal);
      std::copy(diagonals.begin() + n, diagonals.end(), f.bidiagonal.superdiagonal);
      diagonalise(f.values(), f.bidiagonal.superdiagonal, n, vectors ? f.u : nullptr, vectors ? f.v : nullptr,
                  tolerance, W(0), f.rotations);
    };
    std::copy(a.begin(), a.end(), f.a);
    steps.time("bidiagonalisation", cube * 4 / 3, single, [&] { bidiagonalise(f.a, n, n, f.bidiagonal); });
    steps.time("QR iteration, values alone", 0, single, [&] { diagonalise_these(false); });
    set_identity(f.u, n, n);
    set_identity(f.v, n, n);
    steps.time("QR iteration and its rotations", rotations, single, [&] { diagonalise_these(true); });
    steps.time("reflectors", cube * 2, single, [&] {
      apply_left_reflectors(f.a, f.bidiagonal, f.u, n, n);
      apply_right_reflectors(f.a, f.bidiagonal, f.v, n);
    });
    if constexpr (!single) {
      Gram& gram = (*gram_workspace).gram;
      std::copy(a.begin(), a.end(), gram.a);
      steps.time("A^T A", cube / 2, false, [&] { form_gram(gram, n, n); });
      steps.time("tridiagonalisation", cube * 2 / 3, false, [&] {
        tridiagonalise(gram.square, n, gram.scratch, gram.bidiagonal.diagonal, gram.bidiagonal.superdiagonal,
                       gram.bidiagonal.tau_right);
      });
      factor_tridiagonal(gram.bidiagonal.diagonal, gram.bidiagonal.superdiagonal, n);
      set_identity(gram.v, n, n);
      steps.time("QR iteration and rotations of V", rotations / 2, false, [&] {
        diagonalise(gram.bidiagonal.diagonal, gram.bidiagonal.superdiagonal, n, static_cast<Pack<double>*>(nullptr),
                    gram.v, tolerance, 0.0, gram.rotations);
      });
      steps.time("reflectors of V", cube, false, [&] { apply_right_reflectors(gram.square, gram.bidiagonal, gram.v, n); });
      steps.time("A V", cube, false, [&] {
        called_product<0>(plain(gram.a, n), plain(gram.v, n), n, n, n, gram.product);
      });
    }
  }
  std::printf("\n%ld x %ld %s in %d lanes, peak %.1fe9 multiply-adds/s\n", static_cast<long>(n), static_cast<long>(n),
              single ? "floats" : "doubles", lane_count, 1e-9 * peak_now);
  steps.print(peak_now, peak_now, lane_count);
}

}  // namespace

int main() {
  for (const int64_t n : {8, 16, 24, 32}) {
    measure<float>(n, 200);
    measure<double>(n, 200);
  }
}
