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
  Tile<A> logits;  // transformed; their gradients at last
  Tile<A> exps;    // exp(x - max), where the forward pass keeps them
  Tile<A> slopes;  // where logits are transformed
  Tile<A> probabilities;
};

// a_c of the class first + c for a target of probabilities, w_c for labels where it has a meaning.
template <typename T, typename A>
SOFTREG_INLINE Vec<A> coefficient(const CrossEntropyRows<T, A>& args, const Tiles<A>& tiles,
                                  int64_t first, int64_t c) {
  const Vec<A> weight(args.all_classes_count() ? class_weight(args, first + c) : A(1));
  return args.has_probabilities()
             ? probability_coefficient(weight, tiles.probabilities[c], Vec<A>(args.on_target),
                                       Vec<A>(args.per_class))
             : weight;
}

// The logits of the classes [first, first + n), and the probabilities if the target is such.
template <bool kPlain, typename T, typename A>
SOFTREG_INLINE void load_tiles(Tiles<A>& tiles, Tile<A>* slopes, const CrossEntropyRows<T, A>& args,
                               const Lanes<T>& lanes, int64_t first, int64_t n) {
  if (kPlain) {
    tiles.logits.load(lanes.logits, lanes.count, first, n);
    return;
  }
  if (args.has_probabilities()) {
    fetch_tiles(lanes.logits, Tile<A>::kRows, first, n);
    fetch_tiles(lanes.probabilities, Tile<A>::kRows, first, n);
    tiles.probabilities.load(lanes.probabilities, lanes.count, first, n);
  }
  load_logits(tiles.logits, slopes, args.transform, lanes, first, n);
}

// What the forward pass knows of a vector of rows. Of many tiles the weighted sums are wide:
// classes with the same coefficients round the same way each time.
template <typename A>
struct LaneForward {
  using State = RowState<Vec<A>, Wide<A>>;
  State state = State::empty();
  Vec<A> label_logit{A(0)};
};

// kPlain here and below: as CrossEntropyRows::is_plain() says.
template <bool kPlain, bool kKeepsExps, typename T, typename A>
SOFTREG_INLINE void add_tile(LaneForward<A>& rows, const CrossEntropyRows<T, A>& args,
                             const Lanes<T>& lanes, Tiles<A>& tiles, const LaneTargets<A>& targets,
                             int64_t first, int64_t n) {
  const Tile<A>& tile = tiles.logits;
  const auto logit = [&](int64_t c) { return tile[c]; };
  const Vec<A> max = fold_vectors<kTileClasses>(n, Vec<A>(-INFINITY), logit, Max(), Max());
  const Vec<A> common = shift(max);
  const auto number = [](int64_t c) { return c; };
  const Vec<A> label = targets.labels_from(first);
  Vec<A> label_logit = rows.label_logit;
  const auto add = [&](Vec<A> sum, int64_t c) {
    if (kPlain || !args.has_probabilities()) {
      lanes.fetch_ahead(kKeepsExps, first + c);
    }
    Vec<A> exp;
    sum = add_exp(sum, tile[c] - common, exp);
    label_logit = where_equal(label, class_number<A>(c), tile[c], label_logit);
    if (kKeepsExps) {
      tiles.exps.set(c, exp);
    }
    return sum;
  };
  const bool weighted = !kPlain && args.all_classes_count();
  LaneRowState<A> some = LaneRowState<A>::empty();
  if (weighted) {
    const auto add_with_coefficient = [&](LaneRowState<A> state, int64_t c) {
      state.exp.sum = add(state.exp.sum, c);
      add_weighted(state, coefficient(args, tiles, first, c), tile[c] - common);
      return state;
    };
    some = fold_vectors<kTileClasses>(n, some, number, add_with_coefficient, SumOfStates());
  } else {
    some.exp.sum = fold_vectors<kTileClasses>(n, Vec<A>(0), number, add, Sum());
  }
  some.exp.max = max;
  const typename LaneForward<A>::State wide{some.exp, Wide<A>(some.coefficient),
                                            Wide<A>(some.logit)};
  rows.state = first == 0 ? wide : merge(rows.state, wide, weighted);
  rows.label_logit = label_logit;
}

// Ends a vector of rows of the forward pass, as add_row() ends one.
template <bool kPlain, typename T, typename A>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, const Lanes<T>& lanes,
                             const LaneTargets<A>& targets, const LaneForward<A>& rows,
                             LaneTotals<A>& totals) {
  const int64_t row = lanes.row, count = lanes.count;
  const auto& state = rows.state;
  const Vec<A> max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  store_part(args.row_max + row, count, max);
  store_part(args.sum + row, count, state.exp.sum);
  if (args.lse) {
    store_part(args.lse + row, count, max + log_sum);
  }
  if (!kPlain && args.has_probabilities()) {
    store_part(args.coefficient_sum + row, count, narrowed(state.coefficient));
  }
  Vec<A> weighted_nll(0);
  if (!kPlain && args.all_classes_count()) {
    weighted_nll = narrowed(
        weighted_negative_log_likelihood(state.coefficient, Wide<A>(log_sum), state.logit));
  }
  const Vec<A> loss = targets.of_counting(
      loss_of_row(args, targets.weight, rows.label_logit, max, log_sum, weighted_nll));
  totals.loss.add(loss);
  totals.weight.add(targets.weight);
  if (args.loss) {
    store_part(args.loss + row, count, loss);
  }
}

// Calls then(lanes, targets, max, tiles) after each vector of rows. kKeeps: there is one tile of
// classes, and what it holds is kept for `then`, which writes to `grad`.
template <bool kPlain, bool kKeeps, typename T, typename A, typename Then>
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
      load_tiles<kPlain>(tiles, kKeeps ? &tiles.slopes : nullptr, args, lanes, first, n);
      add_tile<kPlain, kKeeps>(rows, args, lanes, tiles, targets, first, n);
    });
    add_rows<kPlain>(args, lanes, targets, rows, of_lanes);
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
  const auto nothing = [](auto&&...) {};
  return args.is_plain() ? forward_walk<true, false>(args, {}, begin, end, nothing)
                         : forward_walk<false, false>(args, {}, begin, end, nothing);
}

template <typename T, typename A>
SOFTREG_INLINE Vec<A> upstream_of_lanes(const BackwardArgs<T, A>& args, int64_t row,
                                        int64_t count) {
  if (!args.grad_loss) {
    return Vec<A>(args.grad_reduced);
  }
  A upstream[Vec<A>::size()] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    upstream[lane] = upstream_gradient(args, row + lane);
  }
  return Vec<A>::loadu(upstream);
}

// What the rows in the lanes need for their gradients.
template <typename T, typename A>
SOFTREG_INLINE RowGradient<Vec<A>> row_gradients(const BackwardArgs<T, A>& args,
                                                 const Lanes<T>& lanes,
                                                 const LaneTargets<A>& targets, Vec<A> max) {
  const int64_t row = lanes.row, count = lanes.count;
  const Vec<A> sum = load_part(args.sum + row, count, A(1));
  RowGradient<Vec<A>> of_rows = row_gradient(
      args, targets.weight, max, sum,
      args.has_probabilities() ? load_part(args.coefficient_sum + row, count, A(0)) : Vec<A>(0),
      upstream_of_lanes(args, row, count));
  if (args.grad_lse) {
    for (Vec<A>* of : {&of_rows.softmax_scale, &of_rows.weight_scale, &of_rows.target_offset,
                       &of_rows.upstream}) {
      *of = targets.of_counting(*of);
    }
    of_rows = with_lse_gradient(of_rows, load_part(args.grad_lse + row, count, A(0)), sum);
  }
  return of_rows;
}

// Stores the gradients of the classes [first, first + n). exp_of(c): exp(x - max) of first + c.
template <bool kPlain, typename T, typename A, typename ExpOf>
SOFTREG_INLINE void store_gradients(Tiles<A>& tiles, const BackwardArgs<T, A>& args,
                                    const Lanes<T>& lanes, const LaneTargets<A>& targets,
                                    const RowGradient<Vec<A>>& rows, int64_t first, int64_t n,
                                    ExpOf exp_of) {
  TileOutput<T, A> output(lanes.grad, lanes.count, first, tiles.logits);
  const bool all_flow = args.grad_lse || targets.all_count();
  const bool weighted = !kPlain && args.coefficients_vary();
  const Vec<A> label = targets.labels_from(first);
#pragma GCC unroll 4
  for (int64_t c = 0; c < n; ++c) {
    Vec<A> offset = rows.weight_scale;
    if (weighted) {
      offset = offset * coefficient(args, tiles, first, c);
    }
    offset = where_equal(label, class_number<A>(c), rows.target_offset, offset);
    Vec<A> grad = logit_gradient(exp_of(c), rows.softmax_scale, offset, rows.upstream);
    if (!kPlain && !args.transform.is_identity) {
      grad = grad * tiles.slopes[c];
    }
    output.set(c, all_flow ? grad : targets.of_counting(grad));
  }
  output.finish(n);
}

template <bool kPlain, typename T, typename A>
SOFTREG_INLINE int64_t backward_walk(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tiles<A> tiles;
  LaneTargets<A> targets;
  for_each_lanes(args, args.grad, begin, end, [&](const Lanes<T>& lanes) {
    targets.read(args, lanes.row, lanes.count);
    const Vec<A> max = load_part(args.row_max + lanes.row, lanes.count, A(0));
    const RowGradient<Vec<A>> rows = row_gradients(args, lanes, targets, max);
    for_each_tile<false>(args.classes, [&](int64_t first, int64_t n) {
      load_tiles<kPlain>(tiles, &tiles.slopes, args, lanes, first, n);
      store_gradients<kPlain>(tiles, args, lanes, targets, rows, first, n, [&](int64_t c) {
        if (kPlain || !args.has_probabilities()) {
          lanes.fetch_ahead(true, first + c);
        }
        return vexp(tiles.logits[c] - max);
      });
    });
  });
  return targets.bad_row(args, begin, end);
}

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return args.is_plain() ? backward_walk<true>(args, begin, end)
                         : backward_walk<false>(args, begin, end);
}

// Both passes in one, for one tile of classes: nothing is read twice, no exponential taken twice.
template <bool kPlain, typename T, typename A>
SOFTREG_INLINE ForwardTotals forward_with_gradient_in_lanes(const ForwardArgs<T, A>& forward,
                                                            const BackwardArgs<T, A>& backward,
                                                            int64_t begin, int64_t end) {
  return forward_walk<kPlain, true>(
      forward, backward.grad, begin, end,
      [&](const Lanes<T>& lanes, const LaneTargets<A>& targets, Vec<A> max, Tiles<A>& tiles) {
        const RowGradient<Vec<A>> rows = row_gradients(backward, lanes, targets, max);
        store_gradients<kPlain>(tiles, backward, lanes, targets, rows, 0, backward.classes,
                                [&](int64_t c) { return tiles.exps[c]; });
      });
}

template <typename T, typename A>
__attribute__((flatten)) ForwardTotals
forward_with_gradient_in_lanes(const ForwardArgs<T, A>& forward, const BackwardArgs<T, A>& backward,
                               int64_t begin, int64_t end) {
  return forward.is_plain() ? forward_with_gradient_in_lanes<true>(forward, backward, begin, end)
                            : forward_with_gradient_in_lanes<false>(forward, backward, begin, end);
}

template <typename T, typename A>
int64_t grad_target_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tile<A> tile;
  const Vec<A> on(args.on_target);
  for_each_lanes(args, args.grad, begin, end, [&](const Lanes<T>& lanes) {
    const int64_t row = lanes.row, count = lanes.count;
    const Vec<A> upstream = upstream_of_lanes(args, row, count);
    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    const Vec<A> log_sum = vlog(load_part(args.sum + row, count, A(1)));
    for_each_tile<false>(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args.transform, lanes, first, n);
      TileOutput<T, A> output(lanes.grad, count, first, tile);
      for (int64_t c = 0; c < n; ++c) {
        lanes.fetch_ahead(true, first + c);
        const Vec<A> nll = negative_log_likelihood(log_sum, tile[c] - max);
        output.set(c,
                   probability_gradient(Vec<A>(class_weight(args, first + c)), on, nll, upstream));
      }
      output.finish(n);
    });
  });
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
