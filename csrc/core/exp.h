// exp for arguments up to 0, all that a shifted softmax asks for, to about 1 ulp of float32.
// F is a vector of floats; found by overload: mul_add, power_of_two, zero_below.
#pragma once

#include "value.h"

namespace softreg {

// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts, so that n times
// the first is exact (Cody and Waite, 1980); exp(r) by the minimax polynomial 1 + r + r^2 q(r) of
// degree 6 on |r| <= ln(2)/2, relative error 2^-28.3.
// Below ln(FLT_MIN) the result is 0: such a probability is lost in every rounding. NaN stays NaN.
template <typename F>
SOFTREG_INLINE F exp_nonpositive(F x) {
  // Adding it leaves n + 127, the exponent field of 2^n, in the low mantissa bits.
  const F magic = F(0x1.8p23f + 127.0f);
  const F biased = mul_add(x, F(0x1.715476p0f), magic);
  const F n = biased - magic;
  F r = mul_add(n, F(-0x1.63p-1f), x);
  r = mul_add(n, F(0x1.bd0106p-13f), r);
  F p = F(0x1.6a23d0p-10f);
  p = mul_add(p, r, F(0x1.123a20p-7f));
  p = mul_add(p, r, F(0x1.5558f2p-5f));
  p = mul_add(p, r, F(0x1.555492p-3f));
  p = mul_add(p, r, F(0x1.fffffcp-2f));
  p = mul_add(p, r, F(1.0f));
  p = mul_add(p, r, F(1.0f));
  return zero_below(x, F(-87.33654f), p * power_of_two(biased));
}

}  // namespace softreg
