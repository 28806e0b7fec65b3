// exp for arguments up to 4, all that a shifted softmax asks for, to about 1 ulp of float32.
// F is a vector of floats; found by overload: mul_add, vmax, power_of_two.
#pragma once

#include "value.h"

namespace softreg {

// 2^r - 1 over r, for |r| <= 2^-(kBits + 1): coefficients from the constant up. The relative error
// of 2^r is the least that the degree allows, 2^-28.9, 2^-25.2 and 2^-29.2, then rounded to float.
template <int kBits>
struct Exp2Remainder;

template <>
struct Exp2Remainder<0> {
  static constexpr float kCoefficients[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                                            0x1.3b2d4cp-7f, 0x1.5f3e54p-10f, 0x1.41fbbcp-13f};
};

template <>
struct Exp2Remainder<3> {
  static constexpr float kCoefficients[] = {0x1.62e432p-1f, 0x1.ec0c32p-3f, 0x1.c6a004p-5f};
};

template <>
struct Exp2Remainder<4> {
  static constexpr float kCoefficients[] = {0x1.62e430p-1f, 0x1.ebfff4p-3f, 0x1.c6ac6ap-5f};
};

// exp(x) as a product, for a sum can take it up in the one rounding of a multiply-add.
template <typename F>
struct ExpFactors {
  F power, remainder;
};

// exp(x) = 2^k 2^r with k, a multiple of 2^-kBits, nearest to x log2(e) (Tang, 1989); 2^k is the
// exponent's bits and an entry of a table of 2^kBits, in the overload power_of_two.
// log2(e) as a float is off by 2^-26 of itself and x log2(e) - k is rounded once: the relative
// error grows with |x|, by less than half a rounding of x. Down to about ln(FLT_MIN), below which
// such a probability is lost in every rounding; at the limit, whose power is 0, and below it: 0.
// NaN stays NaN.
template <int kBits, typename F>
SOFTREG_INLINE ExpFactors<F> exp_factors(F x) {
  x = vmax(F(-0x1.601e68p+6f), x);  // -127 ln 2
  const F log2_e = F(0x1.715476p0f);
  // Adding it leaves k 2^kBits in the low mantissa bits.
  const F magic = F(0x1.8p23f / (1 << kBits));
  const F biased = mul_add(x, log2_e, magic);
  const F r = mul_add(x, log2_e, magic - biased);
  constexpr auto& coefficients = Exp2Remainder<kBits>::kCoefficients;
  F p = F(coefficients[sizeof(coefficients) / sizeof(float) - 1]);
  for (int i = sizeof(coefficients) / sizeof(float) - 2; i >= 0; --i) {
    p = mul_add(p, r, F(coefficients[i]));
  }
  return {power_of_two(biased), mul_add(p, r, F(1.0f))};
}

}  // namespace softreg
