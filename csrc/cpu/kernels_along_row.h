// Vectors along a row: for many classes, adjacent in memory. Included by the kernels alone.
#pragma once

#include "cpu/kernels_row_ends.h"
#include "cpu/kernels_row_gradients.h"

namespace softreg {
namespace {

// Where the forward pass goes alone.
struct NothingMore {
  template <typename A>
  SOFTREG_INLINE void operator()(int64_t, RowTarget, const RowState<A>&) const {}
};

// Rows of the forward pass. state_of_row(row): of all its columns, asked for where they are read.
// then(row, target, state): before the next row.
template <typename T, typename A, typename StateOfRow, typename Then>
SOFTREG_INLINE ForwardTotals forward_rows(const ForwardArgs<T, A>& args, int64_t begin, int64_t end,
                                          StateOfRow state_of_row, Then then) {
  int64_t bad_row = kNoBadRow;
  RowEnds<T, A> ends(args);
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    const RowState<A> state = is_read(args, target) ? state_of_row(row) : RowState<A>::empty();
    ends.add(row, target, state);
    then(row, target, state);
  }
  return ends.totals(end, bad_row);
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
  const auto state_of_row = [&](int64_t row) {
    const RowState<A>* const of_row = states + (row - begin) * columns_of_row;
    RowState<A> state = of_row[0];
    for (int64_t i = 1; i < columns_of_row; ++i) {
      state = merge(state, of_row[i], args.all_classes_count());
    }
    return state;
  };
  return forward_rows(args, begin, end, state_of_row, NothingMore());
}

template <typename T, typename A>
ForwardTotals forward_along_row(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Staged<A> staged;
  const auto state_of_row = [&](int64_t row) {
    return state_of_columns(args, row, all_columns(args), staged);
  };
  return forward_rows(args, begin, end, state_of_row, NothingMore());
}

template <typename T, typename A>
int64_t backward_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end,
                           Columns columns) {
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    backward_row(args, row, target, saved_row(args, row), columns);
  }
  end_of_streams();
  return bad_row;
}

// Both passes in one, for rows of many chunks: the gradients of a row are taken while it is in the
// caches. `tanhs`: see state_of_columns.
template <typename T, typename A>
ForwardTotals forward_with_gradient_of_long_rows(const ForwardArgs<T, A>& forward,
                                                 const BackwardArgs<T, A>& backward, int64_t begin,
                                                 int64_t end, A* tanhs) {
  Staged<A> staged;
  const auto state_of_row = [&](int64_t row) {
    return state_of_columns(forward, row, all_columns(forward), staged, tanhs);
  };
  const auto write = [&](int64_t row, RowTarget target, const RowState<A>& state) {
    backward_row(backward, row, target, saved_row(state), all_columns(backward), tanhs);
  };
  const ForwardTotals totals = forward_rows(forward, begin, end, state_of_row, write);
  end_of_streams();
  return totals;
}

// Keeps a row's exponentials, and writes the last row's gradients beside.
template <typename A, typename Writer>
struct KeptExps {
  A* to;
  const Writer& last;

  template <bool kMayBeWeighted, typename Lanes>
  SOFTREG_INLINE void keep(int64_t i, Lanes, Vec<A> exp) const {
    exp.store(to + i);
    if constexpr (std::is_same_v<Lanes, All>) {
      last.template write_beside<kMayBeWeighted>(i);
    }
  }
};

// kTransformed: asked once, for in the walk it would cost a twelfth of it.
template <bool kTransformed, typename T, typename A>
ForwardTotals forward_with_gradient_of_rows(const ForwardArgs<T, A>& forward,
                                            const BackwardArgs<T, A>& backward, int64_t begin,
                                            int64_t end) {
  using Writer = RowGradientWriter<kTransformed, T, A>;
  KeptChunk<A> kept_rows[2];  // this one and the last
  Writer writer(backward);
  const auto state_of_row = [&](int64_t row) {
    const T* const logits = forward.logits.row(row);
    KeptChunk<A>& kept = kept_rows[row % 2];
    const auto state_of = [&](const auto* x) {
      return state_of_chunk(x, forward.classes, RowWeights<T, A>(forward, row, 0),
                            forward.all_classes_count(),
                            KeptExps<A, Writer>{kept.values.values, writer});
    };
    if constexpr (kTransformed) {
      kept.fill(forward.transform, logits, forward.classes);
      return state_of(kept.values.values);
    } else {
      return state_of(logits);
    }
  };
  const auto write = [&](int64_t row, RowTarget target, const RowState<A>& state) {
    writer.write_rest(is_read(forward, target));
    writer.begin(row, target, state, kept_rows[row % 2]);
  };
  const ForwardTotals totals = forward_rows(forward, begin, end, state_of_row, write);
  writer.write_rest(false);
  end_of_streams();
  return totals;
}

// Both passes in one, for rows in one chunk: nothing is transformed and no exponential taken twice,
// and the gradients of a row are written beside the exponentials of the next one, so that memory
// and arithmetic keep each other company.
template <typename T, typename A>
ForwardTotals forward_with_gradient_along_row(const ForwardArgs<T, A>& forward,
                                              const BackwardArgs<T, A>& backward, int64_t begin,
                                              int64_t end) {
  return forward.transform.is_identity
             ? forward_with_gradient_of_rows<false>(forward, backward, begin, end)
             : forward_with_gradient_of_rows<true>(forward, backward, begin, end);
}

template <typename T, typename A>
int64_t grad_target_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end,
                              Columns columns) {
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowWeights<T, A> weights(args, row, columns.first);
    const Vec<A> on(weights.on), upstream(upstream_gradient(args, row));
    const Vec<A> max(args.row_max[row]), log_sum(vlog(args.sum[row]));
    const T* logits = args.logits.row(row) + columns.first;
    T* grad = args.grad.row(row) + columns.first;
    const auto transformed = [&](int64_t first, int64_t n) {
      return staged.fill(args.transform, logits + first, n);
    };
    const auto write = [&](auto x, int64_t first, int64_t n) {
      store_row<A>(grad + first, n, streams(args), [&](int64_t i, auto lanes) {
        const Vec<A> logit = load_lanes(lanes, x + i, A(0));
        const Vec<A> nll = negative_log_likelihood(log_sum, logit - max);
        return probability_gradient(weights.class_weights(first + i, lanes), on, nll, upstream);
      });
    };
    for_each_chunk<kChunk>(args.transform, logits, columns.count, transformed, write);
  }
  end_of_streams();
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
