// exp, log and tanh of SIMD vectors: what core/'s formulas need of a number's bits, then these.
// Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec.h"

namespace softreg {
namespace {

// 2^(j / 2^kBits), less what j adds to the bits of a number when it is moved up as below. As many
// as one instruction looks up, in a register or in two; without one, as pays: five terms of a
// double's remainder are worth a load.
template <typename A>
struct Exp2Table;

template <>
struct Exp2Table<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
#if defined(CPU_CAPABILITY_AVX512)
  static constexpr int kBits = 4;
  static constexpr Bits kEntries[] = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3,
                                      0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
                                      0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                                      0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
#elif defined(CPU_CAPABILITY_AVX2)
  static constexpr int kBits = 3;
  static constexpr Bits kEntries[] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                      0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#else
  static constexpr int kBits = 0;
  static constexpr Bits kEntries[] = {0x3f800000};
#endif
};

template <>
struct Exp2Table<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
#if defined(CPU_CAPABILITY_AVX2)
  static constexpr int kBits = 0;
  static constexpr Bits kEntries[] = {0x3ff0000000000000};
#else
  static constexpr int kBits = 4;
  static constexpr Bits kEntries[] = {
      0x3ff0000000000000, 0x3fefb5586cf9890f, 0x3fef72b83c7d517b, 0x3fef387a6e756238,
      0x3fef06fe0a31b715, 0x3feedea64c123422, 0x3feebfdad5362a27, 0x3feeab07dd485429,
      0x3feea09e667f3bcd, 0x3feea11473eb0187, 0x3feeace5422aa0db, 0x3feec49182a3f090,
      0x3feee89f995ad3ad, 0x3fef199bdd85529c, 0x3fef5818dcfba487, 0x3fefa4afa2a490da};
#endif
};

}  // namespace

// 2^(k / 2^kBits) from k in the low mantissa bits of `biased`: moved up, its whole part is a
// number's exponent, and the fraction's bits choose the entry. kBits: the table's, or 0.
#if defined(CPU_CAPABILITY_AVX512)
template <int kBits>
SOFTREG_INLINE Vec<float> power_of_two(Vec<float> biased) {
  const uint32_t* entries = Exp2Table<float>::kEntries;
  const __m512i k = _mm512_castps_si512(biased);
  __m512i entry = _mm512_set1_epi32(entries[0]);
  if constexpr (kBits > 0) {
    entry = _mm512_permutexvar_epi32(k, _mm512_loadu_si512(entries));
  }
  return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(k, 23 - kBits)));
}
template <int kBits>
SOFTREG_INLINE Vec<double> power_of_two(Vec<double> biased) {
  const uint64_t* entries = Exp2Table<double>::kEntries;
  const __m512i k = _mm512_castpd_si512(biased);
  __m512i entry = _mm512_set1_epi64(entries[0]);
  if constexpr (kBits > 0) {
    entry =
        _mm512_permutex2var_epi64(_mm512_loadu_si512(entries), k, _mm512_loadu_si512(entries + 8));
  }
  return _mm512_castsi512_pd(_mm512_add_epi64(entry, _mm512_slli_epi64(k, 52 - kBits)));
}
#elif defined(CPU_CAPABILITY_AVX2)
template <int kBits>
SOFTREG_INLINE Vec<float> power_of_two(Vec<float> biased) {
  const uint32_t* entries = Exp2Table<float>::kEntries;
  const __m256i k = _mm256_castps_si256(biased);
  __m256i entry = _mm256_set1_epi32(entries[0]);
  if constexpr (kBits > 0) {
    const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries));
    entry = _mm256_permutevar8x32_epi32(table, k);
  }
  return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(k, 23 - kBits)));
}
template <int kBits>
SOFTREG_INLINE Vec<double> power_of_two(Vec<double> biased) {
  static_assert(kBits == 0);
  const __m256i k = _mm256_slli_epi64(_mm256_castpd_si256(biased), 52);
  const __m256i entry = _mm256_set1_epi64x(Exp2Table<double>::kEntries[0]);
  return _mm256_castsi256_pd(_mm256_add_epi64(entry, k));
}
#else
template <int kBits, typename A>
SOFTREG_INLINE Vec<A> power_of_two(Vec<A> biased) {
  using Table = Exp2Table<A>;
  typename Table::Bits bits[Vec<A>::size()];
  biased.store(bits);
  for (auto& lane : bits) {
    lane = Table::kEntries[lane % (1 << kBits)] + (lane << (Table::kMantissaBits - kBits));
  }
  return Vec<A>::loadu(bits);
}
#endif

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
#include "core/tanh.h"

namespace softreg {

SOFTREG_INLINE Vec<float> vlog(Vec<float> x) {
  const FloatParts parts = split_float(x);
  return log_of(parts.exponent, parts.mantissa);
}
SOFTREG_INLINE Vec<double> vlog(Vec<double> x) { return x.log(); }

template <typename A>
SOFTREG_INLINE Vec<A> vexp(Vec<A> x) {
  const auto factors = exp_factors<Exp2Table<A>::kBits>(x);
  return factors.power * factors.remainder;
}

// sum + exp(x), and in `exp` what vexp(x) is.
template <typename A>
SOFTREG_INLINE Vec<A> add_exp(Vec<A> sum, Vec<A> x, Vec<A>& exp) {
  const auto factors = exp_factors<Exp2Table<A>::kBits>(x);
  exp = factors.power * factors.remainder;
  return mul_add(factors.power, factors.remainder, sum);
}

template <typename V>
SOFTREG_INLINE V vtanh(V x) {
  return tanh_of(x);
}

}  // namespace softreg
