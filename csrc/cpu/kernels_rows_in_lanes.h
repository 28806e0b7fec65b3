// Vectors across rows: each lane is a row, each vector one class of them. For few classes, and for
// logits (N, C, d1, ..., dK), whose rows lie side by side. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_target.h"

namespace softreg {
namespace {

// Classes taken up at a time. Also the most for which rows that are apart in memory are brought
// side by side: above, those scalar moves cost more than two horizontal reductions a row.
constexpr int64_t kTileClasses = 32;

// Some classes of Vec::size() rows.
template <typename A>
struct Tile {
  static constexpr int64_t kRows = Vec<A>::size();
  alignas(64) A values[kTileClasses * kRows];

  Vec<A> operator[](int64_t c) const { return Vec<A>::loadu(values + c * kRows); }
  void set(int64_t c, Vec<A> x) { x.store(values + c * kRows); }

  // Classes [first, first + n) of `count` rows; lanes past them get harmless numbers, never used.
  template <typename T>
  void load(const RowMatrix<const T>& matrix, int64_t row, int64_t count, int64_t first,
            int64_t n) {
    const int64_t stride = matrix.class_stride;
    if (matrix.inner > 1) {
      const T* from = matrix.row(row) + first * stride;
      for (int64_t c = 0; c < n; ++c, from += stride) {
        set(c, count == kRows ? load_vec(from) : load_part(from, count, A(0)));
      }
      return;
    }
    for (int64_t lane = 0; lane < kRows; ++lane) {
      const T* from = matrix.row(row + (lane < count ? lane : count - 1)) + first * stride;
      for (int64_t c = 0; c < n; ++c) {
        values[c * kRows + lane] = static_cast<A>(from[c * stride]);
      }
    }
  }

  template <typename T>
  void store(const RowMatrix<T>& matrix, int64_t row, int64_t count, int64_t first,
             int64_t n) const {
    const int64_t stride = matrix.class_stride;
    if (matrix.inner > 1) {
      T* to = matrix.row(row) + first * stride;
      for (int64_t c = 0; c < n; ++c, to += stride) {
        count == kRows ? store_vec(to, (*this)[c]) : store_part(to, count, (*this)[c]);
      }
      return;
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      T* to = matrix.row(row + lane) + first * stride;
      for (int64_t c = 0; c < n; ++c) {
        to[c * stride] = static_cast<T>(values[c * kRows + lane]);
      }
    }
  }
};

// Logits, transformed, and where `slopes` is given the slopes of that.
template <typename T, typename A>
SOFTREG_INLINE void load_logits(Tile<A>& tile, Tile<A>* slopes, const CrossEntropyRows<T, A>& args,
                                int64_t row, int64_t count, int64_t first, int64_t n) {
  tile.load(args.logits, row, count, first, n);
  if (args.transform.is_identity) {
    return;
  }
  for (int64_t c = 0; c < n; ++c) {
    const TransformedLogit<Vec<A>> y = transform_logit(args.transform, tile[c]);
    tile.set(c, y.value);
    if (slopes) {
      slopes->set(c, y.slope);
    }
  }
}

template <typename A>
struct LaneValues {
  A values[Vec<A>::size()];

  explicit LaneValues(Vec<A> x) { x.store(values); }
  A operator[](int64_t lane) const { return values[lane]; }
};

// How many rows from `row` on share a tile.
template <typename T, typename A>
SOFTREG_INLINE int64_t lanes_from(const CrossEntropyRows<T, A>& args, int64_t row, int64_t end) {
  const int64_t count = end - row < Tile<A>::kRows ? end - row : Tile<A>::kRows;
  return args.probabilities.rows_in_sample(row, args.logits.rows_in_sample(row, count));
}

// Calls body(first, n) for tiles of classes [first, first + n).
template <typename Body>
SOFTREG_INLINE void for_each_tile(int64_t classes, Body body) {
  for (int64_t first = 0; first < classes; first += kTileClasses) {
    body(first, classes - first < kTileClasses ? classes - first : kTileClasses);
  }
}

// sum_c a_c and sum_c a_c (x_c - reference) of each lane.
template <typename A>
struct LaneSums {
  Vec<A> coefficient{A(0)}, logit{A(0)};
};

template <typename T, typename A>
SOFTREG_INLINE LaneSums<A> weighted_sums(const CrossEntropyRows<T, A>& args, int64_t row,
                                         int64_t count, Vec<A> reference) {
  Tile<A> tile, coefficients;
  LaneSums<A> sums;
  const Vec<A> on(on_target(args)), per(per_class(args));
  for_each_tile(args.classes, [&](int64_t first, int64_t n) {
    load_logits<T, A>(tile, nullptr, args, row, count, first, n);
    if (args.has_probabilities()) {
      coefficients.load(args.probabilities, row, count, first, n);
    }
    for (int64_t c = 0; c < n; ++c) {
      const Vec<A> weight(class_weight(args, first + c));
      coefficients.set(c, args.has_probabilities()
                              ? probability_coefficient(weight, coefficients[c], on, per)
                              : weight);
    }
    const auto coefficient = [&](int64_t c) { return coefficients[c]; };
    const auto weighted = [&](int64_t c) { return coefficients[c] * (tile[c] - reference); };
    sums.coefficient = sums.coefficient + fold_vectors(n, Vec<A>(0), coefficient, Sum(), Sum());
    sums.logit = sums.logit + fold_vectors(n, Vec<A>(0), weighted, Sum(), Sum());
  });
  return sums;
}

template <typename T, typename A>
ForwardTotals forward_rows_in_lanes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  ForwardTotals totals;
  Tile<A> tile;
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = lanes_from(args, row, end);
    LogSumExp<Vec<A>> state{Vec<A>(-INFINITY), Vec<A>(0)};
    for_each_tile(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, nullptr, args, row, count, first, n);
      const auto logit = [&](int64_t c) { return tile[c]; };
      const Vec<A> max = fold_vectors(n, Vec<A>(-INFINITY), logit, Max(), Max());
      const Vec<A> common = shift(max);
      const auto add = [&](Vec<A> sum, Vec<A> x) { return add_exp(sum, x - common); };
      const LogSumExp<Vec<A>> some{max, fold_vectors(n, Vec<A>(0), logit, add, Sum())};
      state = first == 0 ? some : merge(state, some);
    });
    const Vec<A> max = shift(state.max), log_sum = vlog(state.sum);
    LaneSums<A> sums;
    Vec<A> weighted_nll(0);
    if (args.all_classes_count()) {
      const Vec<A> reference = reference_near(state);
      sums = weighted_sums(args, row, count, reference);
      weighted_nll = weighted_negative_log_likelihood(sums.coefficient, log_sum + (max - reference),
                                                      sums.logit);
    }
    const LaneValues<A> maxima(max), row_sums(state.sum), log_sums(log_sum);
    const LaneValues<A> weighted_nlls(weighted_nll);
    const LaneValues<A> coefficient_sums(sums.coefficient);
    for (int64_t lane = 0; lane < count; ++lane) {
      const RowTarget target(args, row + lane, totals.bad_row);
      add_row(args, row + lane, target, label_logit(args, row + lane, target), maxima[lane],
              row_sums[lane], log_sums[lane], weighted_nlls[lane], totals);
      if (args.has_probabilities()) {
        args.coefficient_sum[row + lane] = coefficient_sums[lane];
      }
    }
  }
  return totals;
}

// What the rows in the lanes need for their gradients.
template <typename A>
struct LaneGradients {
  static constexpr int64_t kRows = Vec<A>::size();
  int64_t label[kRows];
  Vec<A> flows;  // as a mask
  RowGradient<Vec<A>> of_rows;

  template <typename T>
  LaneGradients(const BackwardArgs<T, A>& args, int64_t row, int64_t count, int64_t& bad_row) {
    const bool probabilities = args.has_probabilities();
    A flow[kRows] = {}, counting[kRows] = {}, label_weight[kRows] = {}, upstream[kRows] = {};
    for (int64_t lane = 0; lane < kRows; ++lane) {
      label[lane] = -1;
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      const RowTarget target(args, row + lane, bad_row);
      flow[lane] = is_read(args, target);
      counting[lane] = target.counts;
      if (target.counts) {
        label[lane] = target.label;
        label_weight[lane] = probabilities ? A(1) : class_weight(args, target.label);
        upstream[lane] = upstream_gradient(args, row + lane);
      }
    }
    flows = Vec<A>::loadu(flow) == Vec<A>(1);
    const Vec<A> counts = Vec<A>::loadu(counting) == Vec<A>(1);
    const Vec<A> sum = load_part(args.sum + row, count, A(1));
    of_rows = row_gradient(
        args, Vec<A>::loadu(label_weight), load_part(args.row_max + row, count, A(0)), sum,
        probabilities ? load_part(args.coefficient_sum + row, count, A(0)) : Vec<A>(0),
        Vec<A>::loadu(upstream));
    if (args.grad_lse) {
      for (Vec<A>* of : {&of_rows.softmax_scale, &of_rows.weight_scale, &of_rows.target_offset}) {
        *of = Vec<A>::blendv(Vec<A>(0), *of, counts);
      }
      of_rows = with_lse_gradient(of_rows, load_part(args.grad_lse + row, count, A(0)), sum);
    }
  }

  // The labels as numbers counted from `first`, to compare a small class number with.
  Vec<A> labels_from(int64_t first) const {
    A relative[kRows];
    for (int64_t lane = 0; lane < kRows; ++lane) {
      relative[lane] = static_cast<A>(label[lane] - first);
    }
    return Vec<A>::loadu(relative);
  }
};

template <typename T, typename A>
int64_t backward_rows_in_lanes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  int64_t bad_row = kNoBadRow;
  Tile<A> tile, slopes, target_tile;
  const bool probabilities = args.has_probabilities();
  const Vec<A> on(on_target(args)), per(per_class(args));
  int64_t count;
  for (int64_t row = begin; row < end; row += count) {
    count = args.grad.rows_in_sample(row, lanes_from(args, row, end));
    const LaneGradients<A> gradients(args, row, count, bad_row);
    const auto& [scale, elsewhere, at_label, upstream] = gradients.of_rows;
    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    for_each_tile(args.classes, [&](int64_t first, int64_t n) {
      load_logits<T, A>(tile, &slopes, args, row, count, first, n);
      if (probabilities) {
        target_tile.load(args.probabilities, row, count, first, n);
      }
      const Vec<A> label = gradients.labels_from(first);
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
        tile.set(c, Vec<A>::blendv(Vec<A>(0), grad, gradients.flows));
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
    A upstream_of_lane[Tile<A>::kRows] = {};
    for (int64_t lane = 0; lane < count; ++lane) {
      upstream_of_lane[lane] = upstream_gradient(args, row + lane);
    }
    const Vec<A> upstream = Vec<A>::loadu(upstream_of_lane);
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
