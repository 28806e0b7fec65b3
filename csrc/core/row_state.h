// What one walk over a row collects, for the host compiler and nvcc alike: its logsumexp, and
// beside it the sums that a loss over all classes needs, with the coefficients a_c of
// core/cross_entropy.h. Relative to the maximum every term has the same sign, where the
// coefficients have: nothing cancels, whatever |x_c|.
#pragma once

#include "log_sum_exp.h"

namespace softreg {

// S is what the weighted sums are taken in.
template <typename F, typename S = double>
struct RowState {
  LogSumExp<F> exp;
  S coefficient;  // sum_c a_c
  S logit;        // sum_c a_c (x_c - shift(max))

  SOFTREG_INLINE static RowState empty() { return {{-F(INFINITY), F(0)}, S(0), S(0)}; }
};

// The same logits, relative to a maximum that is no smaller. `weighted`: whether there are
// coefficients.
template <typename F, typename S>
SOFTREG_INLINE RowState<F, S> relative_to(RowState<F, S> state, F max, bool weighted) {
  if (weighted) {
    const S change = static_cast<S>(shift(state.exp.max)) - static_cast<S>(shift(max));
    state.logit = state.logit + state.coefficient * change;
  }
  state.exp = relative_to(state.exp, max);
  return state;
}

// Both relative to the same maximum.
template <typename F, typename S>
SOFTREG_INLINE RowState<F, S> sum_of(RowState<F, S> a, RowState<F, S> b, bool weighted) {
  a.exp.sum = a.exp.sum + b.exp.sum;
  if (weighted) {
    a.coefficient = a.coefficient + b.coefficient;
    a.logit = a.logit + b.logit;
  }
  return a;
}

// The state of both sets of logits together; an empty state changes nothing.
template <typename F, typename S>
SOFTREG_INLINE RowState<F, S> merge(RowState<F, S> a, RowState<F, S> b, bool weighted) {
  const F max = vmax(a.exp.max, b.exp.max);
  return sum_of(relative_to(a, max, weighted), relative_to(b, max, weighted), weighted);
}

}  // namespace softreg
