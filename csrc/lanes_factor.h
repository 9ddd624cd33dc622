// The singular value decomposition of one group of matrices in the lanes.
#pragma once

#include <cstddef>
#include <new>

#include "lanes_bidiagonal.h"
#include "lanes_qr.h"
#include "simd.h"

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
  Workspace(int64_t rows, int64_t columns) : buffer_(allocate(rows, columns)), arena_(buffer_), layout_(arena_, rows, columns) {}
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

// a goes in; u (rows x columns), the singular values and v (columns x columns) come out, values nonnegative but in no order.
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
    bidiagonal.products = arena.take<Pack<W>>(columns);
    rotations.left = arena.take<Rotation<W>>(buffered_sweeps * columns);
    rotations.right = arena.take<Rotation<W>>(buffered_sweeps * columns);
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
// factored in W. For floats in double, 2^-42 is far below the rounding of the input and saves the last sweep of some values.
template <typename T, typename W>
constexpr W iteration_tolerance() {
  return sizeof(T) < sizeof(W) ? W(0x1p-42) : W(0.125) * std::numeric_limits<W>::epsilon();
}

// Not inlined: two copies might contract multiply-adds differently, and equal matrices must give equal bits everywhere.
template <typename W>
[[gnu::noinline]] void factorise(Factorisation<W>& f, W tolerance) {
  const int64_t columns = f.columns, stride = row_stride(columns);
  bidiagonalise(f.a, f.rows, columns, f.bidiagonal);
  set_identity(f.u, f.rows, columns);
  set_identity(f.v, columns, columns);
  Pack<W>* values = f.values();
  diagonalise(values, f.bidiagonal.superdiagonal, columns, f.u, columns, f.v, columns, tolerance,
              f.rotations);
  for (int64_t j = 0; j < columns; ++j) {
    const Mask<W> negative = values[j] < Pack<W>(W(0));
    values[j] = abs(values[j]);
    for (int64_t i = 0; i < columns; ++i) f.v[i * stride + j] = select(negative, -f.v[i * stride + j], f.v[i * stride + j]);
  }
  apply_left_reflectors(f.a, f.bidiagonal, f.u, f.rows, columns);
  apply_right_reflectors(f.a, f.bidiagonal, f.v, columns);
}

// order[l * columns + j]: the column that holds lane l's j-th largest value. The iteration leaves the values nearly sorted.
template <typename W>
void sort_descending(const Pack<W>* values, int64_t columns, int32_t* order) {
  const W* entries = reinterpret_cast<const W*>(values);
  for (int l = 0; l < lane_count; ++l) {
    int32_t* own = order + l * columns;
    for (int64_t j = 0; j < columns; ++j) {
      const W value = entries[j * lane_count + l];
      int64_t at = j;
      for (; at > 0 && entries[own[at - 1] * lane_count + l] < value; --at) own[at] = own[at - 1];
      own[at] = static_cast<int32_t>(j);
    }
  }
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
