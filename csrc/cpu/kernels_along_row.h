// Vectors along a row: for many classes, adjacent in memory. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_memory.h"
#include "cpu/kernels_target.h"

namespace softreg {
namespace {

// Logits that stay in the first-level cache while they are staged.
constexpr int64_t kChunk = 2048;

// The coefficients of one row's log-probabilities, a vector at a time: a_c for a target of
// probabilities, w_c for labels.
template <typename T, typename A>
struct RowWeights {
  const A* weight;         // null: all 1
  const T* probabilities;  // null: labels
  A on, per;

  RowWeights(const CrossEntropyRows<T, A>& args, int64_t row)
      : weight(args.weight),
        probabilities(args.has_probabilities() ? args.probabilities.row(row) : nullptr),
        on(args.on_target),
        per(args.per_class) {}

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
  const V total = fold_vectors(n / width, init, first, whole, combine);
  const int64_t rest = n % width, i = n - rest;
  return rest == 0 ? total
                   : step(total, load_part(x + i, rest, -static_cast<A>(INFINITY)), i, First{rest});
}

template <typename A, typename T>
SOFTREG_INLINE Vec<A> max_of(const T* x, int64_t n, Vec<A> init) {
  const auto step = [](Vec<A> max, Vec<A> logits, int64_t, auto) { return vmax(max, logits); };
  return fold_row<false, A>(x, n, init, step, Max());
}

// sum + exp(shifted), which is left at `exps`, if given, with those before: whole vectors of them.
template <typename A>
SOFTREG_INLINE Vec<A> add_exp_to(Vec<A> sum, Vec<A> shifted, A* exps, int64_t i) {
  Vec<A> exp;
  sum = add_exp(sum, shifted, exp);
  if (exps) {
    exp.store(exps + i);
  }
  return sum;
}

template <typename A, typename T>
SOFTREG_INLINE Vec<A> sum_of_exp(const T* x, int64_t n, Vec<A> common, A* exps) {
  const auto add = [=](Vec<A> sum, Vec<A> logits, int64_t i, auto) {
    return add_exp_to(sum, logits - common, exps, i);
  };
  return fold_row<true, A>(x, n, Vec<A>(0), add, Sum());
}

// Of lanes that are all relative to `max`.
template <typename A>
SOFTREG_INLINE RowState<A> fold_lanes(const LaneRowState<A>& lanes, A max) {
  return {{max, fold_lanes(lanes.exp.sum, Sum())},
          fold_lanes(lanes.coefficient, Sum()),
          fold_lanes(lanes.logit, Sum())};
}

// Of a row in one chunk, with the sums of its weighted logits if `weighted`.
template <typename T, typename A, typename X>
SOFTREG_INLINE RowState<A> state_of_chunk(const X* x, int64_t n, const RowWeights<T, A>& weights,
                                          bool weighted, A* exps) {
  const A max = fold_lanes(max_of(x, n, Vec<A>(-INFINITY)), Max());
  const Vec<A> common(shift(max));
  if (!weighted) {
    return {{max, fold_lanes(sum_of_exp(x, n, common, exps), Sum())}, 0, 0};
  }
  const auto add = [&](LaneRowState<A> state, Vec<A> logits, int64_t i, auto lanes) {
    const Vec<A> shifted = logits - common;
    state.exp.sum = add_exp_to(state.exp.sum, shifted, exps, i);
    add_weighted(state, weights(i, lanes), in_lanes(lanes, shifted));
    return state;
  };
  return fold_lanes(fold_row<true, A>(x, n, LaneRowState<A>::empty(), add, SumOfStates()), max);
}

// Of a longer one, lane by lane. `sums` are relative to a maximum that stays behind until `max` is
// more than 1 ahead: in a row that climbs by little, each change of it would round all there is.
template <typename A>
struct LaneLogits {
  Vec<A> max{-static_cast<A>(INFINITY)};
  LogSumExp<Vec<A>> sums{max, Vec<A>(0)};
};

// Adds the logits x[0, n), by blocks so short that memory does not wait while their sums are taken.
template <typename A, typename T>
SOFTREG_INLINE void add_logits(LaneLogits<A>& lanes, const T* x, int64_t n) {
  constexpr int64_t kBlock = 16 * Vec<A>::size();
  LogSumExp<Vec<A>>& sums = lanes.sums;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = n - first < kBlock ? n - first : kBlock;
    lanes.max = max_of(x + first, count, lanes.max);
    const Vec<A> is_ahead = lanes.max > sums.max + Vec<A>(1);
    sums = relative_to(sums, Vec<A>::blendv(sums.max, lanes.max, is_ahead));
    sums.sum = sums.sum + sum_of_exp(x + first, count, shift(sums.max), static_cast<A*>(nullptr));
  }
}

template <typename A>
SOFTREG_INLINE LogSumExp<A> fold_lanes(const LaneLogits<A>& lanes) {
  const A max = fold_lanes(lanes.max, Max());
  return {max, fold_lanes(relative_to(lanes.sums, Vec<A>(max)).sum, Sum())};
}

// A chunk of a row's logits, transformed.
template <typename A>
struct Staged {
  alignas(64) A values[kChunk];

  template <typename T>
  const A* fill(const LogitTransform<A>& transform, const T* x, int64_t n) {
    constexpr int64_t width = Vec<A>::size();
    int64_t i = 0;
    for (; i + width <= n; i += width) {
      transform_logit(transform, load_vec(x + i)).value.store(values + i);
    }
    if (i < n) {
      transform_logit(transform, load_part(x + i, n - i, A(0))).value.store(values + i);
    }
    return values;
  }
};

template <typename T, typename A>
SOFTREG_INLINE LogSumExp<A> log_sum_exp_of_chunks(const CrossEntropyRows<T, A>& args, int64_t row,
                                                  Staged<A>& staged) {
  const T* logits = args.logits.row(row);
  LaneLogits<A> lanes;
  for (int64_t first = 0; first < args.classes; first += kChunk) {
    const int64_t rest = args.classes - first, n = rest < kChunk ? rest : kChunk;
    if (args.transform.is_identity) {
      add_logits(lanes, logits + first, n);
    } else {
      add_logits(lanes, staged.fill(args.transform, logits + first, n), n);
    }
  }
  return fold_lanes(lanes);
}

// Classes of a longer row whose weighted sum is taken in one go; their sums are compensated.
constexpr int64_t kWeightedChunk = 256;

// Adds to sum_c a_c and sum_c a_c (x_c - max) those of the classes [first, first + n), whose logits
// `x` holds.
template <typename T, typename A, typename X>
SOFTREG_INLINE void add_weighted(CompensatedSum& coefficient, CompensatedSum& logit,
                                 const RowWeights<T, A>& weights, const X* x, int64_t first,
                                 int64_t n, A max) {
  const Vec<A> common(shift(max));
  const auto add = [&](LaneRowState<A> state, Vec<A> logits, int64_t i, auto lanes) {
    add_weighted(state, weights(first + i, lanes), in_lanes(lanes, logits - common));
    return state;
  };
  const RowState<A> some =
      fold_lanes(fold_row<false, A>(x, n, LaneRowState<A>::empty(), add, SumOfStates()), max);
  coefficient.add(some.coefficient);
  logit.add(some.logit);
}

// The second walk over a row in several chunks, while it is in the cache.
template <typename T, typename A>
RowState<A> with_weighted_sums(LogSumExp<A> state, const CrossEntropyRows<T, A>& args, int64_t row,
                               const RowWeights<T, A>& weights, Staged<A>& staged) {
  const T* logits = args.logits.row(row);
  CompensatedSum coefficient, logit;
  for (int64_t first = 0; first < args.classes; first += kWeightedChunk) {
    const int64_t rest = args.classes - first, n = rest < kWeightedChunk ? rest : kWeightedChunk;
    if (args.transform.is_identity) {
      add_weighted(coefficient, logit, weights, logits + first, first, n, state.max);
    } else {
      add_weighted(coefficient, logit, weights, staged.fill(args.transform, logits + first, n),
                   first, n, state.max);
    }
  }
  return {state, coefficient.total(), logit.total()};
}

// `exps`: where the exponentials are left, for a row in one chunk whose logits are taken as they
// are; else null.
template <typename T, typename A>
SOFTREG_INLINE RowState<A> state_of_row(const CrossEntropyRows<T, A>& args, int64_t row,
                                        Staged<A>& staged, A* exps) {
  const T* logits = args.logits.row(row);
  const RowWeights<T, A> weights(args, row);
  const bool weighted = args.all_classes_count();
  if (args.classes <= kChunk) {
    return args.transform.is_identity
               ? state_of_chunk(logits, args.classes, weights, weighted, exps)
               : state_of_chunk(staged.fill(args.transform, logits, args.classes), args.classes,
                                weights, weighted, static_cast<A*>(nullptr));
  }
  const LogSumExp<A> state = log_sum_exp_of_chunks(args, row, staged);
  return weighted ? with_weighted_sums(state, args, row, weights, staged)
                  : RowState<A>{state, 0, 0};
}

// Calls then(row, target) after each row. `exps`: as for state_of_row().
template <typename T, typename A, typename Then>
SOFTREG_INLINE ForwardTotals forward_walk_along_row(const ForwardArgs<T, A>& args, int64_t begin,
                                                    int64_t end, A* exps, Then then) {
  ForwardTotals totals;
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, totals.bad_row);
    if (!is_read(args, target)) {
      add_row(args, row, target, A(0), A(0), A(0), A(0), A(0), totals);
      then(row, target);
      continue;
    }
    const RowState<A> state = state_of_row(args, row, staged, exps);
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
    then(row, target);
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

// gradient_of(c, lanes, offset): of the logits from c on.
template <typename T, typename A, typename GradientOf>
SOFTREG_INLINE void store_gradient(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                   const RowGradient<A>& gradient, GradientOf gradient_of) {
  const T* logits = args.logits.row(row);
  const RowWeights<T, A> weights(args, row);
  const Vec<A> scale(gradient.weight_scale), at_label(gradient.target_offset);
  const bool weighted = args.coefficients_vary();
  store_row<A>(args.grad.row(row), args.classes, streams(args), [&](int64_t c, auto lanes) {
    fetch_ahead(logits + c);
    Vec<A> offset = weighted ? scale * weights(c, lanes) : scale;
    // Here, not afterwards: to change what was streamed is to wait for it to come back.
    const uint64_t lane = static_cast<uint64_t>(target.label) - static_cast<uint64_t>(c);
    if (__builtin_expect(lane < static_cast<uint64_t>(Vec<A>::size()), false)) {
      offset = where_equal(lane_numbers<A>(), Vec<A>(static_cast<A>(lane)), at_label, offset);
    }
    return gradient_of(c, lanes, offset);
  });
}

// `exps`: exp(x - max), where the forward pass has left them.
template <typename T, typename A>
SOFTREG_INLINE void backward_row(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                 const A* exps) {
  if (!is_read(args, target)) {
    __builtin_memset(static_cast<void*>(args.grad.row(row)), 0, args.classes * sizeof(T));
    return;
  }
  const T* logits = args.logits.row(row);
  const RowGradient<A> gradient = row_gradient(args, row, target, saved_row(args, row));
  const Vec<A> max(args.row_max[row]), scale(gradient.softmax_scale), upstream(gradient.upstream);
  if (exps) {
    store_gradient(args, row, target, gradient, [&](int64_t c, auto lanes, Vec<A> offset) {
      return logit_gradient(load_lanes(lanes, exps + c, A(0)), scale, offset, upstream);
    });
  } else if (args.transform.is_identity) {
    store_gradient(args, row, target, gradient, [&](int64_t c, auto lanes, Vec<A> offset) {
      const Vec<A> x = load_lanes(lanes, logits + c, A(0));
      return logit_gradient(vexp(x - max), scale, offset, upstream);
    });
  } else {
    store_gradient(args, row, target, gradient, [&](int64_t c, auto lanes, Vec<A> offset) {
      const auto y = transform_logit(args.transform, load_lanes(lanes, logits + c, A(0)));
      return logit_gradient(vexp(y.value - max), scale, offset, upstream) * y.slope;
    });
  }
}

template <typename T, typename A>
int64_t backward_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    backward_row(args, row, target, static_cast<const A*>(nullptr));
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
        backward_row(backward, row, target, static_cast<const A*>(exps.values));
      });
  end_of_streams();
  return totals;
}

template <typename T, typename A>
int64_t grad_target_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowWeights<T, A> weights(args, row);
    const Vec<A> on(weights.on), upstream(upstream_gradient(args, row));
    const Vec<A> max(args.row_max[row]), log_sum(vlog(args.sum[row]));
    const T* logits = args.logits.row(row);
    T* grad = args.grad.row(row);
    for (int64_t first = 0; first < args.classes; first += kChunk) {
      const int64_t n = args.classes - first < kChunk ? args.classes - first : kChunk;
      const A* x = staged.fill(args.transform, logits + first, n);
      store_row<A>(grad + first, n, streams(args), [&](int64_t i, auto lanes) {
        const Vec<A> logit = load_lanes(lanes, x + i, A(0));
        const Vec<A> nll = negative_log_likelihood(log_sum, logit - max);
        return probability_gradient(weights.class_weights(first + i, lanes), on, nll, upstream);
      });
    }
  }
  end_of_streams();
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
