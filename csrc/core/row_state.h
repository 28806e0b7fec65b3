// What one walk over a row collects, for the host compiler and nvcc alike: its logsumexp, and
// beside it the sums that a loss over all classes needs, with the coefficients a_c of
// core/cross_entropy.h. Double, for their terms may cancel: |x_c| says nothing about the loss.
#pragma once

#include "log_sum_exp.h"

namespace softreg {

template <typename F>
struct RowState {
  LogSumExp<F> exp;
  double coefficient;  // sum_c a_c
  double logit;        // sum_c a_c (x_c - shift(max))

  SOFTREG_INLINE static RowState empty() { return {{-static_cast<F>(INFINITY), F(0)}, 0, 0}; }
};

// The same logits, relative to a maximum that is no smaller. `weighted`: whether there are
// coefficients.
template <typename F>
SOFTREG_INLINE RowState<F> relative_to(RowState<F> state, F max, bool weighted) {
  if (weighted) {
    state.logit += state.coefficient * (static_cast<double>(shift(state.exp.max)) - shift(max));
  }
  state.exp = relative_to(state.exp, max);
  return state;
}

// Both relative to the same maximum.
template <typename F>
SOFTREG_INLINE RowState<F> sum_of(RowState<F> a, RowState<F> b, bool weighted) {
  a.exp.sum += b.exp.sum;
  if (weighted) {
    a.coefficient += b.coefficient;
    a.logit += b.logit;
  }
  return a;
}

template <typename F>
SOFTREG_INLINE RowState<F> merge(RowState<F> a, RowState<F> b, bool weighted) {
  const F max = vmax(a.exp.max, b.exp.max);
  return sum_of(relative_to(a, max, weighted), relative_to(b, max, weighted), weighted);
}

}  // namespace softreg
