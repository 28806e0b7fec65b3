// Vectors along a row: for many classes, adjacent in memory. Included by the kernels alone.
#pragma once

#include "cpu/kernels_row_gradients.h"

namespace softreg {
namespace {

// One row of the forward pass. state_of_row(): of all its columns, asked for where they are read.
template <typename T, typename A, typename StateOfRow>
SOFTREG_INLINE RowTarget forward_row(const ForwardArgs<T, A>& args, int64_t row,
                                     ForwardTotals& totals, StateOfRow state_of_row) {
  const RowTarget target(args, row, totals.bad_row);
  if (is_read(args, target)) {
    finish_row(args, row, target, state_of_row(), label_logit(args, row, target), totals);
  } else {
    add_row(args, row, target, A(0), A(0), A(0), A(0), A(0), totals);
  }
  return target;
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
  return state_of_columns(args, row, columns, staged);
}

template <typename T>
ForwardTotals forward_of_states(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin,
                                int64_t end, const RowState<Accumulator<T>>* states,
                                int64_t columns_of_row) {
  using A = Accumulator<T>;
  ForwardTotals totals;
  for (int64_t row = begin; row < end; ++row, states += columns_of_row) {
    forward_row(args, row, totals, [&] {
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
  ForwardTotals totals;
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    forward_row(args, row, totals,
                [&] { return state_of_columns(args, row, all_columns(args), staged); });
  }
  return totals;
}

template <typename T, typename A>
int64_t backward_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end,
                           Columns columns) {
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    backward_row(args, row, target, columns);
  }
  end_of_streams();
  return bad_row;
}

// Keeps a row's exponentials, and writes the last row's gradients beside.
template <typename T, typename A>
struct KeptExps {
  A* to;
  const RowGradientWriter<T, A>& last;

  template <bool kMayBeWeighted, typename Lanes>
  SOFTREG_INLINE void keep(int64_t i, Lanes, Vec<A> exp) const {
    exp.store(to + i);
    if constexpr (std::is_same_v<Lanes, All>) {
      last.template write_beside<kMayBeWeighted>(i);
    }
  }
};

// Both passes in one, for rows in one chunk whose logits are taken as they are: no exponential is
// taken twice, and the gradients of a row are written beside the exponentials of the next one, so
// that memory and arithmetic keep each other company.
template <typename T, typename A>
ForwardTotals forward_with_gradient_along_row(const ForwardArgs<T, A>& forward,
                                              const BackwardArgs<T, A>& backward, int64_t begin,
                                              int64_t end) {
  Staged<A> exps[2];
  ForwardTotals totals;
  RowGradientWriter<T, A> writer(backward);
  for (int64_t row = begin; row < end; ++row) {
    A* const these = exps[row % 2].values;
    const RowTarget target = forward_row(forward, row, totals, [&] {
      return state_of_chunk(forward.logits.row(row), forward.classes,
                            RowWeights<T, A>(forward, row, 0), forward.all_classes_count(),
                            KeptExps<T, A>{these, writer});
    });
    writer.write_rest(is_read(forward, target));
    writer.begin(row, target, these);
  }
  writer.write_rest(false);
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
