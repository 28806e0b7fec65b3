// What a value type must offer to the formulas of core/, here for plain float and double.
// A SIMD vector brings the same functions along (cpu/kernels_vec.h, cpu/kernels_vec_exp.h).
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define SOFTREG_INLINE __host__ __device__ __forceinline__
#else
#define SOFTREG_INLINE inline __attribute__((always_inline))
#endif

namespace softreg {

// The larger one; if x is NaN, `best` is kept. A NaN logit is not lost: exp carries it into the
// sum.
template <typename F>
SOFTREG_INLINE F vmax(F best, F x) {
  return x > best ? x : best;
}
#ifdef __CUDA_ARCH__  // one instruction, and the same while `best` is a number
SOFTREG_INLINE float vmax(float best, float x) { return fmaxf(best, x); }
SOFTREG_INLINE double vmax(double best, double x) { return fmax(best, x); }
#endif

// a b - c, rounded once; by a vector in the generic set, twice.
SOFTREG_INLINE float mul_sub(float a, float b, float c) { return fmaf(a, b, -c); }
SOFTREG_INLINE double mul_sub(double a, double b, double c) { return fma(a, b, -c); }

SOFTREG_INLINE float vexp(float x) { return expf(x); }
SOFTREG_INLINE double vexp(double x) { return exp(x); }

SOFTREG_INLINE float vlog(float x) { return logf(x); }
SOFTREG_INLINE double vlog(double x) { return log(x); }

SOFTREG_INLINE float vtanh(float x) { return tanhf(x); }
SOFTREG_INLINE double vtanh(double x) { return tanh(x); }

template <typename F>
SOFTREG_INLINE F zero_if_neg_inf(F x) {
  return x == -static_cast<F>(INFINITY) ? F(0) : x;
}

}  // namespace softreg
