// The singular value decomposition of one group of matrices in the lanes.
#pragma once

#include <cstddef>
#include <new>

#include "cpu/lanes/bidiagonal.h"
#include "cpu/lanes/qr.h"
#include "cpu/lanes/size.h"
#include "cpu/simd.h"

namespace svdrd {
namespace SVDRD_ISA {

// Hands out parts of one buffer; with no buffer it only adds up what would be needed.
class Arena {
 public:
  explicit Arena(char* buffer) : buffer_(buffer) {}

  template <typename Element>
  Element* take(int64_t count) {
    const size_t offset = used_;
    const size_t bytes = static_cast<size_t>(count) * sizeof(Element);
    used_ += (bytes + vector_bytes - 1) / vector_bytes * vector_bytes;
    return buffer_ == nullptr ? nullptr : reinterpret_cast<Element*>(buffer_ + offset);
  }
  template <typename T>
  Pack<T>* matrix(int64_t rows, int64_t columns) {
    return take<Pack<T>>(rows * row_stride(columns));
  }
  size_t used() const { return used_; }

 private:
  char* buffer_;
  size_t used_ = 0;
};

// A buffer as large as Layout(arena, rows, columns) takes, with the Layout laid into it.
template <typename Layout>
class Workspace {
 public:
  Workspace(int64_t rows, int64_t columns)
      : buffer_(allocate(rows, columns)), arena_(buffer_), layout_(arena_, rows, columns) {}
  ~Workspace() { ::operator delete(buffer_, std::align_val_t(vector_bytes)); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  Layout& operator*() { return layout_; }

 private:
  static char* allocate(int64_t rows, int64_t columns) {
    Arena measure(nullptr);
    const Layout unused(measure, rows, columns);
    (void)unused;
    return static_cast<char*>(::operator new(measure.used(), std::align_val_t(vector_bytes)));
  }

  char* buffer_;
  Arena arena_;
  Layout layout_;
};

// a goes in; u (rows x columns), the singular values and v (columns x columns) come out, values nonnegative but in no
// order.
template <typename W>
struct Factorisation {
  int64_t rows;
  int64_t columns;
  Pack<W>* a;
  Pack<W>* u;
  Pack<W>* v;
  BidiagonalFactors<W> bidiagonal;
  RotationBuffer<W> rotations;

  Factorisation(Arena& arena, int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_) {
    a = arena.matrix<W>(rows, columns);
    u = arena.matrix<W>(rows, columns);
    v = arena.matrix<W>(columns, columns);
    bidiagonal.diagonal = arena.take<Pack<W>>(columns);
    bidiagonal.superdiagonal = arena.take<Pack<W>>(columns);
    bidiagonal.tau_left = arena.take<Pack<W>>(columns);
    bidiagonal.tau_right = arena.take<Pack<W>>(columns);
    bidiagonal.left_products = arena.take<Pack<W>>(columns);
    bidiagonal.right_products = arena.take<Pack<W>>(rows);
    rotations.left = arena.take<Shears<W>>(buffered_sweeps * columns);
    rotations.right = arena.take<Shears<W>>(buffered_sweeps * columns);
  }

  Pack<W>* values() const { return bidiagonal.diagonal; }
};

template <typename W>
inline void set_identity(Pack<W>* a, int64_t rows, int64_t columns) {
  const int64_t stride = row_stride(columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) a[i * stride + j] = Pack<W>(i == j ? W(1) : W(0));
}

// The backward error, relative to the largest singular value, that the QR iteration may leave when matrices of T are
// factored in W. For floats in double, 2^-42 is far below the rounding of the input and saves the last sweep of some
// values.
template <typename T, typename W>
constexpr W iteration_tolerance() {
  return sizeof(T) < sizeof(W) ? W(0x1p-42) : W(0.125) * std::numeric_limits<W>::epsilon();
}

// Not inlined: two copies might contract multiply-adds differently, and equal matrices must give equal bits everywhere.
// Without `vectors`, u and v come out as nothing of use. tolerance, drop: of diagonalise.
template <int64_t known, typename W>
[[gnu::noinline]] void factorise(Factorisation<W>& f, W tolerance, W drop, bool vectors) {
  const int64_t rows = known_or<known>(f.rows), columns = known_or<known>(f.columns), stride = row_stride(columns);
  bidiagonalise(f.a, rows, columns, f.bidiagonal);
  if (vectors) {
    set_identity(f.u, rows, columns);
    set_identity(f.v, columns, columns);
  }
  Pack<W>* values = f.values();
  diagonalise(values, f.bidiagonal.superdiagonal, columns, vectors ? f.u : nullptr, vectors ? f.v : nullptr, tolerance,
              drop, f.rotations);
  for (int64_t j = 0; j < columns; ++j) {
    const Mask<W> negative = values[j] < Pack<W>(W(0));
    values[j] = abs(values[j]);
    if (vectors)
      for (int64_t i = 0; i < columns; ++i)
        f.v[i * stride + j] = select(negative, -f.v[i * stride + j], f.v[i * stride + j]);
  }
  if (!vectors) return;
  apply_left_reflectors(f.a, f.bidiagonal, f.u, rows, columns);
  apply_right_reflectors(f.a, f.bidiagonal, f.v, columns);
}

template <typename W>
inline void factorise(Factorisation<W>& f, W tolerance, W drop, bool vectors = true) {
  // Where the values decay, products of many small sines are denormal, and squares in the lanes of deficient matrices.
  // Beside entries of the order of 1, as those of the scaled matrix, U and V, nothing is lost with them.
  const DenormalsAreZero scope;
  with_known_size<8>(f.rows, f.columns, [&](auto known) { factorise<known>(f, tolerance, drop, vectors); });
}

// rank[l * columns + j]: the place of lane l's j-th value in descending order, equal values in the order of their
// columns. Counting the larger ones takes n^2 / 2 comparisons without a branch, for all lanes at once. counts: columns
// Packs of scratch.
template <typename W>
void rank_descending(const Pack<W>* values, int64_t columns, Pack<W>* counts, int32_t* rank) {
  const Pack<W> zero(W(0)), one(W(1));
  for (int64_t j = 0; j < columns; ++j) {
    counts[j] = zero;
    for (int64_t i = 0; i < j; ++i) {
      const Mask<W> later_is_larger = values[i] < values[j];
      counts[i] = counts[i] + select(later_is_larger, one, zero);
      counts[j] = counts[j] + select(later_is_larger, zero, one);
    }
  }
  const W* entries = reinterpret_cast<const W*>(counts);
  for (int l = 0; l < lane_count; ++l)
    for (int64_t j = 0; j < columns; ++j) rank[l * columns + j] = static_cast<int32_t>(entries[j * lane_count + l]);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
