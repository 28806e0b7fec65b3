// SIMD vectors for the formulas of core/, over at::vec. Included by kernels.inc.h alone. Everything
// is inlined by force or named after at::vec's type, which differs from one instruction set to the
// next: no function compiled for one can be linked into another's.
// The overloads stand before the formulas that call them: no argument-dependent lookup finds them.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "core/value.h"

namespace softreg {

template <typename A>
using Vec = at::vec::Vectorized<A>;

template <typename A>
SOFTREG_INLINE Vec<A> vmax(Vec<A> best, Vec<A> x) {
  return at::vec::clamp_min(x, best);  // one instruction; keeps `best` or x when the other is NaN
}

// x in the lanes where a == b, y in the others. Where at::vec would take the mask through memory,
// or through a vector, in another way.
template <typename A>
SOFTREG_INLINE Vec<A> where_equal(Vec<A> a, Vec<A> b, Vec<A> x, Vec<A> y) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x);
  }
#elif !defined(CPU_CAPABILITY_AVX2)
  A lanes[4][Vec<A>::size()];
  a.store(lanes[0]);
  b.store(lanes[1]);
  x.store(lanes[2]);
  y.store(lanes[3]);
  for (int64_t i = 0; i < Vec<A>::size(); ++i) {
    lanes[3][i] = lanes[0][i] == lanes[1][i] ? lanes[2][i] : lanes[3][i];
  }
  return Vec<A>::loadu(lanes[3]);
#endif
  return Vec<A>::blendv(y, x, a == b);
}

template <typename A>
SOFTREG_INLINE Vec<A> zero_if_neg_inf(Vec<A> x) {
  return where_equal(x, Vec<A>(-INFINITY), Vec<A>(0), x);
}

template <typename A>
SOFTREG_INLINE Vec<A> vtanh(Vec<A> x) {
  return x.tanh();
}

SOFTREG_INLINE Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return at::vec::fmadd(a, b, c);
}
SOFTREG_INLINE Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return at::vec::fmadd(a, b, c);
}

// 2^(j / 2^kExp2Bits), less what j adds to the bits of a float when it is moved up as below: as
// many as a register holds, where one instruction looks them up.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kExp2Bits = 4;
constexpr uint32_t kExp2Table[] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kExp2Bits = 3;
constexpr uint32_t kExp2Table[] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                   0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#else
constexpr int kExp2Bits = 0;
constexpr uint32_t kExp2Table[] = {0x3f800000};
#endif

// 2^(k / 2^kExp2Bits) from k in the low mantissa bits of `biased`: moved up, its whole part is a
// float's exponent, and the fraction's bits choose the entry.
SOFTREG_INLINE Vec<float> power_of_two(Vec<float> biased) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i k = _mm512_castps_si512(biased);
  const __m512i entry = _mm512_permutexvar_epi32(k, _mm512_loadu_si512(kExp2Table));
  return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(k, 23 - kExp2Bits)));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i k = _mm256_castps_si256(biased);
  const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kExp2Table));
  const __m256i entry = _mm256_permutevar8x32_epi32(table, k);
  return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(k, 23 - kExp2Bits)));
#else
  uint32_t bits[Vec<float>::size()];
  biased.store(bits);
  for (uint32_t& lane : bits) {
    lane = kExp2Table[0] + (lane << 23);
  }
  return Vec<float>::loadu(bits);
#endif
}

// The exponent and the mantissa of x >= 0, as core/log.h asks for them.
struct FloatParts {
  Vec<float> exponent, mantissa;
};

SOFTREG_INLINE FloatParts split_float(Vec<float> x) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512 mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  return {_mm512_sub_ps(_mm512_getexp_ps(x), _mm512_getexp_ps(mantissa)), mantissa};
#else
  constexpr uint32_t kThreeQuarters = 0x3f400000;
  Vec<float> exponent, mantissa;
#if defined(CPU_CAPABILITY_AVX2)
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i k =
      _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(kThreeQuarters)), 23);
  exponent = _mm256_cvtepi32_ps(k);
  mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(k, 23)));
#else
  uint32_t bits[Vec<float>::size()];
  float of_lanes[Vec<float>::size()];
  x.store(bits);
  for (int64_t lane = 0; lane < Vec<float>::size(); ++lane) {
    const int32_t k = static_cast<int32_t>(bits[lane] - kThreeQuarters) >> 23;
    of_lanes[lane] = static_cast<float>(k);
    bits[lane] -= static_cast<uint32_t>(k) << 23;
  }
  exponent = Vec<float>::loadu(of_lanes);
  mantissa = Vec<float>::loadu(bits);
#endif
  // what the bits of 0 and NaN do not say
  return {where_equal(x, Vec<float>(0), Vec<float>(-INFINITY), exponent + (x - x)), mantissa};
#endif
}

}  // namespace softreg

#include "core/exp.h"
#include "core/log.h"
#include "core/logit_transform.h"

namespace softreg {

SOFTREG_INLINE Vec<float> vlog(Vec<float> x) {
  const FloatParts parts = split_float(x);
  return log_of(parts.exponent, parts.mantissa);
}
SOFTREG_INLINE Vec<double> vlog(Vec<double> x) { return x.log(); }

SOFTREG_INLINE Vec<float> vexp(Vec<float> x) {
  const ExpFactors<Vec<float>> exp = exp_factors<kExp2Bits>(x);
  return exp.power * exp.remainder;
}
SOFTREG_INLINE Vec<double> vexp(Vec<double> x) { return x.exp(); }

// sum + exp(x), and in `exp` what vexp(x) is.
SOFTREG_INLINE Vec<float> add_exp(Vec<float> sum, Vec<float> x, Vec<float>& exp) {
  const ExpFactors<Vec<float>> factors = exp_factors<kExp2Bits>(x);
  exp = factors.power * factors.remainder;
  return mul_add(factors.power, factors.remainder, sum);
}
SOFTREG_INLINE Vec<double> add_exp(Vec<double> sum, Vec<double> x, Vec<double>& exp) {
  exp = vexp(x);
  return sum + exp;
}

SOFTREG_INLINE Vec<float> load_vec(const float* x) { return Vec<float>::loadu(x); }
SOFTREG_INLINE Vec<double> load_vec(const double* x) { return Vec<double>::loadu(x); }

template <typename T>
SOFTREG_INLINE Vec<float> load_vec(const T* x) {
  Vec<float> wide;
  at::vec::load_to_float(x, wide);
  return wide;
}

#if defined(CPU_CAPABILITY_AVX2)
SOFTREG_INLINE __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

SOFTREG_INLINE Vec<float> load_first(const float* x, int64_t count) {
#if defined(CPU_CAPABILITY_AVX2)  // at::vec would copy lane by lane
  return _mm256_maskload_ps(x, first_lanes(count));
#else
  return Vec<float>::loadu(x, count);
#endif
}
SOFTREG_INLINE Vec<double> load_first(const double* x, int64_t count) {
  return Vec<double>::loadu(x, count);
}

template <typename T>
SOFTREG_INLINE Vec<float> load_first(const T* x, int64_t count) {
  return std::get<0>(at::vec::convert_to_float<T>(Vec<T>::loadu(x, count)));
}

// A vector of floats as doubles.
struct WideVec {
  using value_type = double;
  Vec<double> low, high;

  SOFTREG_INLINE WideVec() = default;
  SOFTREG_INLINE WideVec(Vec<double> low, Vec<double> high) : low(low), high(high) {}
  SOFTREG_INLINE explicit WideVec(double x) : low(x), high(x) {}
  SOFTREG_INLINE explicit WideVec(Vec<float> x) {
#if defined(CPU_CAPABILITY_AVX512)
    low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
#elif defined(CPU_CAPABILITY_AVX2)
    low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
#else
    float lanes[Vec<float>::size()];
    double wide[Vec<float>::size()];
    x.store(lanes);
    for (int64_t lane = 0; lane < Vec<float>::size(); ++lane) {
      wide[lane] = lanes[lane];
    }
    low = Vec<double>::loadu(wide);
    high = Vec<double>::loadu(wide + Vec<double>::size());
#endif
  }

  SOFTREG_INLINE WideVec operator+(const WideVec& x) const { return {low + x.low, high + x.high}; }
  SOFTREG_INLINE WideVec operator-(const WideVec& x) const { return {low - x.low, high - x.high}; }
  SOFTREG_INLINE WideVec operator*(const WideVec& x) const { return {low * x.low, high * x.high}; }
};

// What sums of many vectors are taken in.
template <typename A>
using Wide = std::conditional_t<std::is_same_v<A, float>, WideVec, Vec<double>>;

SOFTREG_INLINE Vec<float> narrowed(const WideVec& x) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(x.low)), _mm512_cvtpd_ps(x.high),
                            1);
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_set_m128(_mm256_cvtpd_ps(x.high), _mm256_cvtpd_ps(x.low));
#else
  float lanes[Vec<float>::size()];
  double wide[Vec<float>::size()];
  x.low.store(wide);
  x.high.store(wide + Vec<double>::size());
  for (int64_t lane = 0; lane < Vec<float>::size(); ++lane) {
    lanes[lane] = static_cast<float>(wide[lane]);
  }
  return Vec<float>::loadu(lanes);
#endif
}
SOFTREG_INLINE Vec<double> narrowed(Vec<double> x) { return x; }

// Whole numbers for as many lanes as a vector of A has.
template <typename A>
using LaneIndices = at::vec::VectorizedN<int64_t, Vec<A>::size() / Vec<int64_t>::size()>;

SOFTREG_INLINE Vec<float> gather(const float* from, const LaneIndices<float>& index) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m256 low = _mm512_i64gather_ps(index[0], from, 4);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), _mm512_i64gather_ps(index[1], from, 4), 1);
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128 low = _mm256_i64gather_ps(from, index[0], 4);
  return _mm256_set_m128(_mm256_i64gather_ps(from, index[1], 4), low);
#else
  int64_t of_lanes[Vec<float>::size()];
  float lanes[Vec<float>::size()];
  index.store(of_lanes);
  for (int64_t lane = 0; lane < Vec<float>::size(); ++lane) {
    lanes[lane] = from[of_lanes[lane]];
  }
  return Vec<float>::loadu(lanes);
#endif
}
SOFTREG_INLINE Vec<double> gather(const double* from, const LaneIndices<double>& index) {
  return at::vec::gather<8>(from, index[0]);
}

template <typename A>
SOFTREG_INLINE Vec<A> lane_numbers() {
  return Vec<A>::arange(A(0), A(1));
}

// The lanes before `count` of x; after them `padding`.
template <typename A>
SOFTREG_INLINE Vec<A> padded(Vec<A> x, int64_t count, A padding) {
  const Vec<A> is_before = lane_numbers<A>() < Vec<A>(static_cast<A>(count));
  return Vec<A>::blendv(Vec<A>(padding), x, is_before);
}

template <typename A, typename T>
SOFTREG_INLINE Vec<A> load_part(const T* x, int64_t count, A padding) {
  return padded(load_first(x, count), count, padding);
}

#if defined(CPU_CAPABILITY_AVX512)
// Rounded to even where the upper half of an item ends. NaN is left as it is: arithmetic makes
// quiet ones only, whose upper halves are NaN too.
SOFTREG_INLINE __m512i rounded_to_upper_half(Vec<float> x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i almost_half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), bits, almost_half);
}

// The upper halves of 32 items, 16 of a first register and 16 of a second.
alignas(64) constexpr uint16_t kUpperHalves[] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
#endif

// Two vectors of floats as one of a half type.
template <typename T>
SOFTREG_INLINE at::vec::Vectorized<T> to_half_type(Vec<float> a, Vec<float> b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, c10::BFloat16>) {  // two thirds of at::vec's instructions
    return _mm512_permutex2var_epi16(rounded_to_upper_half(a), _mm512_load_si512(kUpperHalves),
                                     rounded_to_upper_half(b));
  }
#endif
  return at::vec::convert_from_float<T>(a, b);
}

SOFTREG_INLINE void store_vec(float* to, Vec<float> x) { x.store(to); }
SOFTREG_INLINE void store_vec(double* to, Vec<double> x) { x.store(to); }

template <typename T>
SOFTREG_INLINE void store_vec(T* to, Vec<float> x) {
  T narrow[2 * Vec<float>::size()];
  to_half_type<T>(x, x).store(narrow);
  __builtin_memcpy(to, narrow, Vec<float>::size() * sizeof(T));
}

SOFTREG_INLINE void store_part(float* to, int64_t count, Vec<float> x) {
#if defined(CPU_CAPABILITY_AVX2)
  _mm256_maskstore_ps(to, first_lanes(count), x);
#else
  x.store(to, static_cast<int>(count));
#endif
}
SOFTREG_INLINE void store_part(double* to, int64_t count, Vec<double> x) {
  x.store(to, static_cast<int>(count));
}

template <typename T>
SOFTREG_INLINE void store_part(T* to, int64_t count, Vec<float> x) {
  to_half_type<T>(x, x).store(to, static_cast<int>(count));
}

// Whether a square of T comes from memory, and gets there, with rows and columns changed.
template <typename T>
#if defined(CPU_CAPABILITY_AVX512)
constexpr bool kTransposes = !std::is_same_v<T, double>;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr bool kTransposes = std::is_same_v<T, float>;  // half a vector of half types costs more
#else
constexpr bool kTransposes = false;
#endif

// As many vectors as each has lanes: by pairs of lanes, of pairs, and so on.
SOFTREG_INLINE void transpose(Vec<float>* square) {
#if defined(CPU_CAPABILITY_AVX512)
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(square[i], square[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(square[i], square[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m512d x = _mm512_castps_pd(a[i + half]), y = _mm512_castps_pd(a[i + half + 2]);
      b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  }
  for (int j = 0; j < 4; ++j) {  // b[4 i + j] holds the columns j, j + 4, j + 8, j + 12 of rows 4 i
    const __m512 even_01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88);
    const __m512 odd_01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even_23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd_23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    square[j] = _mm512_shuffle_f32x4(even_01, even_23, 0x88);
    square[j + 4] = _mm512_shuffle_f32x4(odd_01, odd_23, 0x88);
    square[j + 8] = _mm512_shuffle_f32x4(even_01, even_23, 0xdd);
    square[j + 12] = _mm512_shuffle_f32x4(odd_01, odd_23, 0xdd);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(square[i], square[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(square[i], square[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m256d x = _mm256_castps_pd(a[i + half]), y = _mm256_castps_pd(a[i + half + 2]);
      b[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
      b[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
    }
  }
  for (int j = 0; j < 4; ++j) {
    square[j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
    square[j + 4] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
  }
#endif
}

// A register of what lies in memory: a vector of float or double, two of float as half types.
template <typename T>
using StorageVec = at::vec::Vectorized<T>;

// From part(0), for half types part(1) too.
template <typename T, typename Part>
SOFTREG_INLINE StorageVec<T> to_storage(Part part) {
  if constexpr (std::is_same_v<StorageVec<T>, decltype(part(0))>) {
    return part(0);
  } else {
    return to_half_type<T>(part(0), part(1));
  }
}

// Past the caches, to an address that the vector's size divides; where the instruction set cannot,
// as any other.
template <typename T>
SOFTREG_INLINE void stream(T* to, StorageVec<T> x) {
#if defined(CPU_CAPABILITY_AVX512)
  __m512i bits;
  __builtin_memcpy(&bits, &x, sizeof(x));
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits);
#elif defined(CPU_CAPABILITY_AVX2)
  __m256i bits;
  __builtin_memcpy(&bits, &x, sizeof(x));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
#else
  x.store(to);
#endif
}

// What was streamed is seen by other threads as what was stored is.
SOFTREG_INLINE void end_of_streams() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

}  // namespace softreg
