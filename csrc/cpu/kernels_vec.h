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

template <typename A>
SOFTREG_INLINE Vec<A> zero_if_neg_inf(Vec<A> x) {
  return Vec<A>::blendv(x, Vec<A>(0), x == Vec<A>(-INFINITY));
}

template <typename A>
SOFTREG_INLINE Vec<A> vlog(Vec<A> x) {
  return x.log();
}

template <typename A>
SOFTREG_INLINE Vec<A> vtanh(Vec<A> x) {
  return x.tanh();
}

SOFTREG_INLINE Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
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

}  // namespace softreg

#include "core/exp.h"
#include "core/logit_transform.h"

namespace softreg {

SOFTREG_INLINE Vec<float> vexp(Vec<float> x) {
  const ExpFactors<Vec<float>> exp = exp_factors<kExp2Bits>(x);
  return exp.power * exp.remainder;
}
SOFTREG_INLINE Vec<double> vexp(Vec<double> x) { return x.exp(); }

// sum + exp(x)
SOFTREG_INLINE Vec<float> add_exp(Vec<float> sum, Vec<float> x) {
  const ExpFactors<Vec<float>> exp = exp_factors<kExp2Bits>(x);
  return mul_add(exp.power, exp.remainder, sum);
}
SOFTREG_INLINE Vec<double> add_exp(Vec<double> sum, Vec<double> x) { return sum + vexp(x); }

SOFTREG_INLINE Vec<float> load_vec(const float* x) { return Vec<float>::loadu(x); }
SOFTREG_INLINE Vec<double> load_vec(const double* x) { return Vec<double>::loadu(x); }

template <typename T>
SOFTREG_INLINE Vec<float> load_vec(const T* x) {
  Vec<float> wide;
  at::vec::load_to_float(x, wide);
  return wide;
}

SOFTREG_INLINE Vec<float> load_first(const float* x, int64_t count) {
  return Vec<float>::loadu(x, count);
}
SOFTREG_INLINE Vec<double> load_first(const double* x, int64_t count) {
  return Vec<double>::loadu(x, count);
}

template <typename T>
SOFTREG_INLINE Vec<float> load_first(const T* x, int64_t count) {
  return std::get<0>(at::vec::convert_to_float<T>(Vec<T>::loadu(x, count)));
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

SOFTREG_INLINE void store_vec(float* to, Vec<float> x) { x.store(to); }
SOFTREG_INLINE void store_vec(double* to, Vec<double> x) { x.store(to); }

template <typename T>
SOFTREG_INLINE void store_vec(T* to, Vec<float> x) {
  T narrow[2 * Vec<float>::size()];
  at::vec::convert_from_float<T>(x, x).store(narrow);
  __builtin_memcpy(to, narrow, Vec<float>::size() * sizeof(T));
}

SOFTREG_INLINE void store_part(float* to, int64_t count, Vec<float> x) {
  x.store(to, static_cast<int>(count));
}
SOFTREG_INLINE void store_part(double* to, int64_t count, Vec<double> x) {
  x.store(to, static_cast<int>(count));
}

template <typename T>
SOFTREG_INLINE void store_part(T* to, int64_t count, Vec<float> x) {
  at::vec::convert_from_float<T>(x, x).store(to, static_cast<int>(count));
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
    return at::vec::convert_from_float<T>(part(0), part(1));
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
