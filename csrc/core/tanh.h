// tanh, to about 2 ulp, and so that 1 - tanh^2 is off by about one rounding of 1.
// F is a vector of floats or doubles; found by overload: vcopysign, where_equal, and what exp.h
// asks for.
#pragma once

#include "exp.h"

namespace softreg {

// tanh |x| = (1 - e) / (1 + e) = 1 - 2 e / (1 + e), e = exp(-2 |x|): by the first while e - 1 has
// digits that e has not, then by the second, whose quotient's rounding is small beside 1.
template <typename F>
SOFTREG_INLINE F tanh_of(F x) {
  // A power of two from no table is exact, less 1 too.
  const ReducedExp<F> exp = reduced_exp<0>(vcopysign(x + x, F(-1)));
  const F remainder_less_one = mul_add(exp.r * exp.r, exp.p, exp.r);
  const F e = mul_add(exp.power, remainder_less_one, exp.power);
  const F e_less_one = mul_add(exp.power, remainder_less_one, exp.power - F(1));
  const F limit(0.25f);
  const F larger = vmax(limit, e);
  const F quotient = where_equal(larger, limit, e + e, e_less_one) / (F(1) + e);
  return vcopysign(where_equal(larger, limit, F(1) - quotient, quotient), x);
}

}  // namespace softreg
