// Vectors across rows: each lane is a row, each vector one class of them. For few classes, and for
// logits (N, C, d1, ..., dK), whose rows lie side by side. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_tile.h"

namespace softreg {
namespace {

// The targets of a vector of rows. Lanes without a row do not count. In registers throughout: what
// narrow stores put together a wide load gets late, after every store before them.
template <typename A>
struct LaneTargets {
  static constexpr int64_t kLanes = Vec<A>::size();
  static constexpr int64_t kInPart = Vec<int64_t>::size(), kParts = kLanes / kInPart;
  Vec<int64_t> label[kParts];  // -1 where none counts
  Vec<int64_t> bad{0};         // not 0 in lanes where a label was out of range, ever
  Vec<A> counting;             // 1 or 0
  Vec<A> weight;               // of the label's class, 0 where the row does not count

  template <typename T>
  SOFTREG_INLINE void read(const CrossEntropyRows<T, A>& args, int64_t row, int64_t count) {
    if (args.has_probabilities()) {
      for (auto& part : label) {
        part = Vec<int64_t>(-1);
      }
      counting = weight = padded(Vec<A>(1), count, A(0));
      return;
    }
    const Labels labels = args.labels;
    int64_t copy[kLanes];
    const int64_t* given = static_cast<const int64_t*>(labels.data) + row;
    if (labels.bytes != 8 || labels.stride != 1 || count != kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        copy[lane] = lane < count ? labels[row + lane] : labels.ignore_index;
      }
      given = copy;
    }
    const Vec<int64_t> none(-1), ignored(labels.ignore_index), classes(args.classes);
    for (int64_t part = 0; part < kParts; ++part) {
      const auto of = Vec<int64_t>::loadu(given + part * kInPart);
      const auto keeps = of != ignored, counts = keeps & (of > none) & (of < classes);
      bad = bad | (keeps ^ counts);
      label[part] = Vec<int64_t>::blendv(none, of, counts);
    }
    counting = weight = where_equal(labels_from(0), Vec<A>(-1), Vec<A>(0), Vec<A>(1));
    if (args.weight) {
      A of_label[kLanes];
      for (int64_t part = 0; part < kParts; ++part) {
        label[part].store(copy + part * kInPart);
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        of_label[lane] = copy[lane] < 0 ? A(0) : args.weight[copy[lane]];
      }
      weight = Vec<A>::loadu(of_label);
    }
  }

  SOFTREG_INLINE bool all_count() const { return counting.zero_mask() == 0; }
  SOFTREG_INLINE bool none_counts() const {
    return counting.zero_mask() == static_cast<int>((1u << kLanes) - 1);
  }

  // x in the lanes that count; not a product with 0, for an ignored row may hold NaN.
  SOFTREG_INLINE Vec<A> of_counting(Vec<A> x) const {
    return where_equal(counting, Vec<A>(1), x, Vec<A>(0));
  }

  // The labels as numbers counted from `first`, to compare a small class number with.
  SOFTREG_INLINE Vec<A> labels_from(int64_t first) const {
    at::vec::VectorizedN<int64_t, kParts> relative;
    for (int64_t part = 0; part < kParts; ++part) {
      relative[part] = label[part] - Vec<int64_t>(first);
    }
    return at::vec::convert<A, 1, int64_t, kParts>(relative);
  }

  // The first bad row of those that were read.
  template <typename T>
  int64_t bad_row(const CrossEntropyRows<T, A>& args, int64_t begin, int64_t end) const {
    int64_t lanes[kInPart], any = 0, first = kNoBadRow;
    bad.store(lanes);
    for (const int64_t lane : lanes) {
      any |= lane;
    }
    for (int64_t row = begin; row < end && any; ++row) {
      RowTarget(args, row, first);
    }
    return first;
  }
};

// Sums of the rows of a block, a lane each. In double, which floats do not round by anything that
// counts; what doubles round is kept.
template <typename A>
struct LaneTotals {
  struct Plain {
    double sum = 0;
    SOFTREG_INLINE void add(double x) { sum += x; }
  };
  using Sum = std::conditional_t<std::is_same_v<A, float>, Plain, CompensatedSum>;
  static constexpr int64_t kLanes = Vec<A>::size();
  Sum loss[kLanes], weight[kLanes];

  SOFTREG_INLINE static void add(Sum* sums, Vec<A> x) {
    A lanes[kLanes];
    x.store(lanes);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums[lane].add(lanes[lane]);
    }
  }

  SOFTREG_INLINE static void add_to(CompensatedSum& total, const Sum* sums) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if constexpr (std::is_same_v<Sum, Plain>) {
        total.add(sums[lane].sum);
      } else {
        total.add(sums[lane]);
      }
    }
  }
};

// Maximum and sum of a vector of rows, and the logits of their labels.
template <typename A>
struct LaneState {
  LogSumExp<Vec<A>> of_logits{Vec<A>(-INFINITY), Vec<A>(0)};
  Vec<A> label_logit{A(0)};
};

template <typename A>
SOFTREG_INLINE void add_tile(LaneState<A>& state, const Tile<A>& tile,
                             const LaneTargets<A>& targets, int64_t first, int64_t n) {
  const auto logit = [&](int64_t c) { return tile[c]; };
  const Vec<A> max = fold_vectors(n, Vec<A>(-INFINITY), logit, Max(), Max());
  const Vec<A> common = shift(max);
  const auto add = [&](Vec<A> sum, Vec<A> x) { return add_exp(sum, x - common); };
  const LogSumExp<Vec<A>> some{max, fold_vectors(n, Vec<A>(0), logit, add, Sum())};
  state.of_logits = first == 0 ? some : merge(state.of_logits, some);
  const Vec<A> label = targets.labels_from(first);
  for (int64_t c = 0; c < n; ++c) {
    state.label_logit = where_equal(label, Vec<A>(static_cast<A>(c)), tile[c], state.label_logit);
  }
}

template <typename T, typename A>
SOFTREG_INLINE void add_tile(WeightedSums<A>& sums, const CrossEntropyRows<T, A>& args,
                             const Tile<A>& tile, const Tile<A>& probabilities, Vec<A> reference,
                             int64_t first, int64_t n) {
  const Vec<A> on(on_target(args)), per(per_class(args));
  const auto item = [&](int64_t c) {
    const Vec<A> weight(class_weight(args, first + c));
    const Vec<A> coefficient = args.has_probabilities()
                                   ? probability_coefficient(weight, probabilities[c], on, per)
                                   : weight;
    return WeightedSums<A>::of(coefficient, tile[c] - reference);
  };
  sums = sums + fold_vectors(n, WeightedSums<A>(), item, Sum(), Sum());
}

// Ends a vector of rows of the forward pass, as add_row() ends one.
template <typename T, typename A>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, int64_t row, int64_t count,
                             const LaneTargets<A>& targets, const LaneState<A>& state,
                             Vec<A> reference, const WeightedSums<A>& sums, LaneTotals<A>& totals) {
  const Vec<A> max = shift(state.of_logits.max), log_sum = vlog(state.of_logits.sum);
  store_part(args.row_max + row, count, max);
  store_part(args.sum + row, count, state.of_logits.sum);
  if (args.lse) {
    store_part(args.lse + row, count, max + log_sum);
  }
  if (args.has_probabilities()) {
    store_part(args.coefficient_sum + row, count, sums.coefficient);
  }
  Vec<A> weighted_nll(0);
  if (args.all_classes_count()) {
    weighted_nll =
        weighted_negative_log_likelihood(sums.coefficient, log_sum + (max - reference), sums.logit);
  }
  const Vec<A> loss = targets.of_counting(
      loss_of_row(args, targets.weight, state.label_logit, max, log_sum, weighted_nll));
  totals.add(totals.loss, loss);
  totals.add(totals.weight, targets.weight);
  if (args.loss) {
    store_part(args.loss + row, count, loss);
  }
}

template <typename T, typename A>
ForwardTotals forward_rows_in_lanes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tile<A> tile, probabilities;
  LaneTargets<A> targets;
  LaneTotals<A> of_lanes;
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = lanes_from(args, row, end);
    targets.read(args, row, count);
    const int64_t classes = targets.none_counts() && !args.lse ? 0 : args.classes;
    LaneState<A> state;
    for_each_tile(classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args, row, count, first, n);
      add_tile(state, tile, targets, first, n);
    });
    Vec<A> reference(0);
    WeightedSums<A> sums;
    if (args.all_classes_count()) {
      reference = reference_near(state.of_logits);
      for_each_tile(classes, [&](int64_t first, int64_t n) {
        if (classes > kTileClasses) {
          load_logits<T, A>(tile, nullptr, args, row, count, first, n);
        }
        if (args.has_probabilities()) {
          probabilities.load(args.probabilities, row, count, first, n);
        }
        add_tile(sums, args, tile, probabilities, reference, first, n);
      });
    }
    add_rows(args, row, count, targets, state, reference, sums, of_lanes);
  }
  ForwardTotals totals;
  totals.bad_row = targets.bad_row(args, begin, end);
  of_lanes.add_to(totals.loss, of_lanes.loss);
  of_lanes.add_to(totals.weight, of_lanes.weight);
  return totals;
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
SOFTREG_INLINE RowGradient<Vec<A>> row_gradients(const BackwardArgs<T, A>& args, int64_t row,
                                                 int64_t count, const LaneTargets<A>& targets,
                                                 Vec<A> max) {
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

// kPlain: labels, no smoothing and the logits as they are.
template <bool kPlain, typename T, typename A>
SOFTREG_INLINE int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin,
                                              int64_t end) {
  Tile<A> tile, slopes, target_tile;
  LaneTargets<A> targets;
  const bool probabilities = !kPlain && args.has_probabilities();
  const Vec<A> on(on_target(args)), per(per_class(args));
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = args.grad.rows_in_sample(row, lanes_from(args, row, end));
    targets.read(args, row, count);
    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    const auto [scale, elsewhere, at_label, upstream] =
        row_gradients(args, row, count, targets, max);
    const bool all_flow = args.grad_lse || targets.all_count();
    for_each_tile(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, &slopes, args, row, count, first, n);
      if (probabilities) {
        target_tile.load(args.probabilities, row, count, first, n);
      }
      const Vec<A> label = targets.labels_from(first);
      for (int64_t c = 0; c < n; ++c) {
        Vec<A> offset = elsewhere;
        if (!kPlain) {
          const Vec<A> weight(args.all_classes_count() ? class_weight(args, first + c) : A(1));
          offset =
              offset *
              (probabilities ? probability_coefficient(weight, target_tile[c], on, per) : weight);
        }
        offset = where_equal(label, Vec<A>(static_cast<A>(c)), at_label, offset);
        Vec<A> grad = logit_gradient(tile[c] - max, scale, offset, upstream);
        if (!kPlain && !args.transform.is_identity) {
          grad = grad * slopes[c];
        }
        tile.set(c, all_flow ? grad : targets.of_counting(grad));
      }
      tile.store(args.grad, row, count, first, n);
    });
  }
  return targets.bad_row(args, begin, end);
}

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  return args.all_classes_count() || !args.transform.is_identity
             ? backward_rows_in_lanes<false>(args, begin, end)
             : backward_rows_in_lanes<true>(args, begin, end);
}

template <typename T, typename A>
int64_t grad_target_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  Tile<A> tile;
  const Vec<A> on(on_target(args));
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = args.grad.rows_in_sample(row, lanes_from(args, row, end));
    const Vec<A> upstream = upstream_of_lanes(args, row, count);
    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    const Vec<A> log_sum = vlog(load_part(args.sum + row, count, A(1)));
    for_each_tile(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args, row, count, first, n);
      for (int64_t c = 0; c < n; ++c) {
        const Vec<A> nll = negative_log_likelihood(log_sum, tile[c] - max);
        tile.set(c, probability_gradient(Vec<A>(class_weight(args, first + c)), on, nll, upstream));
      }
      tile.store(args.grad, row, count, first, n);
    });
  }
  return kNoBadRow;
}

}  // namespace
}  // namespace softreg
