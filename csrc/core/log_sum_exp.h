// The state of a running log(sum exp(x)), for the host compiler and nvcc alike.
// F is a value: float, double, or a SIMD vector whose lanes are independent states.
// Found by overload for each F: vmax, vexp, vlog, zero_if_neg_inf.
#pragma once

#include "value.h"

namespace softreg {

// Of the logits seen so far: their maximum, and sum = sum_c exp(x_c - shift(max)).
template <typename F>
struct LogSumExp {
  F max;
  F sum;
};

// What is subtracted before exp: the maximum, or 0 where every logit is -inf.
// Without a branch: `if (max == -inf) return` would drop a NaN on its way.
template <typename F>
SOFTREG_INLINE F shift(F max) {
  return zero_if_neg_inf(max);
}

// The same logits, relative to a maximum that is no smaller.
template <typename F>
SOFTREG_INLINE LogSumExp<F> relative_to(LogSumExp<F> state, F max) {
  return {max, state.sum * vexp(state.max - shift(max))};
}

}  // namespace softreg
