// exp for arguments up to 4, all that a shifted softmax asks for, to 1 ulp, 2 at most. Beyond, and
// below the smallest normal number, results are not to be relied on.
// F is a vector of floats or doubles; found by overload: mul_add, vmax, power_of_two<kBits>.
#pragma once

#include "value.h"

namespace softreg {

// (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2^(kBits + 1): coefficients from the constant up, for
// the least relative error of exp(r) that the degree allows. Rounded, they leave one of 2^-28.0,
// 2^-25.2 and 2^-29.2 for floats, 2^-56.3 for doubles.
template <int kBits, typename A>
struct ExpRemainder;

template <>
struct ExpRemainder<0, float> {
  static constexpr float kCoefficients[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f,
                                            0x1.1239d4p-7f, 0x1.6a244ep-10f};
};

template <>
struct ExpRemainder<3, float> {
  static constexpr float kCoefficients[] = {0x1.000874p-1f, 0x1.555656p-3f};
};

template <>
struct ExpRemainder<4, float> {
  static constexpr float kCoefficients[] = {0x1.00021ep-1f, 0x1.55559ap-3f};
};

template <>
struct ExpRemainder<0, double> {
  static constexpr double kCoefficients[] = {
      0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.555555555088cp-5,  0x1.1111111127b9ep-7,
      0x1.6c16c18426692p-10, 0x1.a01a012a68843p-13, 0x1.a0199a16ebe3dp-16, 0x1.71df253d2f8d5p-19,
      0x1.28ad6899de2afp-22, 0x1.ad7f75b4eb916p-26};
};

template <>
struct ExpRemainder<4, double> {
  static constexpr double kCoefficients[] = {0x1.fffffffffffb9p-2, 0x1.555555548f894p-3,
                                             0x1.55555558fcc80p-5, 0x1.11123aae4bae3p-7,
                                             0x1.6c14c6d019f76p-10};
};

// kLn2: ln 2, for doubles in two parts, the first so short that its product with k is exact.
template <typename A>
struct ExpReduction;

template <>
struct ExpReduction<float> {
  static constexpr float kLeast = -0x1.601e68p+6f;  // -127 ln 2, whose power of two is 0
  static constexpr float kMagic = 0x1.8p23f;        // floats of its size are whole numbers
  static constexpr float kLn2[] = {0x1.62e430p-1f};
};

template <>
struct ExpReduction<double> {
  static constexpr double kLeast = -0x1.628b76e3a7b61p+9;  // -1023 ln 2
  static constexpr double kMagic = 0x1.8p52;
  static constexpr double kLn2[] = {0x1.62e42feep-1, 0x1.a39ef35793c76p-33};
};

// exp(x) = power (1 + r + r^2 p).
template <typename F>
struct ReducedExp {
  F power, r, p;
};

// exp(x) = 2^k exp(r) with k, a multiple of 2^-kBits, nearest to x log2(e) (Tang, 1989); 2^k is the
// exponent's bits and an entry of a table of 2^kBits, in the overload power_of_two.
// As a float, ln 2 is off by 2^-28 of itself, and without a multiply-add k ln 2 is rounded: a
// float's relative error grows with |x|, by less than half a rounding of x. At the least x, whose
// power is 0, and below it: 0. NaN stays NaN.
template <int kBits, typename F>
SOFTREG_INLINE ReducedExp<F> reduced_exp(F x) {
  using A = typename F::value_type;
  using Reduction = ExpReduction<A>;
  x = vmax(F(Reduction::kLeast), x);
  const F log2_e = F(static_cast<A>(0x1.71547652b82fep0));
  // Adding it leaves k 2^kBits in the low mantissa bits.
  const F magic = F(Reduction::kMagic / (1 << kBits));
  const F biased = mul_add(x, log2_e, magic);
  const F minus_k = magic - biased;
  F r = x;
  for (const A ln2 : Reduction::kLn2) {
    r = mul_add(minus_k, F(ln2), r);
  }
  constexpr auto& coefficients = ExpRemainder<kBits, A>::kCoefficients;
  F p = F(coefficients[sizeof(coefficients) / sizeof(A) - 1]);
  for (int i = sizeof(coefficients) / sizeof(A) - 2; i >= 0; --i) {
    p = mul_add(p, r, F(coefficients[i]));
  }
  return {power_of_two<kBits>(biased), r, p};
}

// exp(x) as a product, for a sum can take it up in the one rounding of a multiply-add.
template <typename F>
struct ExpFactors {
  F power, remainder;
};

template <int kBits, typename F>
SOFTREG_INLINE ExpFactors<F> exp_factors(F x) {
  const ReducedExp<F> exp = reduced_exp<kBits>(x);
  const F one(1);
  return {exp.power, mul_add(mul_add(exp.p, exp.r, one), exp.r, one)};
}

}  // namespace softreg
