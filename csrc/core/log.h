// log for positive numbers, and -inf for 0: all that a sum of exponentials asks for, to about 1 ulp
// of float32.
// F is a vector of floats; found by overload: mul_add.
#pragma once

#include "value.h"

namespace softreg {

// (log(1 + f) - f + f^2 / 2) / f^3 for -1/4 <= f <= 1/2: coefficients from the constant up. The
// relative error of the logarithm is the least that the degree allows, 2^-27.6, then rounded to
// float.
constexpr float kLogRemainder[] = {0x1.5555a4p-2f,  -0x1.00004p-2f, 0x1.9969aep-3f,
                                   -0x1.54efd8p-3f, 0x1.28848ap-3f, -0x1.0d8ad8p-3f,
                                   0x1.ac916ap-4f,  -0x1.7140f4p-5f};

// Of mantissa 2^exponent, the mantissa in [3/4, 3/2); exponent -inf for 0.
template <typename F>
SOFTREG_INLINE F log_of(F exponent, F mantissa) {
  const F f = mantissa - F(1.0f);
  F p = F(kLogRemainder[sizeof(kLogRemainder) / sizeof(float) - 1]);
  for (int i = sizeof(kLogRemainder) / sizeof(float) - 2; i >= 0; --i) {
    p = mul_add(p, f, F(kLogRemainder[i]));
  }
  p = mul_add(p, f, F(-0.5f)) * (f * f);
  // ln 2 in two parts: the product with the first is exact.
  const F of_mantissa = f + mul_add(exponent, F(0x1.7f7d1cp-20f), p);
  return mul_add(exponent, F(0x1.62e4p-1f), of_mantissa);
}

}  // namespace softreg
