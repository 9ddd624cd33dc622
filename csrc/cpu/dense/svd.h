// Thin SVD of one matrix.
//
// The eigenvectors V of the Gram matrix of the smaller side, in float64, give Y = A V, whose columns are orthogonal but
// for what the squaring loses: |y_i . y_j| is about eps64 s_1^2. For float32 input that is little, as singular values
// are resolved down to 1e-8 s_1: what is left of U = Y D^-1 is made orthonormal by a first-order correction, or, where
// some s_i are too small for that, by the QR factorisation of U, largest column first, whose R is the identity but for
// columns that hardly count. For float64 input the R of Y is the start of one-sided Jacobi on its rows (Drmac and
// Veselic, 2008), where little is left to rotate; of a matrix twice as long as wide, all this is done to the R of its own
// QR factorisation.
//
// "Tall" means p x q with p >= q: the matrix itself or its transpose. Singular vectors are rows.
#pragma once

#include "cpu/dense/columns.h"
#include "cpu/dense/eigen.h"
#include "cpu/noise.h"

namespace svdrd {
namespace SVDRD_ISA {
namespace dense {

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float largest = 3.4028234663852886e38f;
  static constexpr float smallest = 1.401298464324817e-45f;
  static constexpr float largest_factor = 1e30f;
};
template <>
struct Limits<double> {
  static constexpr double largest = 1.7976931348623157e308;
  static constexpr double smallest = 4.9406564584124654e-324;
  static constexpr double largest_factor = 1e290;
};

template <typename T>
inline void fill_nan(T* values, int64_t rows, int64_t columns, int64_t stride) {
  if (values == nullptr) return;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) values[i * stride + j] = static_cast<T>(__builtin_nan(""));
}

// The largest magnitude, or NaN where an entry is not finite.
template <typename T>
inline T largest_magnitude(const T* a, int64_t rows, int64_t columns, int64_t stride) {
  constexpr int64_t w = lanes<T>;
  if (stride == columns) {
    columns *= rows;
    rows = 1;
  }
  Vector<T> top{};
  typename NativeTypes<T>::MaskVector finite = top == top;
  T rest = 0;
  bool rest_finite = true;
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = a + i * stride;
    int64_t j = 0;
    for (; j + w <= columns; j += w) {
      const Vector<T> x = load(row + j), size = x < 0 ? -x : x;
      finite &= size <= Limits<T>::largest;
      top = size > top ? size : top;
    }
    for (; j < columns; ++j) {
      const T size = row[j] < 0 ? -row[j] : row[j];
      rest_finite = rest_finite && size <= Limits<T>::largest;
      rest = size > rest ? size : rest;
    }
  }
  for (int64_t l = 0; l < w; ++l) {
    rest_finite = rest_finite && finite[l];
    rest = top[l] > rest ? top[l] : rest;
  }
  return rest_finite ? rest : static_cast<T>(__builtin_nan(""));
}

// A singular value decomposition under way: tall, scaled by 2^-exponent to entries near 1.
struct Decomposition {
  int64_t p, q;
  bool wide;     // the matrix is q x p and what is decomposed is its transpose
  int exponent;  // of the scale
  bool finite;
  double* u;  // q rows of p: left singular vectors, or A v_i where they are not normalised yet
  int64_t u_stride;
  double* v;  // q rows of q
  int64_t v_stride;
  double* s;  // in the scaled units

  void take_factors(Scratch& scratch) {
    u_stride = row_stride<double>(p);
    v_stride = row_stride<double>(q);
    s = scratch.take<double>(q);
    u = scratch.take<double>(q * u_stride);
    v = scratch.take<double>(q * v_stride);
  }
};

// The sizes and the scale, and whether all is finite.
template <typename T>
inline Decomposition begin_decomposition(const T* a, int64_t stride, int64_t m, int64_t n) {
  Decomposition result{};
  result.wide = m < n;
  result.p = m < n ? n : m;
  result.q = m < n ? m : n;
  const T largest = largest_magnitude(a, m, n, stride);
  result.finite = largest == largest;
  if (result.finite) __builtin_frexp(static_cast<double>(largest), &result.exponent);
  return result;
}

// What brings the entries of a matrix near 1: in two factors, because 2^-exponent alone can overflow.
struct Scale {
  double first, second;
  explicit Scale(int exponent)
      : first(__builtin_ldexp(1, -exponent / 2)), second(__builtin_ldexp(1, -exponent - -exponent / 2)) {}
  template <typename T>
  double operator()(T x) const {
    return static_cast<double>(x) * first * second;
  }
};

// The m x n matrix scaled, by its rows.
template <typename T>
inline void write_scaled(const T* a, int64_t stride, int64_t m, int64_t n, const Scale& scale, double* to,
                         int64_t to_stride) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) to[i * to_stride + j] = scale(a[i * stride + j]);
}

// The matrix as `d` wants it, tall and scaled.
template <typename T>
inline Operand<double> scaled_tall(const T* a, int64_t stride, int64_t m, int64_t n, const Decomposition& d,
                                   Scratch& scratch) {
  const bool by_columns = narrow<T>(m, n);
  const int64_t length = by_columns ? m : n, scaled_stride = row_stride<double>(length);
  double* scaled = scratch.take<double>((by_columns ? n : m) * scaled_stride);
  if (by_columns)
    to_columns(a, stride, m, n, scaled, scaled_stride, Scale(d.exponent));
  else
    write_scaled(a, stride, m, n, Scale(d.exponent), scaled, scaled_stride);
  return d.wide || by_columns ? transposed(scaled, scaled_stride) : plain(scaled, scaled_stride);
}

// A^T A as symmetric_eigen wants it: the upper triangle in whole 8 x 8 blocks, zero beyond q. Nothing below them is set.
inline double* take_gram(const Operand<double>& tall, int64_t p, int64_t q, int64_t stride, Scratch& scratch) {
  const int64_t padded = round_up(q, 8);
  double* gram = scratch.take<double>(padded * stride);
  gemm<double>(q, q, p, tall.transposed(), tall, gram, stride, scratch, {false, true});
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = q; j < padded; ++j) gram[i * stride + j] = 0;
  for (int64_t i = q; i < padded; ++i)
    for (int64_t j = 0; j < padded; ++j) gram[i * stride + j] = 0;
  return gram;
}

// Y = A V and its column norms, in about descending order; `result` comes as it was begun, of finite entries.
template <typename T>
inline Decomposition gram_decomposition(Decomposition result, const T* a, int64_t stride, int64_t m, int64_t n,
                                        Scratch& scratch) {
  const int64_t p = result.p, q = result.q;
  result.take_factors(scratch);
  ScratchScope scope(scratch);

  const Operand<double> tall = scaled_tall(a, stride, m, n, result, scratch);
  double* gram = take_gram(tall, p, q, result.v_stride, scratch);
  double* vectors = scratch.take<double>(q * result.v_stride);
  double* values = scratch.take<double>(q);
  int64_t* order = scratch.take<int64_t>(q);
  symmetric_eigen(gram, result.v_stride, q, values, vectors, result.v_stride, order, scratch);
  for (int64_t i = 0; i < q; ++i) copy(result.v + i * result.v_stride, vectors + order[i] * result.v_stride, q);
  gemm<double>(q, p, q, plain(result.v, result.v_stride), tall.transposed(), result.u, result.u_stride, scratch);
  for (int64_t i = 0; i < q; ++i) {
    const double* row = result.u + i * result.u_stride;
    result.s[i] = __builtin_sqrt(dot(row, row, p));
  }
  return result;
}

// The singular values of a float32 matrix, in descending order and its own units: to 1e-8 s_1, which is below the rounding
// of float32. Returns whether all is finite.
inline bool gram_values(const float* a, int64_t stride, int64_t m, int64_t n, float* s, Scratch& scratch) {
  const Decomposition d = begin_decomposition(a, stride, m, n);
  if (!d.finite) return false;
  ScratchScope scope(scratch);
  const Operand<double> tall = scaled_tall(a, stride, m, n, d, scratch);
  const int64_t gram_stride = row_stride<double>(d.q);
  double* gram = take_gram(tall, d.p, d.q, gram_stride, scratch);
  double* values = scratch.take<double>(d.q);
  int64_t* order = scratch.take<int64_t>(d.q);
  symmetric_eigenvalues(gram, gram_stride, d.q, values, order, scratch);
  for (int64_t i = 0; i < d.q; ++i) {
    const double square = values[order[i]];
    s[i] = static_cast<float>(__builtin_ldexp(__builtin_sqrt(square > 0 ? square : 0), d.exponent));
  }
  return true;
}

// Rotates the rows of r (count x count), and those of q along, until the rows of r are orthogonal. norms: |r_i|. A
// product finds the pairs of a sweep that need a rotation, usually few after the first sweep.
inline void jacobi_on_rows(double* r, int64_t r_stride, int64_t count, double* q, int64_t q_stride, int64_t q_length,
                           double* norms, Scratch& scratch) {
  constexpr int most_sweeps = 30;
  constexpr int64_t block = 8;
  struct Rotation {
    int64_t i, j;
    double c, s;
  };
  Rotation pending[block * block];
  int64_t pending_count = 0;
  ScratchScope scope(scratch);
  const double tolerance = epsilon * __builtin_sqrt(static_cast<double>(count));
  double* products = scratch.take<double>(count * r_stride);
  for (int sweep = 0; sweep < most_sweeps; ++sweep) {
    gemm<double>(count, count, count, plain(r, r_stride), transposed(r, r_stride), products, r_stride, scratch,
                 {false, true});
    double largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      norms[i] = __builtin_sqrt(products[i * r_stride + i]);
      largest = norms[i] > largest ? norms[i] : largest;
    }
    // Below this a row is rounding noise of the largest, and its direction is not worth a sweep.
    const double negligible = 1e-3 * epsilon * largest;
    bool rotated = false;
    const auto rotate_pair = [&](int64_t i, int64_t j) {
      if (__builtin_fabs(products[i * r_stride + j]) <= tolerance * norms[i] * norms[j] || norms[i] <= negligible ||
          norms[j] <= negligible)
        return;
      double* row_i = r + i * r_stride;
      double* row_j = r + j * r_stride;
      const double product = dot(row_i, row_j, count);
      if (__builtin_fabs(product) <= tolerance * norms[i] * norms[j]) return;
      rotated = true;
      const double zeta = (norms[j] - norms[i]) * (norms[j] + norms[i]) / (2 * product);
      const double t = __builtin_fabs(zeta) > 1e8
                           ? 0.5 / zeta
                           : __builtin_copysign(1 / (__builtin_fabs(zeta) + __builtin_sqrt(1 + zeta * zeta)), zeta);
      const double c = 1 / __builtin_sqrt(1 + t * t), s = c * t;
      rotate(row_i, row_j, c, s, count);
      pending[pending_count++] = {i, j, c, s};
      if (__builtin_fabs(t) > 1e-4) {
        norms[i] = __builtin_sqrt(dot(row_i, row_i, count));
        norms[j] = __builtin_sqrt(dot(row_j, row_j, count));
      }
    };
    // Two blocks of rows at a time, which stay in the first-level cache, first those of r and then those of q. Pairs
    // that follow each other are disjoint, so that the processor need not wait for one rotation before it begins the
    // next.
    for (int64_t i0 = 0; i0 < count; i0 += block)
      for (int64_t j0 = i0; j0 < count; j0 += block) {
        pending_count = 0;
        for (int64_t shift = 0; shift < block; ++shift)
          for (int64_t l = 0; l < block; ++l) {
            const int64_t i = i0 + l, j = j0 + (l + shift) % block;
            if (i < count && j < count && i != j && (i < j || j0 == i0)) rotate_pair(i < j ? i : j, i < j ? j : i);
          }
        for (int64_t l = 0; l < pending_count; ++l)
          rotate(q + pending[l].i * q_stride, q + pending[l].j * q_stride, pending[l].c, pending[l].s, q_length);
      }
    if (!rotated) break;
  }
}

// Makes the rows of x (count x count, each of length 1 or 0) orthonormal, changing as little as can be.
inline void complete_rows(double* x, int64_t stride, int64_t count, Scratch& scratch) {
  ScratchScope scope(scratch);
  double* work = scratch.take<double>(count * stride);
  double* r = scratch.take<double>(count * stride);
  for (int64_t i = 0; i < count; ++i) copy(work + i * stride, x + i * stride, count);
  qr(work, stride, count, count, r, stride, x, stride, scratch);
  for (int64_t i = 0; i < count; ++i)
    if (r[i * stride + i] < 0)
      for (int64_t j = 0; j < count; ++j) x[i * stride + j] = -x[i * stride + j];
}

// Takes Y, V of a float64 matrix to U, S, V with both sides orthonormal.
inline void refine_decomposition(Decomposition& d, Scratch& scratch) {
  ScratchScope scope(scratch);
  const int64_t p = d.p, q = d.q;
  double* y = scratch.take<double>(q * d.u_stride);
  double* r = scratch.take<double>(q * d.v_stride);
  for (int64_t i = 0; i < q; ++i) copy(y + i * d.u_stride, d.u + i * d.u_stride, p);
  qr(y, d.u_stride, q, p, r, d.v_stride, d.u, d.u_stride, scratch);
  jacobi_on_rows(r, d.v_stride, q, d.u, d.u_stride, p, d.s, scratch);
  double largest = 0;
  for (int64_t i = 0; i < q; ++i) largest = d.s[i] > largest ? d.s[i] : largest;
  // The rows that the sweeps left alone come last, so that completing the basis changes no other.
  int64_t* order = scratch.take<int64_t>(q);
  sort_descending(d.s, order, q, scratch);
  double* x = scratch.take<double>(q * d.v_stride);
  bool incomplete = false;
  for (int64_t i = 0; i < q; ++i) {
    const double norm = d.s[order[i]];
    incomplete = incomplete || norm <= 1e-3 * epsilon * largest;
    const double inverse = norm > 1e-140 ? 1 / norm : 0;
    for (int64_t j = 0; j < q; ++j) x[i * d.v_stride + j] = r[order[i] * d.v_stride + j] * inverse;
  }
  if (incomplete) complete_rows(x, d.v_stride, q, scratch);
  gemm<double>(q, q, q, plain(x, d.v_stride), plain(d.v, d.v_stride), r, d.v_stride, scratch);
  for (int64_t i = 0; i < q; ++i) {
    copy(d.v + i * d.v_stride, r + i * d.v_stride, q);
    const double* row = d.u + order[i] * d.u_stride;
    // Some thousand rotations may have passed over this row.
    const double inverse = 1 / __builtin_sqrt(dot(row, row, p));
    for (int64_t j = 0; j < p; ++j) y[i * d.u_stride + j] = row[j] * inverse;
    x[i] = d.s[order[i]];
  }
  for (int64_t i = 0; i < q; ++i) {
    copy(d.u + i * d.u_stride, y + i * d.u_stride, p);
    d.s[i] = x[i];
  }
}

// U, V and S of a float64 matrix, begun and finite.
inline Decomposition decompose_at_once(const Decomposition& begun, const double* a, int64_t stride, int64_t m,
                                       int64_t n, Scratch& scratch) {
  Decomposition result = gram_decomposition(begun, a, stride, m, n, scratch);
  refine_decomposition(result, scratch);
  return result;
}

// A = Q R of a long float64 matrix, begun and finite, part after part of its length so that each stays in a cache:
// A_i = Q_i R_i, and the R_i one above the other are Q' R (Demmel, Grigori, Hoemmen and Langou, 2012).
class QrInParts {
 public:
  QrInParts(const Decomposition& begun, const double* a, int64_t stride, Scratch& scratch)
      : p_(begun.p), q_(begun.q), length_(part_entries / q_ > 4 * q_ ? part_entries / q_ : 4 * q_) {
    parts_ = p_ * q_ < least_entries || p_ < length_ ? 1 : p_ / length_;
    stride_ = row_stride<double>(p_);
    r_stride_ = row_stride<double>(q_);
    stacked_stride_ = row_stride<double>(parts_ * q_);
    q_rows_ = scratch.take<double>(q_ * stride_);
    r_ = scratch.take<double>(q_ * r_stride_);
    stacked_ = scratch.take<double>(q_ * stacked_stride_);
    ScratchScope scope(scratch);

    const Scale scale(begun.exponent);
    const int64_t y_stride = row_stride<double>(p_ - begin(parts_ - 1));  // the last part is the longest
    double* y = scratch.take<double>(q_ * y_stride);
    double* r_rows = scratch.take<double>(q_ * stacked_stride_);  // of R^T, all parts side by side
    for (int64_t part = 0; part < parts_; ++part) {
      const int64_t length = begin(part + 1) - begin(part);
      if (begun.wide)
        write_scaled(a + begin(part), stride, q_, length, scale, y, y_stride);
      else
        to_columns(a + begin(part) * stride, stride, length, q_, y, y_stride, scale);
      qr(y, y_stride, q_, length, r_, r_stride_, q_rows_ + begin(part), stride_, scratch);
      for (int64_t i = 0; i < q_; ++i)
        for (int64_t j = 0; j < q_; ++j) r_rows[j * stacked_stride_ + part * q_ + i] = r_[i * r_stride_ + j];
    }
    if (parts_ > 1) qr(r_rows, stacked_stride_, q_, parts_ * q_, r_, r_stride_, stacked_, stacked_stride_, scratch);
  }

  const double* r() const { return r_; }
  int64_t r_stride() const { return r_stride_; }

  // to (q rows of p) = x Q^T for x of q x q.
  void apply(Operand<double> x, double* to, int64_t to_stride, Scratch& scratch) const {
    ScratchScope scope(scratch);
    if (parts_ > 1) {
      double* product = scratch.take<double>(q_ * stacked_stride_);
      gemm<double>(q_, parts_ * q_, q_, x, rows(stacked_, stacked_stride_), product, stacked_stride_, scratch);
      x = rows(product, stacked_stride_);
    }
    for (int64_t part = 0; part < parts_; ++part)
      gemm<double>(q_, begin(part + 1) - begin(part), q_, x.at(0, part * q_), rows(q_rows_ + begin(part), stride_),
                   to + begin(part), to_stride, scratch);
  }

 private:
  static constexpr int64_t part_entries = 16384;   // 128 KB, and as much of Q
  static constexpr int64_t least_entries = 65536;  // what fits the second-level cache is not divided

  static Operand<double> rows(const double* data, int64_t stride) { return plain(data, stride); }
  int64_t begin(int64_t part) const { return part == parts_ ? p_ : part * length_; }

  int64_t p_, q_;
  int64_t length_;  // of a part but the last
  int64_t parts_;
  int64_t stride_, r_stride_, stacked_stride_;
  double* q_rows_;   // Q_i^T side by side
  double* r_;
  double* stacked_;  // Q'^T
};

// The decomposition as the functions below want it: of a float32 matrix with s_i u_i, V and S.
inline Decomposition decompose(const float* a, int64_t stride, int64_t m, int64_t n, Scratch& scratch) {
  const Decomposition begun = begin_decomposition(a, stride, m, n);
  return begun.finite ? gram_decomposition(begun, a, stride, m, n, scratch) : begun;
}

// What is exactly zero comes out of the QR factorisation of a long matrix as up to some tens of roundings of s_1. So of a
// value that small the lesser of s_i and |u_i^T A v_i| is taken, which the errors of the vectors enter squared.
inline void lower_noise(Decomposition& d, int further_exponent, const double* a, int64_t stride, int64_t m, int64_t n,
                        Scratch& scratch) {
  double largest = 0;
  for (int64_t i = 0; i < d.q; ++i) largest = d.s[i] > largest ? d.s[i] : largest;
  ScratchScope scope(scratch);
  int64_t* const small = scratch.take<int64_t>(d.q);
  int64_t count = 0;
  for (int64_t i = 0; i < d.q; ++i)
    if (d.s[i] > 0 && d.s[i] <= noise_of_zero * largest) small[count++] = i;
  if (count == 0) return;
  double* const v = scratch.take<double>(count * d.v_stride);
  double* const y = scratch.take<double>(count * d.u_stride);
  for (int64_t i = 0; i < count; ++i) copy(v + i * d.v_stride, d.v + small[i] * d.v_stride, d.q);
  const Operand<double> tall = scaled_tall(a, stride, m, n, d, scratch);
  gemm<double>(count, d.p, d.q, plain(v, d.v_stride), tall.transposed(), y, d.u_stride, scratch);
  for (int64_t i = 0; i < count; ++i) {
    const double quotient = __builtin_ldexp(dot(d.u + small[i] * d.u_stride, y + i * d.u_stride, d.p), -further_exponent);
    double& value = d.s[small[i]];
    value = __builtin_fabs(quotient) < value ? __builtin_fabs(quotient) : value;
  }
}

// Of a float64 matrix with U, V and S. Of one at least twice as long as wide, all is done to the R of its QR
// factorisation.
inline Decomposition decompose(const double* a, int64_t stride, int64_t m, int64_t n, Scratch& scratch) {
  Decomposition result = begin_decomposition(a, stride, m, n);
  if (!result.finite) return result;
  const int64_t q = result.q;
  if (result.p < 2 * q) return decompose_at_once(result, a, stride, m, n, scratch);
  result.take_factors(scratch);
  ScratchScope scope(scratch);
  const QrInParts factored(result, a, stride, scratch);
  const Decomposition begun = begin_decomposition(factored.r(), factored.r_stride(), q, q);
  const Decomposition of_r = decompose_at_once(begun, factored.r(), factored.r_stride(), q, q, scratch);
  copy(result.s, of_r.s, q);
  for (int64_t i = 0; i < q; ++i) copy(result.v + i * result.v_stride, of_r.v + i * of_r.v_stride, q);
  factored.apply(plain(static_cast<const double*>(of_r.u), of_r.u_stride), result.u, result.u_stride, scratch);
  lower_noise(result, of_r.exponent, a, stride, m, n, scratch);
  result.exponent += of_r.exponent;
  return result;
}

// The unit rows u_j of Y D^-1 with E = U^T U - I, of order eps64 s_1^2 / (s_i s_j), become u_j - sum_i weight(i, j)
// E_ij u_i. Only the pairs whose E exceeds the rounding of float32 count; the rows are in about descending order of s.
template <typename Weight>
inline void correct_rows(float* u, int64_t stride, int64_t count, int64_t length, const double* s, double largest,
                         double smallest, Weight weight, Scratch& scratch) {
  const double limit = 1e-9 * largest * largest;
  int64_t first = 0;
  while (first < count && s[first] * smallest > limit) ++first;
  const int64_t rows = count - first;
  if (rows < 2) return;
  ScratchScope scope(scratch);
  const int64_t e_stride = row_stride<float>(rows);
  float* e = scratch.take<float>(rows * e_stride);
  float* old_rows = scratch.take<float>(rows * stride);
  float* block = u + first * stride;
  const double* block_s = s + first;
  gemm<float>(rows, rows, length, plain(block, stride), transposed(block, stride), e, e_stride, scratch);
  for (int64_t j = 0; j < rows; ++j) {
    copy(old_rows + j * stride, block + j * stride, length);
    for (int64_t i = 0; i < rows; ++i) {
      const float excess = i == j ? e[j * e_stride + i] - 1 : e[j * e_stride + i];
      const bool counts = block_s[i] * block_s[j] <= limit;
      e[j * e_stride + i] = counts ? static_cast<float>(-weight(first + i, first + j)) * excess : 0;
    }
  }
  gemm<float>(rows, length, rows, plain(e, e_stride), plain(old_rows, stride), block, stride, scratch, {true});
}

// The smallest s_k / s_1 of which the first-order correction leaves a second order below 1e-7.
constexpr double smallest_corrected = 1e-6;

template <typename T, typename Source>
inline void convert_row(T* to, const Source* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

template <typename T, typename Source>
inline void convert_scaled_row(T* to, const Source* from, double factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i] * factor);
}

// Orthonormal rows u_i in T, where d holds V and either u_i (float64) or s_i u_i (float32).
template <typename T>
struct LeftRows {
  T* u;
  int64_t stride;
};

inline LeftRows<double> left_rows(const Decomposition& d, double, Scratch&) { return {d.u, d.u_stride}; }

inline LeftRows<float> left_rows(const Decomposition& d, float, Scratch& scratch) {
  const int64_t stride = row_stride<float>(d.p);
  float* u = scratch.take<float>(d.q * stride);
  double largest = 0, smallest = Limits<double>::largest;
  for (int64_t i = 0; i < d.q; ++i) {
    const double inverse = d.s[i] > 0 ? 1 / d.s[i] : 0;
    convert_scaled_row(u + i * stride, d.u + i * d.u_stride, inverse, d.p);
    largest = d.s[i] > largest ? d.s[i] : largest;
    smallest = d.s[i] < smallest ? d.s[i] : smallest;
  }
  if (smallest > smallest_corrected * largest) {
    correct_rows(u, stride, d.q, d.p, d.s, largest, smallest, [](int64_t, int64_t) { return 0.5; }, scratch);
    return {u, stride};
  }
  ScratchScope scope(scratch);
  float* y = scratch.take<float>(d.q * stride);
  float* r = scratch.take<float>(d.q * stride);
  for (int64_t i = 0; i < d.q; ++i) copy(y + i * stride, u + i * stride, d.p);
  qr(y, stride, d.q, d.p, r, stride, u, stride, scratch);
  for (int64_t i = 0; i < d.q; ++i)
    if (r[i * stride + i] < 0)
      for (int64_t j = 0; j < d.p; ++j) u[i * stride + j] = -u[i * stride + j];
  return {u, stride};
}

// Columns of out (length x count) from the rows of `rows`, in the given order: whole blocks of a vector a row, and what
// is left over.
template <typename T, typename Source>
inline void write_columns(T* out, const Source* rows, int64_t stride, const int64_t* order, int64_t count,
                          int64_t length) {
  constexpr int64_t w = lanes<T>;
  const int64_t whole_count = round_down(count, w), whole_length = round_down(length, w);
  T block[w * w];
  for (int64_t j0 = 0; j0 < whole_count; j0 += w)
    for (int64_t i0 = 0; i0 < whole_length; i0 += w) {
      for (int64_t j = 0; j < w; ++j) convert_row(block + j * w, rows + order[j0 + j] * stride + i0, w);
      transpose_block(static_cast<const T*>(block), w, out + i0 * count + j0, count);
    }
  const auto rest_of = [&](int64_t first_column, int64_t first) {
    from_columns<T, Source>([&](int64_t j) { return rows + order[first_column + j] * stride + first; }, length - first,
                            count - first_column, out + first * count + first_column, count,
                            [](Source x) { return static_cast<T>(x); });
  };
  if (whole_count > 0) rest_of(0, whole_length);
  rest_of(whole_count, 0);
}

template <typename T, typename Source>
inline void write_rows(T* out, const Source* rows, int64_t stride, const int64_t* order, int64_t count,
                       int64_t length) {
  for (int64_t i = 0; i < count; ++i) convert_row(out + i * length, rows + order[i] * stride, length);
}

// U (m x q), S, Vh (q x n).
template <typename T>
inline void write_decomposition(const Decomposition& d, T* u, T* s, T* vh, Scratch& scratch) {
  ScratchScope scope(scratch);
  const LeftRows<T> left = left_rows(d, T(), scratch);
  int64_t* order = scratch.take<int64_t>(d.q);
  sort_descending(d.s, order, d.q, scratch);
  for (int64_t i = 0; i < d.q; ++i) s[i] = static_cast<T>(__builtin_ldexp(d.s[order[i]], d.exponent));
  if (u == nullptr) return;
  if (d.wide) {
    write_columns(u, d.v, d.v_stride, order, d.q, d.q);
    write_rows(vh, left.u, left.stride, order, d.q, d.p);
  } else {
    write_columns(u, left.u, left.stride, order, d.q, d.p);
    write_rows(vh, d.v, d.v_stride, order, d.q, d.q);
  }
}

}  // namespace dense

// Scratch memory of the functions below: one for each thread, reused from matrix to matrix.
template <typename T>
struct DenseWorkspace {
  dense::Scratch scratch;
  dense::Scratch of_helper;  // for the side of a pair that another thread of the team takes
};

// svdrd::svd for one matrix.
template <typename T>
inline void dense_svd(const T* a, int64_t m, int64_t n, T* u, T* s, T* vh, DenseWorkspace<T>& workspace) {
  const int64_t k = m < n ? m : n;
  if (k == 0) return;
  dense::ScratchScope scope(workspace.scratch);
  if constexpr (sizeof(T) == 4)
    if (u == nullptr) {
      if (!dense::gram_values(a, n, m, n, s, workspace.scratch)) dense::fill_nan(s, 1, k, k);
      return;
    }
  const dense::Decomposition d = dense::decompose(a, n, m, n, workspace.scratch);
  if (!d.finite) {
    dense::fill_nan(u, m, k, k);
    dense::fill_nan(s, 1, k, k);
    dense::fill_nan(vh, k, n, n);
    return;
  }
  dense::write_decomposition(d, u, s, vh, workspace.scratch);
}

}  // namespace SVDRD_ISA
}  // namespace svdrd
