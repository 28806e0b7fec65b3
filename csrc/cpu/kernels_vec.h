// SIMD vectors for the formulas of core/, over at::vec. Included by the kernels alone. Everything
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
  // One instruction; whether a NaN is kept depends on which. It is in the sum in any case.
  return at::vec::clamp_min(x, best);
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

// |x| with the sign of `sign`.
template <typename A>
SOFTREG_INLINE Vec<A> vcopysign(Vec<A> x, Vec<A> sign) {
  const Vec<A> sign_bit(A(-0.0));
  return x.abs() | (sign & sign_bit);
}

template <typename A>
SOFTREG_INLINE Vec<A> mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return at::vec::fmadd(a, b, c);
}

template <typename A>
SOFTREG_INLINE Vec<A> mul_sub(Vec<A> a, Vec<A> b, Vec<A> c) {
  return at::vec::fmsub(a, b, c);
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
#if defined(CPU_CAPABILITY_AVX512)
  const unsigned before = (1u << count) - 1;
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(before), Vec<A>(padding), x);
  } else {
    return _mm512_mask_blend_pd(static_cast<__mmask8>(before), Vec<A>(padding), x);
  }
#else
  const Vec<A> is_before = lane_numbers<A>() < Vec<A>(static_cast<A>(count));
  return Vec<A>::blendv(Vec<A>(padding), x, is_before);
#endif
}

}  // namespace softreg
