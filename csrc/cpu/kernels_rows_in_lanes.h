// Vectors across rows: each lane is a row, each vector one class of them. For few classes, and for
// logits (N, C, d1, ..., dK), whose rows lie side by side. Included by the kernels alone.
#pragma once

#include "cpu/kernels_lane_gradients.h"
#include "cpu/kernels_row_ends.h"

namespace softreg {
namespace {

template <Target kTarget>
using TargetIs = std::integral_constant<Target, kTarget>;

// Of x86 the oldest processors alone take the generic set, whose compilation is what others wait
// for: it has the walk that suits any rows, not that of rows side by side besides.
#if defined(__x86_64__) && !defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
constexpr bool kHasWalkSideBySide = false;
#else
constexpr bool kHasWalkSideBySide = true;
#endif

// run(TargetIs<...>(), std::bool_constant<...>()), for what `args` ask for, and whether rows lie
// side by side, so that tiles may be read and written beside others.
template <typename T, typename A, typename Run>
SOFTREG_INLINE auto for_target(const CrossEntropyRows<T, A>& args, Run run) {
  const auto run_for = [&](auto target) {
    return kHasWalkSideBySide && args.logits.inner > 1
               ? run(target, std::bool_constant<kHasWalkSideBySide>())
               : run(target, std::false_type());
  };
  if (args.has_probabilities()) {
    return args.transform.is_identity && args.probabilities_are_coefficients()
               ? run_for(TargetIs<Target::kPlainProbabilities>())
               : run_for(TargetIs<Target::kProbabilities>());
  }
  return args.is_plain() ? run_for(TargetIs<Target::kPlainLabels>())
                         : run_for(TargetIs<Target::kLabels>());
}

// Adds a tile whose maximum is known; beside(c) after each of its classes. kKeepsExps: they take
// the place of the logits.
template <Target kTarget, bool kKeepsExps, typename T, typename A, typename V, typename Beside>
SOFTREG_INLINE void add_tile(LaneForward<V>& rows, const CrossEntropyRows<T, A>& args,
                             const Place<T>& place, Tiles<V>& tiles, V max,
                             const LaneTargets<V>& targets, Beside beside) {
  Tile<V>& tile = tiles.logits;
  const V common = shift(max);
  const auto number = [](int64_t c) { return c; };
  const V label = targets.labels_from(place.first);
  V label_logit = rows.label_logit;
  const auto add = [&](V sum, int64_t c) {
    const V logit = tile[c];
    V exp;
    sum = add_exp(sum, logit - common, exp);
    if constexpr (!has_probabilities(kTarget)) {
      label_logit = where_equal(label, class_number<V>(c), logit, label_logit);
    }
    if (kKeepsExps) {
      tile.set(c, exp);
    }
    beside(c);
    return sum;
  };
  const bool weighted = has_coefficients<kTarget>(args);
  RowState<V, V> some = RowState<V, V>::empty();
  if (weighted) {
    const Coefficients<kTarget, T, V> coefficients(args, place, tiles);
    const auto add_with_coefficient = [&](RowState<V, V> state, int64_t c) {
      coefficients.fetch_ahead(c);
      add_weighted(state, coefficients[c], tile[c] - common);
      state.exp.sum = add(state.exp.sum, c);
      return state;
    };
    // blocks in place of four accumulators, which of three sums each would not fit into registers
    some = fold_vectors<4, 1>(place.classes, some, number, add_with_coefficient, SumOfStates());
  } else {
    some.exp.sum = fold_vectors<kTileClasses>(place.classes, V(0), number, add, Sum());
  }
  some.exp.max = max;
  const typename LaneForward<V>::State wide{some.exp, WideOf<V>(some.coefficient),
                                            WideOf<V>(some.logit)};
  rows.state = place.first == 0 ? wide : merge(rows.state, wide, weighted);
  rows.label_logit = label_logit;
}

// Three tiles are under way at a time: the logits of the next one are read, and the gradients of
// the last one written, class by class beside the exponentials of this one. So memory and
// arithmetic keep each other company, and nothing waits for the end of a row. `writer`: a
// GradientWriter, for rows of one tile, or NoGradient.
template <Target kTarget, bool kBeside, typename V, typename T, typename A, typename Writer>
SOFTREG_INLINE ForwardTotals forward_walk(const ForwardArgs<T, A>& args, const RowMatrix<T>& grad,
                                          int64_t begin, int64_t end, Writer writer) {
  constexpr bool kWrites = !std::is_same_v<Writer, NoGradient>;
  constexpr int kUnderWay = !kBeside ? 1 : kWrites ? 3 : 2;
  Tiles<V> tiles[kUnderWay];
  int turn = 0;
  LaneTargets<V> targets;
  LaneTotals<A> of_lanes;
  LaneForward<V> rows;
  TileWalk<T, V> walk(args, grad, begin, end);
  TileReader<kTarget, kBeside, T, V> reader(args, kWrites);
  reader.begin(walk, tiles[turn]);
  for (int64_t done = 0; !walk.is_over();) {
    reader.finish(walk.place(), done);
    const Place<T> place = walk.place();
    const V max = reader.max;
    Tiles<V>& these = tiles[turn];
    turn = turn + 1 < kUnderWay ? turn + 1 : 0;
    const bool ends_rows = walk.ends_rows();
    if (walk.begins_rows()) {
      targets.read(args, place.row, place.count);
      rows = LaneForward<V>();
    }
    walk.next();
    reader.begin(walk, tiles[turn]);
    done = 0;
    if (!targets.none_counts() || args.lse) {
      add_tile<kTarget, kWrites>(rows, args, place, these, max, targets, [&](int64_t c) {
        reader.read(c);
        writer.write_beside(c);
      });
      done = place.classes;
    }
    if (kBeside) {
      writer.write_rest(done);
    }
    if (ends_rows) {
      add_rows<kTarget>(args, place.row, place.count, targets, rows, of_lanes);
      if constexpr (kWrites) {
        const RowGradient<V> gradients = row_gradients(writer.args(), place.row, place.count,
                                                       targets, shift(rows.state.exp.max));
        writer.begin(place, targets, gradients, these);
      }
      if (!kBeside) {
        writer.write_rest(0);
      }
    }
  }
  if (kBeside) {
    writer.write_rest(0);
  }
  return of_lanes.folded(targets.bad_row(args, begin, end));
}

template <typename T, typename A>
ForwardTotals forward_rows_in_lanes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return for_target(args, [&](auto target, auto beside) {
    return forward_walk<target.value, beside.value, ManyLanes<A>>(args, {}, begin, end,
                                                                  NoGradient());
  });
}

template <typename T>
double total_weight(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using V = ManyLanes<A>;
  constexpr int64_t kSummed = 256;  // rows between whose weights nothing is lost
  LaneTargets<V> targets;
  CompensatedSum total;
  for (int64_t first = begin; first < end; first += kSummed) {
    const int64_t last = end - first < kSummed ? end : first + kSummed;
    LaneSums<A> weights;
    for (int64_t row = first; row < last; row += V::size()) {
      targets.read(args, row, last - row < V::size() ? last - row : V::size());
      weights.add(targets.weight);
    }
    weights.add_to(total);
  }
  return total.total();
}

template <Target kTarget, bool kInPlace, typename T, typename A>
SOFTREG_INLINE int64_t backward_walk(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  using V = LanesOfLine<A>;
  Tiles<V> tiles;
  LaneTargets<V> targets;
  V max;
  RowGradient<V> gradients;
  GradientWriter<kTarget, false, T, V> writer(args);
  for (TileWalk<T, V> walk(args, args.grad, begin, end); !walk.is_over(); walk.next()) {
    const Place<T>& place = walk.place();
    if (walk.begins_rows()) {
      targets.read(args, place.row, place.count);
      max = load_lane_vec<V>(args.row_max + place.row, place.count, A(0));
      gradients = row_gradients(args, place.row, place.count, targets, max);
    }
    writer.begin(place, targets, gradients, tiles);
    const bool in_place = kInPlace && is_read_in_place<V, kTarget>(args, place);
    LogitsInPlace<T, V> logits_in_place(place);
    if (!in_place) {
      load_tiles<kTarget>(tiles, args, place, true);
    }
    writer.write_rest(0, [&](int64_t c) {
      writer.coefficients().fetch_ahead(c);
      return vexp((in_place ? logits_in_place.next() : tiles.logits[c]) - max);
    });
  }
  return targets.bad_row(args, begin, end);
}

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return for_target(args, [&](auto target, auto side_by_side) {
    return backward_walk<target.value, side_by_side.value>(args, begin, end);
  });
}

// Both passes in one, for one tile of classes: nothing is read twice, no exponential taken twice.
template <typename T, typename A>
__attribute__((flatten)) ForwardTotals
forward_with_gradient_in_lanes(const ForwardArgs<T, A>& forward, const BackwardArgs<T, A>& backward,
                               int64_t begin, int64_t end) {
  return for_target(forward, [&](auto target, auto beside) {
    // beside each other, tiles of one Vec keep to fewer lines at a time
    constexpr bool kOneVec = beside.value && target.value == Target::kPlainLabels;
    using V = std::conditional_t<kOneVec, Vec<A>, ManyLanes<A>>;
    return forward_walk<target.value, beside.value, V>(
        forward, backward.grad, begin, end,
        GradientWriter<target.value, beside.value, T, V>(backward));
  });
}

template <typename T, typename A>
int64_t grad_target_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  using V = LanesOfLine<A>;
  Tile<V> tile;
  const V on(args.on_target);
  V upstream, max, log_sum;
  TileOutput<T, V> output;
  for (TileWalk<T, V> walk(args, args.grad, begin, end); !walk.is_over(); walk.next()) {
    const Place<T>& place = walk.place();
    if (walk.begins_rows()) {
      upstream = upstream_of_lanes<V>(args, place.row, place.count);
      max = load_lane_vec<V>(args.row_max + place.row, place.count, A(0));
      log_sum = vlog(load_lane_vec<V>(args.sum + place.row, place.count, A(1)));
    }
    load_logits<T, V>(tile, nullptr, args.transform, place);
    output.begin(place, tile);
    for (int64_t c = 0; c < place.classes; ++c) {
      fetch_rows_ahead<V>(place.logits.at(0, place.first + c));
      const V weight(class_weight(args.weight, place.first + c));
      const V nll = negative_log_likelihood(log_sum, tile[c] - max);
      output.set(c, probability_gradient(weight, on, nll, upstream));
    }
    output.finish();
  }
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
