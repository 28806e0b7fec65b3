// Vectors across rows: each lane is a row, each vector one class of them. For few classes, and for
// logits (N, C, d1, ..., dK), whose rows lie side by side. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_lanes.h"

namespace softreg {
namespace {

// Some classes of the rows in the lanes.
template <typename A>
struct Tiles {
  Tile<A> logits;  // transformed; then exp(x - max), where that is kept; their gradients at last
  Tile<A> slopes;  // where logits are transformed
  Tile<A> probabilities;
};

// What the kernels are compiled for: labels whose loss is plain (CrossEntropyRows::is_plain()), any
// labels, probabilities.
enum class Target { kPlainLabels, kLabels, kProbabilities };

template <Target kTarget>
using TargetIs = std::integral_constant<Target, kTarget>;

// run(TargetIs<...>()), for what `args` ask for.
template <typename T, typename A, typename Run>
SOFTREG_INLINE auto for_target(const CrossEntropyRows<T, A>& args, Run run) {
  if (args.has_probabilities()) {
    return run(TargetIs<Target::kProbabilities>());
  }
  return args.is_plain() ? run(TargetIs<Target::kPlainLabels>()) : run(TargetIs<Target::kLabels>());
}

// a_c of the class first + c for probabilities, w_c for labels where it has a meaning.
template <Target kTarget, typename T, typename A>
SOFTREG_INLINE LaneVec<A> coefficient(const CrossEntropyRows<T, A>& args, const Lanes<T>& lanes,
                                      const Tiles<A>& tiles, int64_t first, int64_t c) {
  const LaneVec<A> weight(args.all_classes_count() ? class_weight(args, first + c) : A(1));
  if constexpr (kTarget == Target::kProbabilities) {
    const LaneVec<A> q = lanes.probabilities.holds(lanes.count)
                             ? load_lane_vec<A>(lanes.probabilities.at(0, first + c))
                             : tiles.probabilities[c];
    return args.probabilities_are_coefficients()
               ? q
               : probability_coefficient(weight, q, LaneVec<A>(args.on_target),
                                         LaneVec<A>(args.per_class));
  }
  return weight;
}

// The logits of the classes [first, first + n), and the probabilities if they do not lie in memory
// as vectors do.
template <Target kTarget, typename T, typename A>
SOFTREG_INLINE void load_tiles(Tiles<A>& tiles, Tile<A>* slopes, const CrossEntropyRows<T, A>& args,
                               const Lanes<T>& lanes, int64_t first, int64_t n) {
  if constexpr (kTarget == Target::kPlainLabels) {
    tiles.logits.load(lanes.logits, lanes.count, first, n);
    return;
  }
  load_logits(tiles.logits, slopes, args.transform, lanes, first, n);
  if (kTarget == Target::kProbabilities && !lanes.probabilities.holds(lanes.count)) {
    tiles.probabilities.load(lanes.probabilities, lanes.count, first, n);
  }
}

// What the forward pass knows of a vector of rows. Of many tiles the weighted sums are wide:
// classes with the same coefficients round the same way each time.
template <typename A>
struct LaneForward {
  using State = RowState<LaneVec<A>, WideLaneVec<A>>;
  State state = State::empty();
  LaneVec<A> label_logit{A(0)};
};

template <Target kTarget, bool kKeepsExps, typename T, typename A>
SOFTREG_INLINE void add_tile(LaneForward<A>& rows, const CrossEntropyRows<T, A>& args,
                             const Lanes<T>& lanes, Tiles<A>& tiles, const LaneTargets<A>& targets,
                             int64_t first, int64_t n) {
  Tile<A>& tile = tiles.logits;
  const auto logit = [&](int64_t c) { return tile[c]; };
  const LaneVec<A> max = fold_vectors<kTileClasses>(n, LaneVec<A>(-INFINITY), logit, Max(), Max());
  const LaneVec<A> common = shift(max);
  const auto number = [](int64_t c) { return c; };
  const LaneVec<A> label = targets.labels_from(first);
  LaneVec<A> label_logit = rows.label_logit;
  const auto add = [&](LaneVec<A> sum, int64_t c) {
    lanes.template fetch_ahead<kTarget == Target::kProbabilities>(kKeepsExps, first + c);
    const LaneVec<A> logit = tile[c];
    LaneVec<A> exp;
    sum = add_exp(sum, logit - common, exp);
    if constexpr (kTarget != Target::kProbabilities) {
      label_logit = where_equal(label, class_number<A>(c), logit, label_logit);
    }
    if (kKeepsExps) {
      tile.set(c, exp);
    }
    return sum;
  };
  const bool weighted = kTarget != Target::kPlainLabels && args.all_classes_count();
  RowState<LaneVec<A>, LaneVec<A>> some = RowState<LaneVec<A>, LaneVec<A>>::empty();
  if (weighted) {
    const auto add_with_coefficient = [&](RowState<LaneVec<A>, LaneVec<A>> state, int64_t c) {
      add_weighted(state, coefficient<kTarget>(args, lanes, tiles, first, c), tile[c] - common);
      state.exp.sum = add(state.exp.sum, c);
      return state;
    };
    // blocks in place of four accumulators, which of three sums each would not fit into registers
    some = fold_vectors<4, 1>(n, some, number, add_with_coefficient, SumOfStates());
  } else {
    some.exp.sum = fold_vectors<kTileClasses>(n, LaneVec<A>(0), number, add, Sum());
  }
  some.exp.max = max;
  const typename LaneForward<A>::State wide{some.exp, WideLaneVec<A>(some.coefficient),
                                            WideLaneVec<A>(some.logit)};
  rows.state = first == 0 ? wide : merge(rows.state, wide, weighted);
  rows.label_logit = label_logit;
}

// Ends a vector of rows of the forward pass, as add_row() ends one.
template <Target kTarget, typename T, typename A>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, const Lanes<T>& lanes,
                             const LaneTargets<A>& targets, const LaneForward<A>& rows,
                             LaneTotals<A>& totals) {
  const int64_t row = lanes.row, count = lanes.count;
  const auto& state = rows.state;
  const LaneVec<A> max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  store_lane_vec(args.row_max + row, count, max);
  store_lane_vec(args.sum + row, count, state.exp.sum);
  if (args.lse) {
    store_lane_vec(args.lse + row, count, max + log_sum);
  }
  if (kTarget == Target::kProbabilities) {
    store_lane_vec(args.coefficient_sum + row, count, narrowed(state.coefficient));
  }
  LaneVec<A> weighted_nll(0);
  if (kTarget != Target::kPlainLabels && args.all_classes_count()) {
    weighted_nll = narrowed(
        weighted_negative_log_likelihood(state.coefficient, WideLaneVec<A>(log_sum), state.logit));
  }
  const LaneVec<A> loss = targets.of_counting(
      loss_of_row(args, targets.weight, rows.label_logit, max, log_sum, weighted_nll));
  totals.loss.add(loss);
  totals.weight.add(targets.weight);
  if (args.loss) {
    store_lane_vec(args.loss + row, count, loss);
  }
}

// Calls then(lanes, targets, max, tiles) after each vector of rows. kKeeps: there is one tile of
// classes, and what it holds is kept for `then`, which writes to `grad`.
template <Target kTarget, bool kKeeps, typename T, typename A, typename Then>
SOFTREG_INLINE ForwardTotals forward_walk(const ForwardArgs<T, A>& args, const RowMatrix<T>& grad,
                                          int64_t begin, int64_t end, Then then) {
  Tiles<A> tiles;
  LaneTargets<A> targets;
  LaneTotals<A> of_lanes;
  for_each_lanes(args, grad, begin, end, [&](const Lanes<T>& lanes) {
    targets.read(args, lanes.row, lanes.count);
    const int64_t classes = targets.none_counts() && !args.lse ? 0 : args.classes;
    LaneForward<A> rows;
    for_each_tile<kKeeps>(classes, [&](int64_t first, int64_t n) {
      load_tiles<kTarget>(tiles, kKeeps ? &tiles.slopes : nullptr, args, lanes, first, n);
      add_tile<kTarget, kKeeps>(rows, args, lanes, tiles, targets, first, n);
    });
    add_rows<kTarget>(args, lanes, targets, rows, of_lanes);
    then(lanes, targets, shift(rows.state.exp.max), tiles);
  });
  ForwardTotals totals;
  totals.bad_row = targets.bad_row(args, begin, end);
  of_lanes.loss.add_to(totals.loss);
  of_lanes.weight.add_to(totals.weight);
  return totals;
}

template <typename T, typename A>
ForwardTotals forward_rows_in_lanes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return for_target(args, [&](auto target) {
    return forward_walk<decltype(target)::value, false>(args, {}, begin, end, [](auto&&...) {});
  });
}

template <typename T>
double total_weight(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  constexpr int64_t kLanes = LaneVec<A>::size();
  LaneTargets<A> targets;
  LaneSums<A> weights;
  for (int64_t row = begin; row < end; row += kLanes) {
    targets.read(args, row, end - row < kLanes ? end - row : kLanes);
    weights.add(targets.weight);
  }
  CompensatedSum total;
  weights.add_to(total);
  return total.total();
}

template <typename T, typename A>
SOFTREG_INLINE LaneVec<A> upstream_of_lanes(const BackwardArgs<T, A>& args, int64_t row,
                                            int64_t count) {
  if (!args.grad_loss) {
    return LaneVec<A>(args.grad_reduced);
  }
  if (args.grad_loss_stride == 1 && !args.total_weight) {
    return load_lane_vec(args.grad_loss + row, count, A(0));
  }
  A upstream[LaneVec<A>::size()] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    upstream[lane] = upstream_gradient(args, row + lane);
  }
  return load_lane_vec<A>(upstream);
}

// What the rows in the lanes need for their gradients.
template <typename T, typename A>
SOFTREG_INLINE RowGradient<LaneVec<A>> row_gradients(const BackwardArgs<T, A>& args,
                                                     const Lanes<T>& lanes,
                                                     const LaneTargets<A>& targets,
                                                     LaneVec<A> max) {
  const int64_t row = lanes.row, count = lanes.count;
  const LaneVec<A> sum = load_lane_vec(args.sum + row, count, A(1));
  RowGradient<LaneVec<A>> of_rows =
      row_gradient(args, targets.weight, max, sum,
                   args.has_probabilities() ? load_lane_vec(args.coefficient_sum + row, count, A(0))
                                            : LaneVec<A>(0),
                   upstream_of_lanes(args, row, count));
  if (args.grad_lse) {
    for (LaneVec<A>* of : {&of_rows.softmax_scale, &of_rows.weight_scale, &of_rows.target_offset,
                           &of_rows.upstream}) {
      *of = targets.of_counting(*of);
    }
    of_rows = with_lse_gradient(of_rows, load_lane_vec(args.grad_lse + row, count, A(0)), sum);
  }
  return of_rows;
}

// Stores the gradients of the classes [first, first + n). exp_of(c): exp(x - max) of first + c.
template <Target kTarget, typename T, typename A, typename ExpOf>
SOFTREG_INLINE void store_gradients(Tiles<A>& tiles, const BackwardArgs<T, A>& args,
                                    const Lanes<T>& lanes, const LaneTargets<A>& targets,
                                    const RowGradient<LaneVec<A>>& rows, int64_t first, int64_t n,
                                    ExpOf exp_of) {
  TileOutput<T, A> output(lanes.grad, lanes.count, first, tiles.logits);
  const bool all_flow = args.grad_lse || targets.all_count();
  const bool weighted = kTarget != Target::kPlainLabels && args.coefficients_vary();
  const LaneVec<A> label = targets.labels_from(first);
#pragma GCC unroll 4
  for (int64_t c = 0; c < n; ++c) {
    LaneVec<A> offset = rows.weight_scale;
    if (weighted) {
      offset = offset * coefficient<kTarget>(args, lanes, tiles, first, c);
    }
    if constexpr (kTarget != Target::kProbabilities) {
      offset = where_equal(label, class_number<A>(c), rows.target_offset, offset);
    }
    LaneVec<A> grad = logit_gradient(exp_of(c), rows.softmax_scale, offset, rows.upstream);
    if (kTarget != Target::kPlainLabels && !args.transform.is_identity) {
      grad = grad * tiles.slopes[c];
    }
    output.set(c, all_flow ? grad : targets.of_counting(grad));
  }
  output.finish(n);
}

template <Target kTarget, typename T, typename A>
SOFTREG_INLINE int64_t backward_walk(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tiles<A> tiles;
  LaneTargets<A> targets;
  for_each_lanes(args, args.grad, begin, end, [&](const Lanes<T>& lanes) {
    targets.read(args, lanes.row, lanes.count);
    const LaneVec<A> max = load_lane_vec(args.row_max + lanes.row, lanes.count, A(0));
    const RowGradient<LaneVec<A>> rows = row_gradients(args, lanes, targets, max);
    for_each_tile<false>(args.classes, [&](int64_t first, int64_t n) {
      load_tiles<kTarget>(tiles, &tiles.slopes, args, lanes, first, n);
      store_gradients<kTarget>(tiles, args, lanes, targets, rows, first, n, [&](int64_t c) {
        lanes.template fetch_ahead<kTarget == Target::kProbabilities>(true, first + c);
        return vexp(tiles.logits[c] - max);
      });
    });
  });
  return targets.bad_row(args, begin, end);
}

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return for_target(
      args, [&](auto target) { return backward_walk<decltype(target)::value>(args, begin, end); });
}

// Both passes in one, for one tile of classes: nothing is read twice, no exponential taken twice.
template <Target kTarget, typename T, typename A>
SOFTREG_INLINE ForwardTotals forward_with_gradient_in_lanes(const ForwardArgs<T, A>& forward,
                                                            const BackwardArgs<T, A>& backward,
                                                            int64_t begin, int64_t end) {
  return forward_walk<kTarget, true>(
      forward, backward.grad, begin, end,
      [&](const Lanes<T>& lanes, const LaneTargets<A>& targets, LaneVec<A> max, Tiles<A>& tiles) {
        const RowGradient<LaneVec<A>> rows = row_gradients(backward, lanes, targets, max);
        store_gradients<kTarget>(tiles, backward, lanes, targets, rows, 0, backward.classes,
                                 [&](int64_t c) { return tiles.logits[c]; });
      });
}

template <typename T, typename A>
__attribute__((flatten)) ForwardTotals
forward_with_gradient_in_lanes(const ForwardArgs<T, A>& forward, const BackwardArgs<T, A>& backward,
                               int64_t begin, int64_t end) {
  return for_target(forward, [&](auto target) {
    return forward_with_gradient_in_lanes<decltype(target)::value>(forward, backward, begin, end);
  });
}

template <typename T, typename A>
int64_t grad_target_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tile<A> tile;
  const LaneVec<A> on(args.on_target);
  for_each_lanes(args, args.grad, begin, end, [&](const Lanes<T>& lanes) {
    const int64_t row = lanes.row, count = lanes.count;
    const LaneVec<A> upstream = upstream_of_lanes(args, row, count);
    const LaneVec<A> max = load_lane_vec(args.row_max + row, count, A(0));
    const LaneVec<A> log_sum = vlog(load_lane_vec(args.sum + row, count, A(1)));
    for_each_tile<false>(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args.transform, lanes, first, n);
      TileOutput<T, A> output(lanes.grad, count, first, tile);
      for (int64_t c = 0; c < n; ++c) {
        lanes.template fetch_ahead<false>(true, first + c);
        const LaneVec<A> nll = negative_log_likelihood(log_sum, tile[c] - max);
        output.set(
            c, probability_gradient(LaneVec<A>(class_weight(args, first + c)), on, nll, upstream));
      }
      output.finish(n);
    });
  });
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
