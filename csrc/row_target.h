// What a row's target says, and what a row's results make of it: of one row, or of the rows in the
// lanes of a SIMD vector. Included by the kernels alone, after the values whose overloads the
// formulas call: no argument-dependent lookup finds those of such a vector.
#pragma once

#include "core/cross_entropy.h"
#include "kernel_args.h"

namespace softreg {
namespace {

// One row's label. `counts` is false for an ignored row and for a bad one, which is recorded. With
// probabilities every row counts, but of no classes, and there is no label.
struct RowTarget {
  int64_t label = -1;
  bool counts = true;

  RowTarget() = default;
  // A label that is not in [0, classes) is one that is ignored.
  template <typename T, typename A>
  SOFTREG_INLINE RowTarget(const CrossEntropyRows<T, A>& args, int64_t label) : label(label) {
    counts = args.has_probabilities()
                 ? args.classes > 0
                 : label != args.labels.ignore_index && names_a_class(label, args.classes);
  }
  template <typename T, typename A>
  SOFTREG_INLINE RowTarget(const CrossEntropyRows<T, A>& args, int64_t row, int64_t& bad_row)
      : RowTarget(args, args.has_probabilities() ? -1 : args.labels[row]) {
    if (!counts && !args.has_probabilities() && label != args.labels.ignore_index) {
      bad_row = row < bad_row ? row : bad_row;
    }
  }
};

template <typename A>
SOFTREG_INLINE A class_weight(const A* weight, int64_t c) {
  return weight ? weight[c] : A(1);
}

// What a row that counts adds to total_weight.
template <typename T, typename A>
SOFTREG_INLINE A row_weight(const CrossEntropyRows<T, A>& args, RowTarget target) {
  return args.has_probabilities() ? A(1) : class_weight(args.weight, target.label);
}

// F: of one row, or of the rows in the lanes. `label_weight` is that of the label's class.
template <typename T, typename A, typename F>
SOFTREG_INLINE RowCoefficients<F> row_coefficients(const CrossEntropyRows<T, A>& args,
                                                   F label_weight) {
  const F weight_sum(args.weight_sum ? *args.weight_sum : static_cast<A>(args.classes));
  return {F(args.on_target) * label_weight, F(args.per_class), weight_sum};
}

template <typename T, typename A>
SOFTREG_INLINE A upstream_gradient(const BackwardArgs<T, A>& args, int64_t row) {
  const A upstream = args.grad_loss ? static_cast<A>(args.grad_loss[row * args.grad_loss_stride])
                                    : args.grad_reduced;
  // Divided in double: one rounding, not three.
  return args.total_weight ? static_cast<A>(upstream / *args.total_weight) : upstream;
}

// The gradient of a row that counts, by what flows into it through the loss. `coefficients` is the
// sum that the forward pass left, read with probabilities only.
template <typename T, typename A, typename F>
SOFTREG_INLINE RowGradient<F> row_gradient(const BackwardArgs<T, A>& args, F label_weight, F max,
                                           F sum, F coefficients, F upstream) {
  RowGradient<F> gradient{F(0), F(1), F(0), upstream};
  F on_softmax = coefficients;
  if (!args.has_probabilities()) {
    const RowCoefficients<F> of_row = row_coefficients(args, label_weight);
    on_softmax = coefficient_sum(of_row);
    gradient.weight_scale = of_row.per_class;
    gradient.target_offset = target_offset(of_row, label_weight);
  }
  if (args.z_loss != 0) {
    on_softmax = on_softmax + z_term_slope(F(args.z_loss), max + vlog(sum));
  }
  gradient.softmax_scale = on_softmax / sum;
  return gradient;
}

// What the forward pass leaves of a row.
template <typename A>
struct SavedRow {
  A max = 0;
  A sum = 0;
  A coefficients = 0;  // with probabilities only
};

template <typename T, typename A>
SOFTREG_INLINE SavedRow<A> saved_row(const BackwardArgs<T, A>& args, int64_t row) {
  return {args.row_max[row], args.sum[row],
          args.has_probabilities() ? args.coefficient_sum[row] : A(0)};
}

// Of one row, with what flows into it through the loss (where it counts), `upstream`, and through
// lse (always).
template <typename T, typename A>
SOFTREG_INLINE RowGradient<A> row_gradient(const BackwardArgs<T, A>& args, int64_t row,
                                           RowTarget target, SavedRow<A> saved, A upstream) {
  RowGradient<A> gradient;
  if (target.counts) {
    gradient = row_gradient(args, row_weight(args, target), saved.max, saved.sum,
                            saved.coefficients, upstream);
  }
  return args.grad_lse ? with_lse_gradient(gradient, args.grad_lse[row], saved.sum) : gradient;
}

// Whether a row's logits are read, forward; backward, whether a gradient flows into them. Not where
// the row is ignored, unless lse is asked for.
template <typename T, typename A>
SOFTREG_INLINE bool is_read(const ForwardArgs<T, A>& args, RowTarget target) {
  return target.counts || args.lse;
}

template <typename T, typename A>
SOFTREG_INLINE bool is_read(const BackwardArgs<T, A>& args, RowTarget target) {
  return target.counts || args.grad_lse;
}

// F: of one row that counts, or of the rows in the lanes. `weighted_nll`: sum_c a_c (lse - x_c)
// with probabilities, else what the smoothing asks for.
template <typename T, typename A, typename F>
SOFTREG_INLINE F loss_of_row(const CrossEntropyRows<T, A>& args, F label_weight, F label_logit,
                             F max, F log_sum, F weighted_nll) {
  F loss = weighted_nll;
  if (!args.has_probabilities()) {
    loss = row_loss(row_coefficients(args, label_weight),
                    negative_log_likelihood(log_sum, label_logit - max), weighted_nll);
  }
  return args.z_loss != 0 ? loss + z_term(F(args.z_loss), max + log_sum) : loss;
}

}  // namespace
}  // namespace softreg
