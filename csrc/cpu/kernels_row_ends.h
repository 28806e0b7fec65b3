// How rows end in the forward pass: from the state of their logits to what is kept of them, a
// vector of rows at a time. Included by the kernels alone.
#pragma once

#include "cpu/kernels_lanes.h"
#include "cpu/kernels_tile_walk.h"

namespace softreg {
namespace {

// Whether the classes besides the label have coefficients.
template <Target kTarget, typename T, typename A>
SOFTREG_INLINE bool has_coefficients(const CrossEntropyRows<T, A>& args) {
  return has_probabilities(kTarget) || (!is_plain(kTarget) && args.all_classes_count());
}

// What the forward pass knows of a vector of rows. Of many tiles the weighted sums are wide:
// classes with the same coefficients round the same way each time.
template <typename V>
struct LaneForward {
  using State = RowState<V, WideOf<V>>;
  State state = State::empty();
  V label_logit{typename V::value_type(0)};
};

// Ends the rows [row, row + count) of the forward pass. Lanes past them do not count, whatever they
// hold.
template <Target kTarget, typename T, typename A, typename V>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, int64_t row, int64_t count,
                             const LaneTargets<V>& targets, const LaneForward<V>& rows,
                             LaneTotals<A>& totals) {
  const auto& state = rows.state;
  const V max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  // of rows that need not be read 0, whether or not others beside them were
  const auto saved = [&](V x) { return args.lse ? x : targets.of_counting(x); };
  store_lane_vec(args.row_max + row, count, saved(max));
  store_lane_vec(args.sum + row, count, saved(state.exp.sum));
  if (args.lse) {
    store_lane_vec(args.lse + row, count, max + log_sum);
  }
  if (has_probabilities(kTarget)) {
    store_lane_vec(args.coefficient_sum + row, count, narrowed(state.coefficient));
  }
  V weighted_nll(0);
  if (has_coefficients<kTarget>(args)) {
    weighted_nll = narrowed(
        weighted_negative_log_likelihood(state.coefficient, WideOf<V>(log_sum), state.logit));
  }
  const V loss = targets.of_counting(
      loss_of_row(args, targets.weight, rows.label_logit, max, log_sum, weighted_nll));
  totals.loss.add(loss);
  totals.weight.add(targets.weight);
  if (args.loss) {
    store_lane_vec(args.loss + row, count, loss);
  }
}

template <typename T, typename A, typename V>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, int64_t row, int64_t count,
                             const LaneTargets<V>& targets, const LaneForward<V>& rows,
                             LaneTotals<A>& totals) {
  if (args.has_probabilities()) {
    add_rows<Target::kProbabilities>(args, row, count, targets, rows, totals);
  } else {
    add_rows<Target::kLabels>(args, row, count, targets, rows, totals);
  }
}

// Ends rows that come one after the other. A logarithm, and a dozen scalar operations that wait for
// one another, would take as long as four vectors of a row's logits.
template <typename T, typename A>
class RowEnds {
  using V = Vec<A>;
  static constexpr int64_t kRows = V::size();

 public:
  SOFTREG_INLINE explicit RowEnds(const ForwardArgs<T, A>& args) : args_(args) {}

  // `state`: of all logits of a row, empty if they need not be read.
  SOFTREG_INLINE void add(int64_t row, RowTarget target, const RowState<A>& state) {
    max_[count_] = state.exp.max;
    sum_[count_] = state.exp.sum;
    coefficient_[count_] = state.coefficient;
    logit_[count_] = state.logit;
    const bool has_label = target.counts && !args_.has_probabilities();
    const int64_t at = has_label ? target.label * args_.logits.class_stride : 0;
    label_logit_[count_] = has_label ? static_cast<A>(args_.logits.row(row)[at]) : A(0);
    counting_[count_] = target.counts ? A(1) : A(0);
    weight_[count_] = target.counts ? row_weight(args_, target) : A(0);
    if (++count_ == kRows) {
      end_rows(row + 1);
    }
  }

  // Of all rows; `end`: one past the last that came.
  SOFTREG_INLINE ForwardTotals totals(int64_t end, int64_t bad_row) {
    if (count_ > 0) {
      end_rows(end);
    }
    return totals_.folded(bad_row);
  }

 private:
  __attribute__((noinline)) void end_rows(int64_t end) {
    const int64_t row = end - count_;
    LaneTargets<V> targets;
    targets.counting = load_part(counting_, count_, A(0));
    targets.weight = load_part(weight_, count_, A(0));
    LaneForward<V> rows;
    rows.state = {{load_vec(max_), load_vec(sum_)}, load_wide(coefficient_), load_wide(logit_)};
    rows.label_logit = load_vec(label_logit_);
    if (!args_.transform.is_identity) {
      // as the vectors are: another tanh than theirs could put it above the row's maximum
      rows.label_logit = transform_logit(args_.transform, rows.label_logit).value;
    }
    add_rows(args_, row, count_, targets, rows, totals_);
    count_ = 0;
  }

  static SOFTREG_INLINE WideOf<V> load_wide(const double* x) {
    if constexpr (std::is_same_v<A, float>) {
      return {Vec<double>::loadu(x), Vec<double>::loadu(x + Vec<double>::size())};
    } else {
      return Vec<double>::loadu(x);
    }
  }

  const ForwardArgs<T, A>& args_;
  LaneTotals<A> totals_;
  int64_t count_ = 0;
  // of the rows that are not ended yet
  alignas(64) A max_[kRows], sum_[kRows], label_logit_[kRows], counting_[kRows], weight_[kRows];
  alignas(64) double coefficient_[kRows], logit_[kRows];
};

}  // namespace
}  // namespace softreg
