// What a walk along a row collects, or along some columns of it: logsumexp and weighted sums, a
// vector at a time. Included by the kernels alone.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels_fold.h"
#include "cpu/kernels_lane_vec.h"
#include "cpu/kernels_memory.h"
// after the vectors, whose overloads the formulas call
#include "core/cross_entropy.h"

namespace softreg {
namespace {

template <typename T, typename A>
SOFTREG_INLINE Columns all_columns(const CrossEntropyRows<T, A>& args) {
  return {0, args.classes};
}

// The coefficients of one row's log-probabilities, a vector at a time: a_c for a target of
// probabilities, w_c for labels. Numbered from the first of some columns.
template <typename T, typename A>
struct RowWeights {
  const A* weight = nullptr;         // null: all 1
  const T* probabilities = nullptr;  // null: labels
  A on = 0, per = 0;

  RowWeights() = default;
  SOFTREG_INLINE RowWeights(const CrossEntropyRows<T, A>& args, int64_t row, int64_t first) {
    begin(args, row, first);
  }

  SOFTREG_INLINE void begin(const CrossEntropyRows<T, A>& args, int64_t row, int64_t first) {
    weight = args.weight ? args.weight + first : nullptr;
    probabilities = args.has_probabilities() ? args.probabilities.row(row) + first : nullptr;
    on = args.on_target;
    per = args.per_class;
  }

  // Of the classes from c on; lanes past them are 0.
  template <typename Lanes>
  SOFTREG_INLINE Vec<A> class_weights(int64_t c, Lanes lanes) const {
    return weight ? load_lanes(lanes, weight + c, A(0)) : in_lanes(lanes, Vec<A>(1));
  }

  template <typename Lanes>
  SOFTREG_INLINE Vec<A> operator()(int64_t c, Lanes lanes) const {
    const Vec<A> w = class_weights(c, lanes);
    if (probabilities) {
      fetch_ahead(probabilities + c);
    }
    return probabilities ? probability_coefficient(w, load_lanes(lanes, probabilities + c, A(0)),
                                                   Vec<A>(on), Vec<A>(per))
                         : w;
  }
};

// Folds x[0, n) by step(folded, logits, i, lanes), those from the i-th on; lanes past the end see
// -inf.
template <bool kFetches, typename A, typename T, typename V, typename Step, typename Combine>
SOFTREG_INLINE V fold_row(const T* x, int64_t n, V init, Step step, Combine combine) {
  constexpr int64_t width = Vec<A>::size();
  const auto first = [](int64_t i) { return i * width; };
  const auto whole = [&](V folded, int64_t i) {
    if constexpr (kFetches) {
      fetch_ahead(x + i);
    }
    return step(folded, load_vec(x + i), i, All());
  };
  const V total = fold_vectors<32>(n / width, init, first, whole, combine);
  const int64_t rest = n % width, i = n - rest;
  return rest == 0 ? total
                   : step(total, load_part(x + i, rest, -static_cast<A>(INFINITY)), i, First{rest});
}

template <typename A, typename T>
SOFTREG_INLINE Vec<A> max_of(const T* x, int64_t n, Vec<A> init) {
  const auto step = [](Vec<A> max, Vec<A> logits, int64_t, auto) { return vmax(max, logits); };
  return fold_row<false, A>(x, n, init, step, Max());
}

// What is done with the exponentials of the classes from i on, whose lanes are `lanes`, in a row
// whose classes may be weighted: here nothing.
struct Forget {
  template <bool kMayBeWeighted, typename Lanes, typename V>
  SOFTREG_INLINE void keep(int64_t, Lanes, V) const {}
};

// sum + exp(shifted), which `exps` may keep.
template <bool kMayBeWeighted, typename A, typename Lanes, typename Exps>
SOFTREG_INLINE Vec<A> add_exp_to(Vec<A> sum, Vec<A> shifted, int64_t i, Lanes lanes,
                                 const Exps& exps) {
  Vec<A> exp;
  sum = add_exp(sum, shifted, exp);
  exps.template keep<kMayBeWeighted>(i, lanes, exp);
  return sum;
}

template <typename A, typename T, typename Exps>
SOFTREG_INLINE Vec<A> sum_of_exp(const T* x, int64_t n, Vec<A> common, const Exps& exps) {
  const auto add = [&](Vec<A> sum, Vec<A> logits, int64_t i, auto lanes) {
    return add_exp_to<false>(sum, logits - common, i, lanes, exps);
  };
  return fold_row<true, A>(x, n, Vec<A>(0), add, Sum());
}

// Each lane of its own classes of the row.
template <typename A>
using LaneRowState = RowState<Vec<A>, Vec<A>>;

// Of lanes that are all relative to `max`.
template <typename A>
SOFTREG_INLINE RowState<A> fold_lanes(const LaneRowState<A>& lanes, A max) {
  return {{max, fold_lanes(lanes.exp.sum, Sum())},
          fold_lanes(lanes.coefficient, Sum()),
          fold_lanes(lanes.logit, Sum())};
}

// Of a row in one chunk, with the sums of its weighted logits if `weighted`.
template <typename T, typename A, typename X, typename Exps>
SOFTREG_INLINE RowState<A> state_of_chunk(const X* x, int64_t n, const RowWeights<T, A>& weights,
                                          bool weighted, const Exps& exps) {
  const A max = fold_lanes(max_of(x, n, Vec<A>(-INFINITY)), Max());
  const Vec<A> common(shift(max));
  if (!weighted) {
    return {{max, fold_lanes(sum_of_exp(x, n, common, exps), Sum())}, 0, 0};
  }
  const auto add = [&](LaneRowState<A> state, Vec<A> logits, int64_t i, auto lanes) {
    const Vec<A> shifted = logits - common;
    state.exp.sum = add_exp_to<true>(state.exp.sum, shifted, i, lanes, exps);
    add_weighted(state, weights(i, lanes), in_lanes(lanes, shifted));
    return state;
  };
  return fold_lanes(fold_row<true, A>(x, n, LaneRowState<A>::empty(), add, SumOfStates()), max);
}

// How far ahead of what its sum is relative to the maximum of a lane may get: e^4 of it costs a
// float nothing, and few rows ever go there. In one that climbs by little, each change would round
// the sum.
constexpr float kMostAhead = 4;

// Of a longer row, lane by lane.
template <typename A>
struct LaneLogits {
  static constexpr int64_t kBlock = 16 * Vec<A>::size();

  Vec<A> max{-static_cast<A>(INFINITY)};
  LogSumExp<Vec<A>> sums{max, Vec<A>(0)};

  // From the first logits of a row: what its others are expected not to be far ahead of.
  template <typename T>
  SOFTREG_INLINE void begin(const T* x, int64_t n) {
    max = sums.max = max_of(x, n < kBlock ? n : kBlock, max);
  }
};

// The maximum of x[0, n) and `max`, and the sum of exp(x - common): of no use where the maximum is
// more than kMostAhead above `common`.
template <typename A, typename T>
SOFTREG_INLINE LogSumExp<Vec<A>> max_and_sum_of_exp(const T* x, int64_t n, Vec<A> max,
                                                    Vec<A> common) {
  using Folded = LogSumExp<Vec<A>>;
  const auto add = [&](Folded folded, Vec<A> logits, int64_t, auto) {
    Vec<A> exp;
    return Folded{vmax(folded.max, logits), add_exp(folded.sum, logits - common, exp)};
  };
  const auto combine = [](Folded a, Folded b) { return Folded{vmax(a.max, b.max), a.sum + b.sum}; };
  return fold_row<true, A>(x, n, Folded{max, Vec<A>(0)}, add, combine);
}

// Adds the logits x[0, n), by blocks. Each is summed in one walk as if none of it were far ahead,
// and once more if some is: to know beforehand would take another walk over every block.
template <typename A, typename T>
SOFTREG_INLINE void add_logits(LaneLogits<A>& lanes, const T* x, int64_t n) {
  constexpr int64_t kBlock = LaneLogits<A>::kBlock;
  LogSumExp<Vec<A>>& sums = lanes.sums;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = n - first < kBlock ? n - first : kBlock;
    LogSumExp<Vec<A>> block = max_and_sum_of_exp(x + first, count, lanes.max, shift(sums.max));
    lanes.max = block.max;
    const Vec<A> is_ahead = lanes.max > sums.max + Vec<A>(kMostAhead);
    if (is_ahead.zero_mask() != (1 << Vec<A>::size()) - 1) {
      sums = relative_to(sums, Vec<A>::blendv(sums.max, lanes.max, is_ahead));
      block.sum = sum_of_exp(x + first, count, shift(sums.max), Forget());
    }
    sums.sum = sums.sum + block.sum;
  }
}

template <typename A>
SOFTREG_INLINE LogSumExp<A> fold_lanes(const LaneLogits<A>& lanes) {
  const A max = fold_lanes(lanes.max, Max());
  return {max, fold_lanes(relative_to(lanes.sums, Vec<A>(max)).sum, Sum())};
}

// then(i, logits) for the logits x[0, n), those from the i-th on: two vectors side by side, for the
// tanh that `then` takes is one long chain. The last is a whole vector, in lanes past the end of 0.
template <typename T, typename Then>
SOFTREG_INLINE void for_each_pair(const T* x, int64_t n, Then then) {
  using A = Accumulator<T>;
  constexpr int64_t width = Vec<A>::size();
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    fetch_ahead<2 * width>(x + i);
    then(i, load_lane_vec<Pair<Vec<A>>>(x + i));
  }
  if (i + width <= n) {
    then(i, load_vec(x + i));
    i += width;
  }
  if (i < n) {
    then(i, load_part(x + i, n - i, A(0)));
  }
}

// then(i, y) for them transformed. `transform` is a copy: what `then` stores could change another.
template <typename T, typename A, typename Then>
SOFTREG_INLINE void for_each_transformed(LogitTransform<A> transform, const T* x, int64_t n,
                                         Then then) {
  with_transform(transform, [&](auto transformed) {
    for_each_pair(x, n, [&](int64_t i, auto logits) { then(i, transformed(logits)); });
  });
}

// A number for each class of a chunk, up to the end of its last vector.
template <typename A>
struct Staged {
  alignas(64) A values[kChunk];

  // The logits x[0, n), transformed; the tanhs of a cap go to `tanhs` if that is not null.
  template <typename T>
  const A* fill(LogitTransform<A> transform, const T* x, int64_t n, A* tanhs = nullptr) {
    if (tanhs) {
      for_each_pair(x, n, [&](int64_t i, auto logits) {
        const auto tanh = tanh_of_logit(transform, logits);
        store_lane_vec(tanhs + i, tanh);
        store_lane_vec(values + i, capped_logit(transform, tanh).value);
      });
    } else {
      for_each_transformed(transform, x, n,
                           [&](int64_t i, auto y) { store_lane_vec(values + i, y.value); });
    }
    return values;
  }
  const A* fill_from_tanhs(LogitTransform<A> transform, const A* tanhs, int64_t n) {
    for_each_pair(tanhs, n, [&](int64_t i, auto tanh) {
      store_lane_vec(values + i, capped_logit(transform, tanh).value);
    });
    return values;
  }

  template <typename T>
  const A* fill_with_tanhs(LogitTransform<A> transform, const T* x, int64_t n) {
    for_each_pair(x, n, [&](int64_t i, auto logits) {
      store_lane_vec(values + i, tanh_of_logit(transform, logits));
    });
    return values;
  }
};

// add(x, first, n), for the logits x[0, n), transformed, of a row's columns from `first` on: at
// most kMost at a time. staged(first, n): those that are transformed.
template <int64_t kMost, typename T, typename A, typename Stage, typename Add>
SOFTREG_INLINE void for_each_chunk(const LogitTransform<A>& transform, const T* logits, int64_t n,
                                   Stage staged, Add add) {
  for (int64_t first = 0; first < n; first += kMost) {
    const int64_t rest = n - first, count = rest < kMost ? rest : kMost;
    if (transform.is_identity) {
      add(logits + first, first, count);
    } else {
      add(staged(first, count), first, count);
    }
  }
}

// Classes of a longer row whose weighted sum is taken in one go; their sums are compensated.
constexpr int64_t kWeightedChunk = 256;

// sum_c a_c and sum_c a_c (x_c - common).
template <typename T, typename A, typename X>
SOFTREG_INLINE LaneRowState<A> weighted_sums(const RowWeights<T, A>& weights, const X* x,
                                             int64_t first, int64_t n, Vec<A> common) {
  const auto add = [&](LaneRowState<A> state, Vec<A> logits, int64_t i, auto lanes) {
    add_weighted(state, weights(first + i, lanes), in_lanes(lanes, logits - common));
    return state;
  };
  return fold_row<false, A>(x, n, LaneRowState<A>::empty(), add, SumOfStates());
}

// Of the columns of a row. `tanhs`: where those of a cap are kept if there are more than kChunk
// columns, or null.
template <typename T, typename A>
SOFTREG_INLINE RowState<A> state_of_columns(const CrossEntropyRows<T, A>& args, int64_t row,
                                            Columns columns, Staged<A>& staged,
                                            A* tanhs = nullptr) {
  const T* logits = args.logits.row(row) + columns.first;
  const RowWeights<T, A> weights(args, row, columns.first);
  const bool weighted = args.all_classes_count();
  if (columns.count <= kChunk) {
    return args.transform.is_identity
               ? state_of_chunk(logits, columns.count, weights, weighted, Forget())
               : state_of_chunk(staged.fill(args.transform, logits, columns.count), columns.count,
                                weights, weighted, Forget());
  }
  LaneLogits<A> lanes;
  // inlined by force: a call would keep the sums in memory
  const auto add = [&](auto x, int64_t first, int64_t n) __attribute__((always_inline)) {
    if (first == 0) {
      lanes.begin(x, n);
    }
    add_logits(lanes, x, n);
  };
  const auto transformed = [&](int64_t first, int64_t n) {
    return staged.fill(args.transform, logits + first, n, tanhs ? tanhs + first : nullptr);
  };
  for_each_chunk<kChunk>(args.transform, logits, columns.count, transformed, add);
  const LogSumExp<A> exp = fold_lanes(lanes);
  CompensatedSum coefficient, logit;
  if (weighted) {  // a second walk, while the row is in the cache
    const Vec<A> common(shift(exp.max));
    const auto transformed_again = [&](int64_t first, int64_t n) {
      return tanhs ? staged.fill_from_tanhs(args.transform, tanhs + first, n)
                   : staged.fill(args.transform, logits + first, n);
    };
    for_each_chunk<kWeightedChunk>(args.transform, logits, columns.count, transformed_again,
                                   [&](auto x, int64_t first, int64_t n) {
                                     const LaneRowState<A> some =
                                         weighted_sums(weights, x, first, n, common);
                                     coefficient.add(fold_lanes(some.coefficient, Sum()));
                                     logit.add(fold_lanes(some.logit, Sum()));
                                   });
  }
  return {exp, coefficient.total(), logit.total()};
}

}  // namespace
}  // namespace softreg
