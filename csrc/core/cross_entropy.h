// Softmax cross-entropy of one row and its gradient, for the host compiler and nvcc alike.
//
// With lse = log(sum_c exp(x_c)), label t, class weights w (all 1 when not given) and label
// smoothing s over C classes (Szegedy et al., 2016):
//
//   loss = (1 - s) w_t (lse - x_t) + s/C sum_c w_c (lse - x_c)
//   d loss / d x_c = ((1 - s) w_t + s/C sum_k w_k) softmax(x)_c - s/C w_c - [c = t] (1 - s) w_t
//
// and for a target of class probabilities q, with the coefficients a_c = w_c ((1 - s) q_c + s/C),
//
//   loss = sum_c a_c (lse - x_c),  d loss / d x_c = softmax(x)_c sum_k a_k - a_c
//   d loss / d q_c = (1 - s) w_c (lse - x_c)
//
// Either may have z lse^2 added (de Brebisson and Vincent, 2016), with the gradient
// 2 z lse softmax(x)_c, and lse itself is a result too, with the gradient softmax(x)_c.
// Logits that are transformed first (logit_transform.h) are the x here.
//
// lse = max + log(sum) is kept as max and sum: added up, it would lose the digits of log(sum) where
// |max| is large (from 2^24 on in float32, all of them), and softmax(x)_c is exp(x_c - max) / sum.
#pragma once

#include "log_sum_exp.h"

namespace softreg {

// The factors of a row's loss that come from its target and the options, not from its logits.
template <typename F>
struct RowCoefficients {
  F on_target;   // (1 - s) w_t
  F per_class;   // s / C
  F weight_sum;  // sum_c w_c, or C
};

// lse - x, for a logit that was shifted by the row's maximum.
template <typename F>
SOFTREG_INLINE F negative_log_likelihood(F log_sum, F shifted_logit) {
  return log_sum - shifted_logit;
}

// a_c, the coefficient of -log softmax(x)_c when the target is a distribution.
template <typename F>
SOFTREG_INLINE F probability_coefficient(F class_weight, F target_probability, F on_target,
                                         F per_class) {
  return class_weight * (on_target * target_probability + per_class);
}

// smooth_nll = sum_c w_c (lse - x_c), 0 without label smoothing.
template <typename F>
SOFTREG_INLINE F row_loss(RowCoefficients<F> row, F target_nll, F smooth_nll) {
  return row.on_target * target_nll + row.per_class * smooth_nll;
}

// sum_c a_c (lse - x_c) from sum_c a_c and sum_c a_c (x_c - max).
template <typename F>
SOFTREG_INLINE F weighted_negative_log_likelihood(F coefficient_sum, F log_sum,
                                                  F weighted_logit_sum) {
  return coefficient_sum * log_sum - weighted_logit_sum;
}

template <typename F>
SOFTREG_INLINE F z_term(F z_loss, F lse) {
  return z_loss * lse * lse;
}

template <typename F>
SOFTREG_INLINE F z_term_slope(F z_loss, F lse) {
  return F(2) * z_loss * lse;
}

// sum_c a_c for a label.
template <typename F>
SOFTREG_INLINE F coefficient_sum(RowCoefficients<F> row) {
  return row.on_target + row.per_class * row.weight_sum;
}

template <typename F>
SOFTREG_INLINE F target_offset(RowCoefficients<F> row, F target_weight) {
  return row.on_target + row.per_class * target_weight;  // with a single class, coefficient_sum
}

// One row's gradient: (softmax_scale * exp(x_c - max) - offset_c) * upstream, where offset_c is
// target_offset for the label and weight_scale * w_c for the others; with probabilities
// weight_scale * a_c for all. The upstream gradient comes last, for then it multiplies the errors
// of a difference, not those of its terms.
template <typename F>
struct RowGradient {
  F softmax_scale = 0;
  F weight_scale = 0;
  F target_offset = 0;
  F upstream = 0;
};

// With the gradient that flows into lse besides, which the upstream one must not multiply.
template <typename F>
SOFTREG_INLINE RowGradient<F> with_lse_gradient(RowGradient<F> row, F grad_lse, F sum) {
  return {row.softmax_scale * row.upstream + grad_lse / sum, row.weight_scale * row.upstream,
          row.target_offset * row.upstream, F(1)};
}

template <typename F>
SOFTREG_INLINE F logit_gradient(F exp, F softmax_scale, F offset, F upstream) {
  return mul_sub(exp, softmax_scale, offset) * upstream;
}

template <typename F>
SOFTREG_INLINE F probability_gradient(F class_weight, F on_target, F nll, F upstream) {
  return on_target * class_weight * nll * upstream;
}

}  // namespace softreg
