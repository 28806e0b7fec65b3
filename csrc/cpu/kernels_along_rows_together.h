// Vectors along a row, for as many rows together as the vector of rows has lanes. Included by the
// kernels alone.
#pragma once

#include "cpu/kernels_lane_gradients.h"
#include "cpu/kernels_row_ends.h"
#include "cpu/kernels_rows_together.h"

namespace softreg {
namespace {

// The most classes of rows that are read whether they count or not: to foresee which do would cost
// more.
constexpr int64_t kMostReadAnyway = 64;

// The gradients of the rows [row, row + count), whose maxima are `max`, or 0: value_of(r) are the
// r-th row's, as store_gradients takes them.
template <typename T, typename A, typename V, typename ValueOf>
SOFTREG_INLINE void write_gradients(const BackwardArgs<T, A>& args, int64_t row, int64_t count,
                                    const LaneTargets<V>& targets, const V& max, ValueOf value_of) {
  constexpr int64_t kRows = V::size();
  const RowBits rows = rows_to_read(targets, count, args.grad_lse);
  const RowGradient<V> of_rows = row_gradients(args, row, count, targets, max);
  A softmax_scale[kRows], weight_scale[kRows], target_offset[kRows], upstream[kRows];
  store_lane_vec(softmax_scale, of_rows.softmax_scale);
  store_lane_vec(weight_scale, of_rows.weight_scale);
  store_lane_vec(target_offset, of_rows.target_offset);
  store_lane_vec(upstream, of_rows.upstream);
  int64_t labels[kRows];
  targets.store_labels(labels);
  const bool streamed = streams(args);
  for (int64_t r = 0; r < count; ++r) {
    if (!has_row(rows, r)) {
      store_no_gradients(args, row + r, all_columns(args));
      continue;
    }
    RowGradients<T, A> gradients;
    gradients.begin(args, row + r, labels[r],
                    {softmax_scale[r], weight_scale[r], target_offset[r], upstream[r]}, 0);
    store_gradients(gradients, args.grad.row(row + r), args.classes, streamed, value_of(r));
  }
}

// then(row, count, targets, max, rows): after each vector of rows, whose exponentials `exps` kept.
template <typename T, typename A, typename Exps, typename Then>
SOFTREG_INLINE ForwardTotals forward_together(const ForwardArgs<T, A>& args, int64_t begin,
                                              int64_t end, const Exps& exps, Then then) {
  using V = ManyLanes<A>;
  constexpr int64_t kRows = V::size();
  const bool reads_all = args.lse || args.classes <= kMostReadAnyway;
  RowsTogether<Exps::kKeeps, T, V> rows(args);
  LaneTargets<V> targets;
  LaneTotals<A> of_lanes;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = end - row < kRows ? end - row : kRows;
    targets.read(args, row, count);
    const V max = rows.read(row, rows_to_read(targets, count, reads_all)), common = shift(max);
    LaneForward<V> of_rows;
    of_rows.label_logit = rows.label_logits(targets);
    const RowState<V, V> sums = rows.sums(common, args.all_classes_count(), exps);
    of_rows.state = {{max, sums.exp.sum}, WideOf<V>(sums.coefficient), WideOf<V>(sums.logit)};
    add_rows(args, row, count, targets, of_rows, of_lanes);
    then(row, count, targets, common, rows);
  }
  return of_lanes.folded(targets.bad_row(args, begin, end));
}

template <typename T, typename A>
ForwardTotals forward_together(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return forward_together(args, begin, end, ForgetExps(), [](auto&&...) {});
}

// use(std::true_type()) or use(std::false_type()), so that whether logits are transformed is asked
// once, not for each vector.
template <typename T, typename A, typename Use>
SOFTREG_INLINE void with_transformed(const CrossEntropyRows<T, A>& args, Use use) {
  if (args.transform.is_identity) {
    use(std::false_type());
  } else {
    use(std::true_type());
  }
}

// Both passes in one.
template <typename T, typename A>
ForwardTotals forward_with_gradient_together(const ForwardArgs<T, A>& forward,
                                             const BackwardArgs<T, A>& backward, int64_t begin,
                                             int64_t end) {
  // inlined into its caller it would have fewer registers
  const auto write = [&](int64_t row, int64_t count, const auto& targets, const auto& max,
                         const auto& rows) __attribute__((noinline)) {
    with_transformed(forward, [&](auto is_transformed) {
      constexpr bool kTransformed = decltype(is_transformed)::value;
      write_gradients(backward, row, count, targets, max, [&](int64_t r) {
        return [exps = rows.row(r), slopes = rows.slopes(r)](int64_t c, auto, auto of) {
          const Vec<A> grad = of(load_vec(exps + c));
          return kTransformed ? grad * load_vec(slopes + c) : grad;
        };
      });
    });
  };
  const ForwardTotals totals = forward_together(forward, begin, end, KeepExps<T>(backward), write);
  end_of_streams();
  return totals;
}

template <typename T, typename A>
int64_t backward_together(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  using V = ManyLanes<A>;
  constexpr int64_t kRows = V::size();
  const LogitTransform<A> transform = args.transform;  // a copy: see for_each_transformed
  LaneTargets<V> targets;
  with_transformed(args, [&](auto is_transformed) {
    constexpr bool kTransformed = decltype(is_transformed)::value;
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t count = end - row < kRows ? end - row : kRows;
      targets.read(args, row, count);
      const V max = load_lane_vec<V>(args.row_max + row, count, A(0));
      write_gradients(args, row, count, targets, max, [&](int64_t r) {
        const T* logits = args.logits.row(row + r);
        const Vec<A> of_row(args.row_max[row + r]);
        return [=](int64_t c, auto lanes, auto of) {
          fetch_ahead(logits + c);
          const Vec<A> x = load_lanes(lanes, logits + c, A(0));
          if constexpr (kTransformed) {
            return gradient_of_transformed(transform_logit(transform, x), of_row, of);
          } else {
            return of(vexp(x - of_row));
          }
        };
      });
    }
  });
  end_of_streams();
  return targets.bad_row(args, begin, end);
}

}  // namespace
}  // namespace softreg
