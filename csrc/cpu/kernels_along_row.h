// Vectors along a row: for many classes, adjacent in memory. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_target.h"

namespace softreg {
namespace {

// Logits that stay in the first-level cache between the maximum and the sum.
constexpr int64_t kChunk = 2048;

// Folds x[0, n) into one value; lanes past the end see `padding`. With kFetchNext the chunk behind
// x is called from memory meanwhile, so that arithmetic and memory do not take turns.
template <bool kFetchNext, typename A, typename T, typename Step, typename Combine>
SOFTREG_INLINE A fold_row(const T* x, int64_t n, A init, A padding, Step step, Combine combine) {
  constexpr int64_t width = Vec<A>::size();
  const auto item = [x](int64_t i) {
    if (kFetchNext) {
      __builtin_prefetch(x + i * width + kChunk);
    }
    return load_vec(x + i * width);
  };
  Vec<A> total = fold_vectors(n / width, Vec<A>(init), item, step, combine);
  if (n % width != 0) {
    total = step(total, load_part(x + n / width * width, n % width, padding));
  }
  return fold_lanes(total, combine);
}

template <typename A, typename T>
SOFTREG_INLINE LogSumExp<A> chunk_log_sum_exp(const T* x, int64_t n) {
  const A max = fold_row<false, A>(x, n, -INFINITY, -INFINITY, Max(), Max());
  const Vec<A> common(shift(max));
  const auto add = [common](Vec<A> sum, Vec<A> logit) { return add_exp(sum, logit - common); };
  return {max, fold_row<true, A>(x, n, 0, -INFINITY, add, Sum())};
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
        on(on_target(args)),
        per(per_class(args)) {}

  SOFTREG_INLINE Vec<A> class_weights(int64_t c) const {
    return weight ? load_vec(weight + c) : Vec<A>(1);
  }

  SOFTREG_INLINE Vec<A> part_of_class_weights(int64_t c, int64_t count) const {
    return weight ? load_part(weight + c, count, A(0)) : padded(Vec<A>(1), count, A(0));
  }

  SOFTREG_INLINE Vec<A> whole(int64_t c) const {
    const Vec<A> w = class_weights(c);
    return probabilities
               ? probability_coefficient(w, load_vec(probabilities + c), Vec<A>(on), Vec<A>(per))
               : w;
  }

  // The last `count` classes; lanes past them are 0.
  SOFTREG_INLINE Vec<A> part(int64_t c, int64_t count) const {
    const Vec<A> w = part_of_class_weights(c, count);
    return probabilities ? probability_coefficient(w, load_part(probabilities + c, count, A(0)),
                                                   Vec<A>(on), Vec<A>(per))
                         : w;
  }
};

// Classes whose weighted sum is taken in one go; longer sums are compensated.
constexpr int64_t kWeightedChunk = 256;

// sum_c a_c and sum_c a_c (x_c - reference).
struct RowSums {
  CompensatedSum coefficient, logit;
};

// Adds those of the classes [first, first + n), whose logits `x` holds.
template <typename T, typename A, typename X>
SOFTREG_INLINE void add_weighted(const RowWeights<T, A>& weights, const X* x, int64_t first,
                                 int64_t n, A reference, RowSums& sums) {
  constexpr int64_t width = Vec<A>::size();
  const Vec<A> origin(reference);
  const auto coefficient = [&](int64_t i) { return weights.whole(first + i * width); };
  const auto weighted = [&](int64_t i) {
    return coefficient(i) * (load_vec(x + i * width) - origin);
  };
  Vec<A> coefficients = fold_vectors(n / width, Vec<A>(0), coefficient, Sum(), Sum());
  Vec<A> products = fold_vectors(n / width, Vec<A>(0), weighted, Sum(), Sum());
  if (n % width != 0) {
    const int64_t last = n / width * width;
    const Vec<A> rest = weights.part(first + last, n - last);
    coefficients = coefficients + rest;
    products = products + rest * (load_part(x + last, n - last, reference) - origin);
  }
  sums.coefficient.add(fold_lanes(coefficients, Sum()));
  sums.logit.add(fold_lanes(products, Sum()));
}

// The second walk over a row, while it is in the cache: relative to the logsumexp nothing cancels.
template <typename T, typename A>
RowSums weighted_sums(const CrossEntropyRows<T, A>& args, int64_t row, A reference,
                      Staged<A>& staged) {
  const RowWeights<T, A> weights(args, row);
  const T* logits = args.logits.row(row);
  RowSums sums;
  for (int64_t first = 0; first < args.classes; first += kWeightedChunk) {
    const int64_t rest = args.classes - first, n = rest < kWeightedChunk ? rest : kWeightedChunk;
    if (args.transform.is_identity) {
      add_weighted(weights, logits + first, first, n, reference, sums);
    } else {
      add_weighted(weights, staged.fill(args.transform, logits + first, n), first, n, reference,
                   sums);
    }
  }
  return sums;
}

template <typename T, typename A>
ForwardTotals forward_along_row(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  ForwardTotals totals;
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, totals.bad_row);
    if (!is_read(args, target)) {
      add_row(args, row, target, A(0), A(0), A(0), A(0), A(0), totals);
      continue;
    }
    const T* logits = args.logits.row(row);
    LogSumExp<A> state{-INFINITY, 0};
    for (int64_t first = 0; first < args.classes; first += kChunk) {
      const int64_t n = args.classes - first < kChunk ? args.classes - first : kChunk;
      const LogSumExp<A> chunk =
          args.transform.is_identity
              ? chunk_log_sum_exp<A>(logits + first, n)
              : chunk_log_sum_exp<A>(staged.fill(args.transform, logits + first, n), n);
      state = first == 0 ? chunk : merge(state, chunk);
    }
    const A max = shift(state.max), log_sum = vlog(state.sum);
    double weighted_nll = 0;
    if (args.all_classes_count()) {
      const A reference = reference_near(state);
      const RowSums sums = weighted_sums(args, row, reference, staged);
      weighted_nll = weighted_negative_log_likelihood<double>(
          sums.coefficient.total(), log_sum + (max - reference), sums.logit.total());
      if (args.has_probabilities()) {
        args.coefficient_sum[row] = static_cast<A>(sums.coefficient.total());
      }
    }
    add_row(args, row, target, label_logit(args, row, target), max, state.sum, log_sum,
            static_cast<A>(weighted_nll), totals);
  }
  return totals;
}

template <bool kTransformed, typename T, typename A>
SOFTREG_INLINE void backward_row(const BackwardArgs<T, A>& args, int64_t row, RowTarget target) {
  constexpr int64_t width = Vec<A>::size();
  const T* logits = args.logits.row(row);
  T* grad = args.grad.row(row);
  const A max = args.row_max[row];
  const RowGradient<A> gradient = row_gradient(args, row, target);
  const RowWeights<T, A> weights(args, row);
  // Off the target, coefficients matter for probabilities and for smoothed labels only.
  const bool weighted = args.has_probabilities() || (args.all_classes_count() && args.weight);
  const auto of_class = [&](Vec<A> logit, Vec<A> offset) {
    const auto of = [&](Vec<A> x) {
      return logit_gradient(x - Vec<A>(max), Vec<A>(gradient.softmax_scale), offset,
                            Vec<A>(gradient.upstream));
    };
    if constexpr (kTransformed) {
      const TransformedLogit<Vec<A>> y = transform_logit(args.transform, logit);
      return of(y.value) * y.slope;
    } else {
      return of(logit);
    }
  };
  const Vec<A> scale(gradient.weight_scale);
  int64_t c = 0;
  for (; c + width <= args.classes; c += width) {
    store_vec(grad + c,
              of_class(load_vec(logits + c), weighted ? scale * weights.whole(c) : scale));
  }
  if (c < args.classes) {
    const int64_t n = args.classes - c;
    store_part(
        grad + c, n,
        of_class(load_part(logits + c, n, A(0)), weighted ? scale * weights.part(c, n) : scale));
  }
  if (target.label >= 0 && target.counts) {
    // Anew from the logit, so that a half type is rounded once.
    const Vec<A> logit(static_cast<A>(logits[target.label]));
    store_part(grad + target.label, 1, of_class(logit, Vec<A>(gradient.target_offset)));
  }
}

template <typename T, typename A>
int64_t backward_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, bad_row);
    if (!is_read(args, target)) {
      T* grad = args.grad.row(row);
      __builtin_memset(static_cast<void*>(grad), 0, args.classes * sizeof(T));
    } else if (args.transform.is_identity) {
      backward_row<false>(args, row, target);
    } else {
      backward_row<true>(args, row, target);
    }
  }
  return bad_row;
}

template <typename T, typename A>
int64_t grad_target_along_row(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  constexpr int64_t width = Vec<A>::size();
  Staged<A> staged;
  for (int64_t row = begin; row < end; ++row) {
    const RowWeights<T, A> weights(args, row);
    const Vec<A> on(weights.on), upstream(upstream_gradient(args, row));
    const Vec<A> max(args.row_max[row]), log_sum(vlog(args.sum[row]));
    const auto of = [&](Vec<A> class_weight, Vec<A> logit) {
      const Vec<A> nll = negative_log_likelihood(log_sum, logit - max);
      return probability_gradient(class_weight, on, nll, upstream);
    };
    const T* logits = args.logits.row(row);
    T* grad = args.grad.row(row);
    for (int64_t first = 0; first < args.classes; first += kChunk) {
      const int64_t n = args.classes - first < kChunk ? args.classes - first : kChunk;
      const A* x = staged.fill(args.transform, logits + first, n);
      int64_t i = 0;
      for (; i + width <= n; i += width) {
        store_vec(grad + first + i, of(weights.class_weights(first + i), load_vec(x + i)));
      }
      if (i < n) {
        store_part(grad + first + i, n - i,
                   of(weights.part_of_class_weights(first + i, n - i), load_vec(x + i)));
      }
    }
  }
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
