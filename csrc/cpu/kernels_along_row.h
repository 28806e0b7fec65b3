// Vectors along a row: for many classes, adjacent in memory. Included by the kernels alone.
#pragma once

#include "cpu/kernels_row_state.h"
#include "cpu/kernels_target.h"

namespace softreg {
namespace {

// Ends a row of the forward pass. state_of_row(): of all its columns.
template <typename T, typename A, typename StateOfRow>
SOFTREG_INLINE RowTarget finish_row(const ForwardArgs<T, A>& args, int64_t row,
                                    ForwardTotals& totals, StateOfRow state_of_row) {
  const RowTarget target(args, row, totals.bad_row);
  if (!is_read(args, target)) {
    add_row(args, row, target, A(0), A(0), A(0), A(0), A(0), totals);
    return target;
  }
  const RowState<A> state = state_of_row();
  const A max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  double weighted_nll = 0;
  if (args.all_classes_count()) {
    weighted_nll =
        weighted_negative_log_likelihood<double>(state.coefficient, log_sum, state.logit);
    if (args.has_probabilities()) {
      args.coefficient_sum[row] = static_cast<A>(state.coefficient);
    }
  }
  add_row(args, row, target, label_logit(args, row, target), max, state.exp.sum, log_sum,
          static_cast<A>(weighted_nll), totals);
  return target;
}

// Calls then(row, target) after each row. `exps`: as for state_of_columns().
template <typename T, typename A, typename Then>
SOFTREG_INLINE ForwardTotals forward_walk_along_row(const ForwardArgs<T, A>& args, int64_t begin,
                                                    int64_t end, A* exps, Then then) {
  ForwardTotals totals;
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const auto state = [&] { return state_of_columns(args, row, all_columns(args), staged, exps); };
    then(row, finish_row(args, row, totals, state));
  }
  return totals;
}

template <typename T>
RowState<Accumulator<T>> state_of_columns(const ForwardArgs<T, Accumulator<T>>& args, int64_t row,
                                          Columns columns) {
  using A = Accumulator<T>;
  int64_t bad_row = kNoBadRow;
  if (!is_read(args, RowTarget(args, row, bad_row))) {
    return RowState<A>::empty();
  }
  Staged<A> staged;
  return state_of_columns(args, row, columns, staged, static_cast<A*>(nullptr));
}

template <typename T>
ForwardTotals forward_of_states(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin,
                                int64_t end, const RowState<Accumulator<T>>* states,
                                int64_t columns_of_row) {
  using A = Accumulator<T>;
  ForwardTotals totals;
  for (int64_t row = begin; row < end; ++row, states += columns_of_row) {
    finish_row(args, row, totals, [&] {
      RowState<A> state = states[0];
      for (int64_t i = 1; i < columns_of_row; ++i) {
        state = merge(state, states[i], args.all_classes_count());
      }
      return state;
    });
  }
  return totals;
}

template <typename T, typename A>
ForwardTotals forward_along_row(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return forward_walk_along_row(args, begin, end, static_cast<A*>(nullptr), [](auto&&...) {});
}

// Whether a gradient is stored past the caches.
template <typename T, typename A>
SOFTREG_INLINE bool streams(const BackwardArgs<T, A>& args) {
  return args.rows * args.classes * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes;
}

// gradient_of(c, lanes, offset): of the logits from the c-th column on.
template <typename T, typename A, typename GradientOf>
SOFTREG_INLINE void store_gradient(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                   const RowGradient<A>& gradient, Columns columns,
                                   GradientOf gradient_of) {
  const T* logits = args.logits.row(row) + columns.first;
  const RowWeights<T, A> weights(args, row, columns.first);
  const Vec<A> scale(gradient.weight_scale), at_label(gradient.target_offset);
  const bool weighted = args.coefficients_vary();
  const uint64_t label = static_cast<uint64_t>(target.label - columns.first);
  T* grad = args.grad.row(row) + columns.first;
  store_row<A>(grad, columns.count, streams(args), [&](int64_t c, auto lanes) {
    fetch_ahead(logits + c);
    Vec<A> offset = weighted ? scale * weights(c, lanes) : scale;
    // Here, not afterwards: to change what was streamed is to wait for it to come back.
    const uint64_t lane = label - static_cast<uint64_t>(c);
    if (__builtin_expect(lane < static_cast<uint64_t>(Vec<A>::size()), false)) {
      offset = where_equal(lane_numbers<A>(), Vec<A>(static_cast<A>(lane)), at_label, offset);
    }
    return gradient_of(c, lanes, offset);
  });
}

// `exps`: exp(x - max), where the forward pass has left them.
template <typename T, typename A>
SOFTREG_INLINE void backward_row(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                 Columns columns, const A* exps) {
  if (!is_read(args, target)) {
    __builtin_memset(static_cast<void*>(args.grad.row(row) + columns.first), 0,
                     columns.count * sizeof(T));
    return;
  }
  const T* logits = args.logits.row(row) + columns.first;
  const RowGradient<A> gradient =
      row_gradient(args, row, target, saved_row(args, row), upstream_gradient(args, row));
  const Vec<A> max(args.row_max[row]), scale(gradient.softmax_scale), upstream(gradient.upstream);
  if (exps) {
    store_gradient(args, row, target, gradient, columns, [&](int64_t c, auto lanes, Vec<A> offset) {
      return logit_gradient(load_lanes(lanes, exps + c, A(0)), scale, offset, upstream);
    });
  } else if (args.transform.is_identity) {
    store_gradient(args, row, target, gradient, columns, [&](int64_t c, auto lanes, Vec<A> offset) {
      const Vec<A> x = load_lanes(lanes, logits + c, A(0));
      return logit_gradient(vexp(x - max), scale, offset, upstream);
    });
  } else {
    store_gradient(args, row, target, gradient, columns, [&](int64_t c, auto lanes, Vec<A> offset) {
      const auto y = transform_logit(args.transform, load_lanes(lanes, logits + c, A(0)));
      return logit_gradient(vexp(y.value - max), scale, offset, upstream) * y.slope;
    });
  }
}

template <typename T, typename A>
int64_t backward_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end,
                           Columns columns) {
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    backward_row(args, row, target, columns, static_cast<const A*>(nullptr));
  }
  end_of_streams();
  return bad_row;
}

// Both passes in one, for rows in one chunk whose logits are taken as they are: no exponential is
// taken twice.
template <typename T, typename A>
ForwardTotals forward_with_gradient_along_row(const ForwardArgs<T, A>& forward,
                                              const BackwardArgs<T, A>& backward, int64_t begin,
                                              int64_t end) {
  Staged<A> exps;
  const ForwardTotals totals =
      forward_walk_along_row(forward, begin, end, exps.values, [&](int64_t row, RowTarget target) {
        backward_row(backward, row, target, all_columns(backward),
                     static_cast<const A*>(exps.values));
      });
  end_of_streams();
  return totals;
}

template <typename T, typename A>
int64_t grad_target_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end,
                              Columns columns) {
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowWeights<T, A> weights(args, row, columns.first);
    const Vec<A> on(weights.on), upstream(upstream_gradient(args, row));
    const Vec<A> max(args.row_max[row]), log_sum(vlog(args.sum[row]));
    T* grad = args.grad.row(row) + columns.first;
    for_each_chunk<kChunk>(
        args.transform, args.logits.row(row) + columns.first, columns.count, staged,
        [&](auto x, int64_t first, int64_t n) {
          store_row<A>(grad + first, n, streams(args), [&](int64_t i, auto lanes) {
            const Vec<A> logit = load_lanes(lanes, x + i, A(0));
            const Vec<A> nll = negative_log_likelihood(log_sum, logit - max);
            return probability_gradient(weights.class_weights(first + i, lanes), on, nll, upstream);
          });
        });
  }
  end_of_streams();
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
