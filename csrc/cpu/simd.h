// A batch of matrices in the SIMD lanes: lane_count matrices are worked on at once, entry (i, j) of all of them in one
// Pack. A Pack<double> takes twice the registers of a Pack<float>, so that both hold the same matrices and a float
// group can be factored in double.
//
// Built on GCC/Clang vector extensions, so one source serves AVX-512, AVX2, SSE2 and NEON; intrinsics appear only where
// the extensions have no word (square root, its reciprocal, a mask's test, one rounding for a product and a sum), or GCC
// makes more instructions than one of theirs (selection, maximum, conversions).
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(SVDRD_ISA)
#error "define SVDRD_ISA as the namespace of this compilation: avx512, avx2 or baseline, and _x with SVDRD_LANES"
#endif

// A function of which GCC makes no copies for the arguments of some calls. Clang does not know the attribute.
#if defined(__clang__)
#define SVDRD_ONE_COPY [[gnu::noinline]]
#else
#define SVDRD_ONE_COPY [[gnu::noinline, gnu::noclone]]
#endif

namespace svdrd {
namespace SVDRD_ISA {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
// How many vectors the processor keeps.
#if (defined(__AVX512F__) && defined(__AVX512DQ__)) || defined(__aarch64__)
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif
#if defined(SVDRD_LANES)  // a power of two, at least 4
constexpr int lane_count = SVDRD_LANES;
#else
constexpr int lane_count = vector_bytes / 4;
#endif

// The register that holds the lanes of type T, or a part of them.
template <typename T>
constexpr int native_bytes = lane_count * static_cast<int>(sizeof(T)) < vector_bytes
                                 ? lane_count * static_cast<int>(sizeof(T))
                                 : vector_bytes;

template <typename T>
struct NativeTypes;
template <>
struct NativeTypes<float> {
  typedef float Vector __attribute__((vector_size(native_bytes<float>)));
  typedef int32_t MaskVector __attribute__((vector_size(native_bytes<float>)));
};
template <>
struct NativeTypes<double> {
  typedef double Vector __attribute__((vector_size(native_bytes<double>)));
  typedef int64_t MaskVector __attribute__((vector_size(native_bytes<double>)));
};

// The registers are built from their lanes' truth, all bits set or none.
template <typename T>
struct Mask {
  static constexpr int parts = lane_count * sizeof(T) / native_bytes<T>;
  typename NativeTypes<T>::MaskVector part[parts];
};

template <typename T>
struct Pack {
  using Native = typename NativeTypes<T>::Vector;
  static constexpr int parts = lane_count * sizeof(T) / native_bytes<T>;
  static constexpr int lanes_per_part = native_bytes<T> / sizeof(T);
  Native part[parts];

  Pack() = default;
  Pack(T value) {
    for (int k = 0; k < parts; ++k) part[k] = Native{} + value;
  }
  T lane(int l) const { return part[l / lanes_per_part][l % lanes_per_part]; }
  void set_lane(int l, T value) { part[l / lanes_per_part][l % lanes_per_part] = value; }
};

#define SVDRD_FOR_PARTS(T, expression)       \
  for (int k = 0; k < Pack<T>::parts; ++k) { \
    expression;                              \
  }                                          \
  return r;

template <typename T>
inline Pack<T> operator+(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] + b.part[k])
}
template <typename T>
inline Pack<T> operator-(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] - b.part[k])
}
template <typename T>
inline Pack<T> operator*(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] * b.part[k])
}
template <typename T>
inline Pack<T> operator/(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] / b.part[k])
}
template <typename T>
inline Pack<T> operator-(const Pack<T>& a) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = -a.part[k])
}
template <typename T>
inline Mask<T> operator<(const Pack<T>& a, const Pack<T>& b) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] < b.part[k])
}
template <typename T>
inline Mask<T> operator<=(const Pack<T>& a, const Pack<T>& b) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] <= b.part[k])
}
template <typename T>
inline Mask<T> operator==(const Pack<T>& a, const Pack<T>& b) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] == b.part[k])
}
template <typename T>
inline Mask<T> operator&(const Mask<T>& a, const Mask<T>& b) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] & b.part[k])
}
template <typename T>
inline Mask<T> operator|(const Mask<T>& a, const Mask<T>& b) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] | b.part[k])
}
template <typename T>
inline Mask<T> operator~(const Mask<T>& a) {
  Mask<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = ~a.part[k])
}
// The bits of a where those of the mask are set, else those of b. Of the vector extensions' selection GCC makes two
// instructions: it compares the mask with 0 first.
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_select(const typename NativeTypes<T>::MaskVector& mask,
                                                                     const typename Pack<T>::Native& a,
                                                                     const typename Pack<T>::Native& b) {
  using Native [[maybe_unused]] = typename Pack<T>::Native;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  constexpr int mask_and_a_or_b = 0xca;
  if constexpr (native_bytes<T> == 64)
    return (Native)_mm512_ternarylogic_epi64((__m512i)mask, (__m512i)a, (__m512i)b, mask_and_a_or_b);
  if constexpr (native_bytes<T> == 32)
    return (Native)_mm256_ternarylogic_epi64((__m256i)mask, (__m256i)a, (__m256i)b, mask_and_a_or_b);
  if constexpr (native_bytes<T> == 16)
    return (Native)_mm_ternarylogic_epi64((__m128i)mask, (__m128i)a, (__m128i)b, mask_and_a_or_b);
#elif defined(__AVX2__)
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 4)
    return (Native)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 8)
    return (Native)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 4)
    return (Native)_mm_blendv_ps((__m128)b, (__m128)a, (__m128)mask);
#endif
  return mask ? a : b;
}
template <typename T>
[[gnu::always_inline]] inline Pack<T> select(const Mask<T>& mask, const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_select<T>(mask.part[k], a.part[k], b.part[k]))
}
template <typename T>
using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <typename T>
constexpr Int<T> sign_bit = std::numeric_limits<Int<T>>::min();
template <typename T>
[[gnu::always_inline]] inline typename NativeTypes<T>::MaskVector native_sign(const typename Pack<T>::Native& a) {
  return (typename NativeTypes<T>::MaskVector)a & sign_bit<T>;
}
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_abs(const typename Pack<T>::Native& a) {
  return (typename Pack<T>::Native)((typename NativeTypes<T>::MaskVector)a & ~sign_bit<T>);
}
template <typename T>
[[gnu::always_inline]] inline Pack<T> abs(const Pack<T>& a) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_abs<T>(a.part[k]))
}

// Left to itself, GCC loads what several operations share again for each of them, and the loads take longer than those.
template <typename Native>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Native& a) {
#if defined(__x86_64__)
  asm("" : "+v"(a));
#endif
}

// a > b ? a : b in one instruction: of the comparison and the selection GCC makes two.
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_max(const typename Pack<T>::Native& a,
                                                                  const typename Pack<T>::Native& b) {
  using Native [[maybe_unused]] = typename Pack<T>::Native;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 4)
    return (Native)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 8)
    return (Native)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#endif
#if defined(__AVX2__)
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 4) return (Native)_mm256_max_ps((__m256)a, (__m256)b);
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 8) return (Native)_mm256_max_pd((__m256d)a, (__m256d)b);
#endif
#if defined(__SSE2__)
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 4) return (Native)_mm_max_ps((__m128)a, (__m128)b);
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 8) return (Native)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}
template <typename T>
inline Pack<T> max(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_max<T>(a.part[k], b.part[k]))
}
template <typename T>
inline Pack<T> min(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = a.part[k] < b.part[k] ? a.part[k] : b.part[k])
}
// a b + c with one rounding where the processor has it.
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_multiply_add(const typename Pack<T>::Native& a,
                                                                           const typename Pack<T>::Native& b,
                                                                           const typename Pack<T>::Native& c) {
  using Native [[maybe_unused]] = typename Pack<T>::Native;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 4)
    return (Native)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 8)
    return (Native)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if defined(__AVX2__) && defined(__FMA__)
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 4)
    return (Native)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 8)
    return (Native)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 4)
    return (Native)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 8)
    return (Native)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
#endif
#if defined(__aarch64__)
  if constexpr (sizeof(T) == 4) return (Native)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  if constexpr (sizeof(T) == 8) return (Native)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
  return a * b + c;
}

// a b - c d with c d rounded. On NEON a b is, since FMLS subtracts a product: to negate c d takes one instruction more.
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_difference_of_products(
    const typename Pack<T>::Native& a, const typename Pack<T>::Native& b, const typename Pack<T>::Native& c,
    const typename Pack<T>::Native& d) {
#if defined(__aarch64__)
  using Native = typename Pack<T>::Native;
  if constexpr (sizeof(T) == 4) return (Native)vfmsq_f32((float32x4_t)(a * b), (float32x4_t)c, (float32x4_t)d);
  if constexpr (sizeof(T) == 8) return (Native)vfmsq_f64((float64x2_t)(a * b), (float64x2_t)c, (float64x2_t)d);
#endif
  return native_multiply_add<T>(a, b, -(c * d));
}

// a b + c d and a b - c d, of which one product is rounded, always the same. Written out, the compiler would be free to
// round either product, and might choose another one for another number of lanes.
template <typename T>
[[gnu::always_inline]] inline Pack<T> sum_of_products(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c,
                                                      const Pack<T>& d) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_multiply_add<T>(a.part[k], b.part[k], c.part[k] * d.part[k]))
}
template <typename T>
[[gnu::always_inline]] inline Pack<T> multiply_add(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_multiply_add<T>(a.part[k], b.part[k], c.part[k]))
}
template <typename T>
[[gnu::always_inline]] inline Pack<T> difference_of_products(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c,
                                                             const Pack<T>& d) {
  Pack<T> r;
  SVDRD_FOR_PARTS(T, r.part[k] = native_difference_of_products<T>(a.part[k], b.part[k], c.part[k], d.part[k]))
}
#undef SVDRD_FOR_PARTS

template <typename T>
inline Mask<T> no_lanes() {
  Mask<T> r;
  for (int k = 0; k < Mask<T>::parts; ++k) r.part[k] = typename NativeTypes<T>::MaskVector{};
  return r;
}

template <typename T>
[[gnu::always_inline]] inline bool native_any(const typename NativeTypes<T>::MaskVector& mask) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (native_bytes<T> == 64) return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#endif
#if defined(__AVX2__)
  if constexpr (native_bytes<T> == 32) return _mm256_movemask_epi8((__m256i)mask) != 0;
#endif
#if defined(__SSE2__)
  if constexpr (native_bytes<T> == 16) return _mm_movemask_epi8((__m128i)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  for (int l = 0; l < Pack<T>::lanes_per_part; ++l)
    if (mask[l] != 0) return true;
  return false;
#endif
}
template <typename T>
inline bool any(const Mask<T>& mask) {
  auto joined = mask.part[0];
  for (int k = 1; k < Mask<T>::parts; ++k) joined |= mask.part[k];
  return native_any<T>(joined);
}

template <typename T>
inline typename Pack<T>::Native native_sqrt(const typename Pack<T>::Native& a) {
  using Native = typename Pack<T>::Native;
  // The maskz forms: GCC 12's headers pass an uninitialised register to the plain ones and warn of it.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 4) return (Native)_mm512_maskz_sqrt_ps(0xffff, (__m512)a);
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 8) return (Native)_mm512_maskz_sqrt_pd(0xff, (__m512d)a);
#endif
#if defined(__AVX2__)
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 4) return (Native)_mm256_sqrt_ps((__m256)a);
  if constexpr (native_bytes<T> == 32 && sizeof(T) == 8) return (Native)_mm256_sqrt_pd((__m256d)a);
#endif
#if defined(__SSE2__)
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 4) return (Native)_mm_sqrt_ps((__m128)a);
  if constexpr (native_bytes<T> == 16 && sizeof(T) == 8) return (Native)_mm_sqrt_pd((__m128d)a);
#else
  Native r;
  for (int l = 0; l < Pack<T>::lanes_per_part; ++l)
    r[l] = sizeof(T) == 4 ? __builtin_sqrtf(a[l]) : __builtin_sqrt(a[l]);
  return r;
#endif
}

template <typename T>
inline Pack<T> sqrt(const Pack<T>& a) {
  Pack<T> r;
  for (int k = 0; k < Pack<T>::parts; ++k) r.part[k] = native_sqrt<T>(a.part[k]);
  return r;
}

// 1 / sqrt(a) to about one unit in the last place, for normal positive a.
template <typename T>
[[gnu::always_inline]] inline typename Pack<T>::Native native_reciprocal_sqrt(const typename Pack<T>::Native& a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  // The estimate y has 14 bits: with r = 1 - a y^2, 1/sqrt(a) = y (1 - r)^(-1/2), by its series up to what r < 2^-13
  // needs. A rotation's latency is what the QR sweep waits for, and this is about half that of the root and the
  // division. Plain Newton steps always err downward, by up to 0.4 units in the last place; thousands of rotations
  // would add that up to a shrinkage of every singular value.
  using Native = typename Pack<T>::Native;
  Native y;
  if constexpr (native_bytes<T> == 64 && sizeof(T) == 4)
    y = (Native)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)a);
  else if constexpr (native_bytes<T> == 64)
    y = (Native)_mm512_maskz_rsqrt14_pd(0xff, (__m512d)a);
  else if constexpr (native_bytes<T> == 32 && sizeof(T) == 4)
    y = (Native)_mm256_rsqrt14_ps((__m256)a);
  else if constexpr (sizeof(T) == 4)
    y = (Native)_mm_rsqrt14_ps((__m128)a);
  else
    y = (Native)_mm256_rsqrt14_pd((__m256d)a);
  const Native r = T(1) - (a * y) * y;
  Native series = T(0.5) + T(0.375) * r;
  if constexpr (sizeof(T) == 8) series = series + (r * r) * (T(0.3125) + T(0.2734375) * r);
  return y + (y * r) * series;
#else
  return T(1) / native_sqrt<T>(a);
#endif
}

template <typename T>
[[gnu::always_inline]] inline Pack<T> reciprocal_sqrt(const Pack<T>& a) {
  Pack<T> r;
  for (int k = 0; k < Pack<T>::parts; ++k) r.part[k] = native_reciprocal_sqrt<T>(a.part[k]);
  return r;
}

// `to`: as many doubles as there are floats in a, or the reverse. GCC 12 takes a conversion to doubles apart into pairs.
template <typename To, typename From>
[[gnu::always_inline]] inline void native_convert(const From& a, To& to) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (sizeof(To) == 64 && sizeof(From) == 32) {
    to = (To)_mm512_maskz_cvtps_pd(0xff, (__m256)a);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(To) == 32 && sizeof(From) == 16) {
    to = (To)_mm256_cvtps_pd((__m128)a);
    return;
  }
#endif
  to = __builtin_convertvector(a, To);
}

// A register of floats from two registers of doubles, and the reverse. Written out: GCC joins the halves in memory, and
// what reads them there waits for both stores.
template <typename Floats, typename Doubles>
[[gnu::always_inline]] inline Floats native_narrow(const Doubles& low, const Doubles& high) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (sizeof(Floats) == 64)
    return (Floats)_mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(_mm512_maskz_cvtpd_ps(0xff, (__m512d)low)),
                                            _mm512_maskz_cvtpd_ps(0xff, (__m512d)high), 1);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Floats) == 32)
    return (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)low)),
                                        _mm256_cvtpd_ps((__m256d)high), 1);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(Floats) == 16)
    return (Floats)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
#elif defined(__aarch64__)
  return (Floats)vcvt_high_f32_f64(vcvt_f32_f64((float64x2_t)low), (float64x2_t)high);
#else
  Floats r;
  constexpr int half = sizeof(Floats) / 8;
  for (int l = 0; l < half; ++l) {
    r[l] = static_cast<float>(low[l]);
    r[half + l] = static_cast<float>(high[l]);
  }
  return r;
#endif
}
template <typename Doubles, typename Floats>
[[gnu::always_inline]] inline void native_widen(const Floats& a, Doubles& low, Doubles& high) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  if constexpr (sizeof(Floats) == 64) {
    native_convert(_mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 0), low);
    native_convert(_mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 1), high);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Floats) == 32) {
    native_convert(_mm256_castps256_ps128((__m256)a), low);
    native_convert(_mm256_extractf128_ps((__m256)a, 1), high);
    return;
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(Floats) == 16) {
    low = (Doubles)_mm_cvtps_pd((__m128)a);
    high = (Doubles)_mm_cvtps_pd(_mm_movehl_ps((__m128)a, (__m128)a));
  }
#elif defined(__aarch64__)
  low = (Doubles)vcvt_f64_f32(vget_low_f32((float32x4_t)a));
  high = (Doubles)vcvt_high_f64_f32((float32x4_t)a);
#else
  constexpr int half = sizeof(Floats) / 8;
  for (int l = 0; l < half; ++l) {
    low[l] = static_cast<double>(a[l]);
    high[l] = static_cast<double>(a[half + l]);
  }
#endif
}

// unit: the power of two at or below |a|, and factor: its reciprocal. Of a = 0, 0 and the largest power of two.
template <typename T>
[[gnu::always_inline]] inline void native_powers_of_two(typename Pack<T>::Native a, typename Pack<T>::Native& unit,
                                                        typename Pack<T>::Native& factor) {
  static_assert(sizeof(T) == 4);
  using Bits = typename NativeTypes<T>::MaskVector;
  const Bits exponent = (Bits)a & 0x7f800000;
  unit = (typename Pack<T>::Native)exponent;
  factor = (typename Pack<T>::Native)(0x7f000000 - exponent);
}

template <typename To, typename From>
inline Pack<To> convert(const Pack<From>& a) {
  Pack<To> r;
  if constexpr (sizeof(To) == sizeof(From)) {
    r = a;
  } else if constexpr (Pack<To>::parts == Pack<From>::parts) {
    for (int k = 0; k < Pack<To>::parts; ++k) native_convert(a.part[k], r.part[k]);
  } else if constexpr (sizeof(To) < sizeof(From)) {
    for (int k = 0; k < Pack<To>::parts; ++k)
      r.part[k] = native_narrow<typename Pack<To>::Native>(a.part[2 * k], a.part[2 * k + 1]);
  } else {
    for (int k = 0; k < Pack<From>::parts; ++k) native_widen(a.part[k], r.part[2 * k], r.part[2 * k + 1]);
  }
  return r;
}

template <typename T>
inline T largest_lane(const Pack<T>& a) {
  T lanes[lane_count];
  __builtin_memcpy(lanes, &a, sizeof(a));
  for (int half = lane_count / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] = lanes[l] > lanes[l + half] ? lanes[l] : lanes[l + half];
  return lanes[0];
}

template <typename T>
inline T smallest_lane(const Pack<T>& a) {
  return -largest_lane(-a);
}

// Lane l of the result is lane l + count of a, or zero beyond the last.
template <typename T>
inline Pack<T> shift_lanes(const Pack<T>& a, int count) {
  alignas(vector_bytes) T lanes[2 * lane_count] = {};
  __builtin_memcpy(lanes, &a, sizeof(a));
  Pack<T> r;
  __builtin_memcpy(&r, lanes + count, sizeof(r));
  return r;
}

// Matrices of Packs are row-major with an odd number of Packs from row to row: with a power of two a column's entries
// would share a few sets of the first-level cache and evict one another (4 KB from row to row at 32 columns of
// doubles).
constexpr int64_t row_stride(int64_t columns) { return columns | 1; }

// While it lives, this thread counts denormal numbers as zero. On x86-64 one operation on them takes as long as a hundred
// others. Elsewhere it does nothing: ARM's processors compute with them at full speed.
class DenormalsAreZero {
 public:
  DenormalsAreZero() {
#if defined(__SSE2__)
    constexpr unsigned results_and_operands = 0x8040;
    before_ = _mm_getcsr();
    set(before_ | results_and_operands);
#endif
  }
  ~DenormalsAreZero() {
#if defined(__SSE2__)
    set(before_);
#endif
  }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#if defined(__SSE2__)
  // The compiler does not know that arithmetic depends on this register: only a call that is not inlined stays inside.
  static void set(unsigned value) { asm volatile("ldmxcsr %0" : : "m"(value) : "memory"); }
  unsigned before_;
#endif
};

}  // namespace SVDRD_ISA
}  // namespace svdrd
