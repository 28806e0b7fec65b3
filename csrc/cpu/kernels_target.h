// What a row's target says: scalar work, once a row. Included by the kernels alone.
#pragma once

#include "core/cross_entropy.h"
#include "kernel_args.h"

namespace softreg {
namespace {

// One row's label. `counts` is false for an ignored row and for a bad one, which is recorded. With
// probabilities every row counts and there is no label.
struct RowTarget {
  int64_t label = -1;
  bool counts = true;

  template <typename T, typename A>
  RowTarget(const CrossEntropyRows<T, A>& args, int64_t row, int64_t& bad_row) {
    if (args.has_probabilities()) {
      return;
    }
    label = args.labels[row];
    counts = label != args.labels.ignore_index;
    if (counts && (label < 0 || label >= args.classes)) {
      bad_row = row < bad_row ? row : bad_row;
      counts = false;
    }
  }
};

template <typename T, typename A>
SOFTREG_INLINE A class_weight(const CrossEntropyRows<T, A>& args, int64_t c) {
  return args.weight ? args.weight[c] : A(1);
}

// 1 - s and s / C.
template <typename T, typename A>
SOFTREG_INLINE A on_target(const CrossEntropyRows<T, A>& args) {
  return static_cast<A>(1 - args.label_smoothing);
}

template <typename T, typename A>
SOFTREG_INLINE A per_class(const CrossEntropyRows<T, A>& args) {
  return static_cast<A>(args.label_smoothing / args.classes);
}

template <typename T, typename A>
SOFTREG_INLINE RowCoefficients<A> row_coefficients(const CrossEntropyRows<T, A>& args,
                                                   int64_t label) {
  return {on_target(args) * class_weight(args, label), per_class(args), args.weight_sum};
}

template <typename T, typename A>
SOFTREG_INLINE A upstream_gradient(const BackwardArgs<T, A>& args, int64_t row) {
  return args.grad_output ? static_cast<A>(args.grad_output[row * args.grad_output_stride])
                          : args.grad_reduced;
}

template <typename T, typename A>
SOFTREG_INLINE RowGradient<A> row_gradient(const BackwardArgs<T, A>& args, int64_t row,
                                           RowTarget target) {
  if (args.has_probabilities()) {
    return {args.coefficient_sum[row] / args.sum[row], A(1), A(0)};
  }
  return row_gradient(row_coefficients(args, target.label), class_weight(args, target.label),
                      args.sum[row]);
}

// Ends one row of the forward pass. `logit` is the label's, or anything where there is none;
// `weighted_nll` is sum_c a_c (lse - x_c) with probabilities, else what the smoothing asks for.
template <typename T, typename A>
SOFTREG_INLINE void add_row(const ForwardArgs<T, A>& args, int64_t row, RowTarget target, A max,
                            A sum, A log_sum, A weighted_nll, ForwardTotals& totals) {
  args.row_max[row] = max;
  args.sum[row] = sum;
  A loss = 0;
  if (args.has_probabilities()) {
    loss = weighted_nll;
    totals.weight.add(1);
  } else if (target.counts) {
    const A logit = static_cast<A>(args.logits.row(row)[target.label * args.logits.class_stride]);
    loss = row_loss(row_coefficients(args, target.label),
                    negative_log_likelihood(log_sum, logit - max), weighted_nll);
    totals.weight.add(class_weight(args, target.label));
  }
  totals.loss.add(loss);
  if (args.loss) {
    args.loss[row] = static_cast<T>(loss);
  }
}

}  // namespace
}  // namespace softreg
