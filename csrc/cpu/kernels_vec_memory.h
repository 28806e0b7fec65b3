// How vectors come from memory and get there, whatever type lies there. Included by the kernels
// alone.
#pragma once

#include "cpu/kernels_vec.h"

namespace softreg {

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

// The same in one instruction of processors that have it, for which this file is not compiled:
// what is below 2^-126 becomes 0, as it does in exp.
SOFTREG_INLINE __m512i rounded_at_once(__m512 a, __m512 b) {
  __m512i both;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(a), "v"(b));
  return both;
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
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    if (__builtin_cpu_supports("avx512bf16")) {
      return rounded_at_once(a, b);
    }
    // two thirds of at::vec's instructions
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
