// Vectors across rows: each lane is a row, each vector one class of them. For few classes, and for
// logits (N, C, d1, ..., dK), whose rows lie side by side. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_tile.h"

namespace softreg {
namespace {

// The targets of a vector of rows. Lanes without a row do not count.
template <typename A>
struct LaneTargets {
  static constexpr int64_t kLanes = Vec<A>::size();
  int64_t label[kLanes];   // -1 where there is none
  A counting[kLanes];      // 1 or 0
  A label_weight[kLanes];  // 0 where the row does not count
  int64_t rows_that_count;

  template <typename T>
  void read(const CrossEntropyRows<T, A>& args, int64_t row, int64_t count, int64_t& bad_row) {
    if (args.has_probabilities()) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        label[lane] = -1;
        counting[lane] = label_weight[lane] = A(lane < count);
      }
      rows_that_count = count;
      return;
    }
    const Labels labels = args.labels;
    if (labels.bytes == 8 && labels.stride == 1 && count == kLanes) {
      __builtin_memcpy(label, static_cast<const int64_t*>(labels.data) + row, sizeof(label));
    } else {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        label[lane] = lane < count ? labels[row + lane] : labels.ignore_index;
      }
    }
    // Without branches, for ignored rows follow no pattern.
    const int64_t classes = args.classes;
    int64_t kept = 0, counted = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t keeps = label[lane] != labels.ignore_index;
      const int64_t counts = keeps & int64_t(names_a_class(label[lane], classes));
      label[lane] = counts ? label[lane] : -1;
      counting[lane] = label_weight[lane] = A(counts);
      kept += keeps;
      counted += counts;
    }
    rows_that_count = counted;
    for (int64_t lane = 0; lane < count && kept > counted; ++lane) {
      RowTarget(args, row + lane, bad_row);
    }
    for (int64_t lane = 0; lane < kLanes && args.weight; ++lane) {
      const A weight = args.weight[label[lane] < 0 ? 0 : label[lane]];
      label_weight[lane] = label[lane] < 0 ? A(0) : weight;
    }
  }

  Vec<A> counts() const { return Vec<A>::loadu(counting) == Vec<A>(1); }  // as a mask

  // The labels as numbers counted from `first`, to compare a small class number with.
  Vec<A> labels_from(int64_t first) const {
    A relative[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      relative[lane] = static_cast<A>(label[lane] - first);
    }
    return Vec<A>::loadu(relative);
  }
};

SOFTREG_INLINE void add_lanes(CompensatedSum& sum, Vec<double> x) {
  double lanes[Vec<double>::size()];
  x.store(lanes);
  for (const double lane : lanes) {
    sum.add(lane);
  }
}

// In double, which a vector of floats does not round by anything that counts.
SOFTREG_INLINE void add_lanes(CompensatedSum& sum, Vec<float> x) {
  float lanes[Vec<float>::size()];
  double wide[Vec<float>::size()];
  x.store(lanes);
  for (int64_t lane = 0; lane < Vec<float>::size(); ++lane) {
    wide[lane] = lanes[lane];
  }
  fold_halves<Vec<float>::size() / 2>(wide, Sum());
  sum.add(wide[0]);
}

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
    state.label_logit =
        Vec<A>::blendv(state.label_logit, tile[c], label == Vec<A>(static_cast<A>(c)));
  }
}

// sum_c a_c and sum_c a_c (x_c - reference) of each lane.
template <typename A>
struct LaneSums {
  Vec<A> coefficient{A(0)}, logit{A(0)};
};

template <typename T, typename A>
SOFTREG_INLINE void add_tile(LaneSums<A>& sums, const CrossEntropyRows<T, A>& args,
                             const Tile<A>& tile, const Tile<A>& probabilities, Vec<A> reference,
                             int64_t first, int64_t n) {
  const Vec<A> on(on_target(args)), per(per_class(args));
  const auto coefficient = [&](int64_t c) {
    const Vec<A> weight(class_weight(args, first + c));
    return args.has_probabilities() ? probability_coefficient(weight, probabilities[c], on, per)
                                    : weight;
  };
  const auto weighted = [&](int64_t c) { return coefficient(c) * (tile[c] - reference); };
  sums.coefficient = sums.coefficient + fold_vectors(n, Vec<A>(0), coefficient, Sum(), Sum());
  sums.logit = sums.logit + fold_vectors(n, Vec<A>(0), weighted, Sum(), Sum());
}

// Ends a vector of rows of the forward pass, as add_row() ends one.
template <typename T, typename A>
SOFTREG_INLINE void add_rows(const ForwardArgs<T, A>& args, int64_t row, int64_t count,
                             const LaneTargets<A>& targets, const LaneState<A>& state,
                             Vec<A> reference, const LaneSums<A>& sums, ForwardTotals& totals) {
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
  const Vec<A> weight = Vec<A>::loadu(targets.label_weight);
  // Not a product with 0: an ignored row may hold NaN.
  const Vec<A> loss = Vec<A>::blendv(
      Vec<A>(0), loss_of_row(args, weight, state.label_logit, max, log_sum, weighted_nll),
      targets.counts());
  add_lanes(totals.loss, loss);
  if (args.weight && !args.has_probabilities()) {
    add_lanes(totals.weight, weight);
  } else {
    totals.weight.add(static_cast<double>(targets.rows_that_count));
  }
  if (args.loss) {
    store_part(args.loss + row, count, loss);
  }
}

template <typename T, typename A>
ForwardTotals forward_rows_in_lanes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  ForwardTotals totals;
  Tile<A> tile, probabilities;
  LaneTargets<A> targets;
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = lanes_from(args, row, end);
    targets.read(args, row, count, totals.bad_row);
    const int64_t classes = targets.rows_that_count > 0 || args.lse ? args.classes : 0;
    LaneState<A> state;
    for_each_tile(classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args, row, count, first, n);
      add_tile(state, tile, targets, first, n);
    });
    Vec<A> reference(0);
    LaneSums<A> sums;
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
    add_rows(args, row, count, targets, state, reference, sums, totals);
  }
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
      args, Vec<A>::loadu(targets.label_weight), max, sum,
      args.has_probabilities() ? load_part(args.coefficient_sum + row, count, A(0)) : Vec<A>(0),
      upstream_of_lanes(args, row, count));
  if (args.grad_lse) {
    const Vec<A> counts = targets.counts();
    for (Vec<A>* of : {&of_rows.softmax_scale, &of_rows.weight_scale, &of_rows.target_offset,
                       &of_rows.upstream}) {
      *of = Vec<A>::blendv(Vec<A>(0), *of, counts);
    }
    of_rows = with_lse_gradient(of_rows, load_part(args.grad_lse + row, count, A(0)), sum);
  }
  return of_rows;
}

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  int64_t bad_row = kNoBadRow;
  Tile<A> tile, slopes, target_tile;
  LaneTargets<A> targets;
  const bool probabilities = args.has_probabilities();
  const Vec<A> on(on_target(args)), per(per_class(args));
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = args.grad.rows_in_sample(row, lanes_from(args, row, end));
    targets.read(args, row, count, bad_row);
    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    const auto [scale, elsewhere, at_label, upstream] =
        row_gradients(args, row, count, targets, max);
    const Vec<A> flows = args.grad_lse ? Vec<A>(0) == Vec<A>(0) : targets.counts();
    for_each_tile(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, &slopes, args, row, count, first, n);
      if (probabilities) {
        target_tile.load(args.probabilities, row, count, first, n);
      }
      const Vec<A> label = targets.labels_from(first);
      for (int64_t c = 0; c < n; ++c) {
        const Vec<A> weight(args.all_classes_count() ? class_weight(args, first + c) : A(1));
        const Vec<A> offset =
            probabilities
                ? elsewhere * probability_coefficient(weight, target_tile[c], on, per)
                : Vec<A>::blendv(elsewhere * weight, at_label, label == Vec<A>(static_cast<A>(c)));
        Vec<A> grad = logit_gradient(tile[c] - max, scale, offset, upstream);
        if (!args.transform.is_identity) {
          grad = grad * slopes[c];
        }
        // Not a product with 0: an ignored row may hold NaN.
        tile.set(c, Vec<A>::blendv(Vec<A>(0), grad, flows));
      }
      tile.store(args.grad, row, count, first, n);
    });
  }
  return bad_row;
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
