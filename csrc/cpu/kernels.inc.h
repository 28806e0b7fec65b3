// The row loops, compiled once per instruction set by the kernels_*.cpp beside this file.
// Few classes: a vector holds one class of many rows. Many: a vector holds many classes of a row.
// No STL with code of its own, no static initialisers: see kernels_vec.h.

#include "cpu/kernels.h"
#include "cpu/kernels_vec.h"
// after the vectors, whose overloads these formulas call
#include "core/cross_entropy.h"

namespace softreg {
namespace {

// Up to here rows go into the lanes: above, filling a lane's row by scalar moves costs more than
// the two horizontal reductions that columns in the lanes need.
constexpr int64_t kMaxClassesInTile = 32;

// Logits that stay in the first-level cache between the maximum and the sum.
constexpr int64_t kChunk = 2048;

// One row's label. `counts` is false for an ignored row and for a bad one, which is recorded.
struct RowTarget {
  int64_t label;
  bool counts;

  template <typename T, typename A>
  RowTarget(const CrossEntropyRows<T, A>& args, int64_t row, int64_t& bad_row)
      : label(args.target[row]), counts(label != args.target.ignore_index) {
    if (counts && (label < 0 || label >= args.classes)) {
      bad_row = row < bad_row ? row : bad_row;
      counts = false;
    }
  }
};

template <typename T, typename A>
SOFTREG_INLINE A class_weight(const CrossEntropyRows<T, A>& args, int64_t c) {
  return args.weight ? args.weight[c] : A(1);
}

template <typename T, typename A>
SOFTREG_INLINE RowCoefficients<A> row_coefficients(const CrossEntropyRows<T, A>& args,
                                                   int64_t label) {
  return {static_cast<A>(1 - args.label_smoothing) * class_weight(args, label),
          static_cast<A>(args.label_smoothing / args.classes), args.weight_sum};
}

template <typename T, typename A>
SOFTREG_INLINE RowGradient<A> row_gradient(const BackwardArgs<T, A>& args, int64_t row,
                                           int64_t label) {
  const A upstream = args.grad_output
                         ? static_cast<A>(args.grad_output[row * args.grad_output_stride])
                         : args.grad_reduced;
  return row_gradient(row_coefficients(args, label), class_weight(args, label), upstream);
}

// Ends one row of the forward pass: its loss, from what the vectors found.
template <typename T, typename A>
SOFTREG_INLINE void add_row(const ForwardArgs<T, A>& args, int64_t row, RowTarget target,
                            A target_nll, A smooth_nll, ForwardTotals& totals) {
  A loss = 0;
  if (target.counts) {
    loss = row_loss(row_coefficients(args, target.label), target_nll, smooth_nll);
    totals.loss.add(loss);
    totals.weight.add(class_weight(args, target.label));
  }
  if (args.loss) {
    args.loss[row] = static_cast<T>(loss);
  }
}

struct Max {
  template <typename F>
  SOFTREG_INLINE F operator()(F a, F b) const {
    return vmax(a, b);
  }
};

struct Sum {
  template <typename F>
  SOFTREG_INLINE F operator()(F a, F b) const {
    return a + b;
  }
};

// Folds item(0), ..., item(n - 1) with `step`, in four accumulators joined by `combine`: that hides
// the latency of `step`, and a sum of few terms rounds less.
template <typename V, typename Item, typename Step, typename Combine>
SOFTREG_INLINE V fold_vectors(int64_t n, V init, Item item, Step step, Combine combine) {
  V acc[4] = {init, init, init, init};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int64_t k = 0; k < 4; ++k) {
      acc[k] = step(acc[k], item(i + k));
    }
  }
  for (; i < n; ++i) {
    acc[0] = step(acc[0], item(i));
  }
  return combine(combine(acc[0], acc[1]), combine(acc[2], acc[3]));
}

template <typename A, typename Combine>
SOFTREG_INLINE A fold_lanes(Vec<A> x, Combine combine) {
  A lanes[Vec<A>::size()];
  x.store(lanes);
  for (int64_t half = Vec<A>::size() / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] = combine(lanes[lane], lanes[lane + half]);
    }
  }
  return lanes[0];
}

// --- few classes: tile[c] holds class c of Vec::size() consecutive rows ---

template <typename A>
struct Tile {
  static constexpr int64_t kRows = Vec<A>::size();
  alignas(64) A values[kMaxClassesInTile * kRows];

  A& at(int64_t c, int64_t lane) { return values[c * kRows + lane]; }
  Vec<A> operator[](int64_t c) const { return Vec<A>::loadu(values + c * kRows); }
  void set(int64_t c, Vec<A> x) { x.store(values + c * kRows); }

  template <typename Step, typename Combine>
  SOFTREG_INLINE Vec<A> fold(int64_t classes, Vec<A> init, Step step, Combine combine) const {
    return fold_vectors(classes, init, [this](int64_t c) { return (*this)[c]; }, step, combine);
  }

  // Lanes past the last row repeat it: harmless numbers, never used.
  template <typename T>
  void load_rows(const CrossEntropyRows<T, A>& args, int64_t row, int64_t count) {
    for (int64_t lane = 0; lane < kRows; ++lane) {
      const T* logits = args.logits + (row + (lane < count ? lane : count - 1)) * args.row_stride;
      for (int64_t c = 0; c < args.classes; ++c) {
        at(c, lane) = static_cast<A>(logits[c]);
      }
    }
  }
};

template <typename A>
struct LaneValues {
  A values[Vec<A>::size()];

  explicit LaneValues(Vec<A> x) { x.store(values); }
  A operator[](int64_t lane) const { return values[lane]; }
};

template <typename T, typename A>
ForwardTotals forward_few_classes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  ForwardTotals totals;
  Tile<A> tile;
  for (int64_t row = begin; row < end; row += tile.kRows) {
    const int64_t count = end - row < tile.kRows ? end - row : tile.kRows;
    tile.load_rows(args, row, count);

    const Vec<A> max = shift(tile.fold(args.classes, Vec<A>(-INFINITY), Max(), Max()));
    const auto add_exp = [max](Vec<A> sum, Vec<A> logit) { return sum + vexp(logit - max); };
    const Vec<A> log_sum = vlog(tile.fold(args.classes, Vec<A>(0), add_exp, Sum()));
    Vec<A> smooth_nll(0);
    if (args.label_smoothing > 0) {
      const auto weighted = [&](int64_t c) {
        return Vec<A>(class_weight(args, c)) * (tile[c] - max);
      };
      const Vec<A> logit_sum = fold_vectors(args.classes, Vec<A>(0), weighted, Sum(), Sum());
      smooth_nll = smooth_negative_log_likelihood(Vec<A>(args.weight_sum), log_sum, logit_sum);
    }

    const LaneValues<A> maxima(max), log_sums(log_sum), smooth_nlls(smooth_nll);
    for (int64_t lane = 0; lane < count; ++lane) {
      args.row_max[row + lane] = maxima[lane];
      args.log_sum[row + lane] = log_sums[lane];
      const RowTarget target(args, row + lane, totals.bad_row);
      const A logit = tile.at(target.counts ? target.label : 0, lane);
      const A target_nll = negative_log_likelihood(log_sums[lane], logit - maxima[lane]);
      add_row(args, row + lane, target, target_nll, smooth_nlls[lane], totals);
    }
  }
  return totals;
}

template <typename T, typename A>
int64_t backward_few_classes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  int64_t bad_row = kNoBadRow;
  Tile<A> tile;
  for (int64_t row = begin; row < end; row += tile.kRows) {
    const int64_t count = end - row < tile.kRows ? end - row : tile.kRows;
    tile.load_rows(args, row, count);

    A labels[tile.kRows];  // as numbers to compare with; -1: no gradient
    A softmax_scale[tile.kRows] = {}, weight_scale[tile.kRows] = {}, target_offset[tile.kRows] = {};
    for (int64_t lane = 0; lane < tile.kRows; ++lane) {
      labels[lane] = -1;
      if (lane >= count) {
        continue;
      }
      const RowTarget target(args, row + lane, bad_row);
      if (target.counts) {
        labels[lane] = static_cast<A>(target.label);
        const RowGradient<A> gradient = row_gradient(args, row + lane, target.label);
        softmax_scale[lane] = gradient.softmax_scale;
        weight_scale[lane] = gradient.weight_scale;
        target_offset[lane] = gradient.target_offset;
      }
    }

    const Vec<A> max = load_part(args.row_max + row, count, A(0));
    const Vec<A> log_sum = load_part(args.log_sum + row, count, A(0));
    const Vec<A> label = Vec<A>::loadu(labels), at_label = Vec<A>::loadu(target_offset);
    const Vec<A> scale = Vec<A>::loadu(softmax_scale), elsewhere = Vec<A>::loadu(weight_scale);
    for (int64_t c = 0; c < args.classes; ++c) {
      const Vec<A> offset = Vec<A>::blendv(elsewhere * Vec<A>(class_weight(args, c)), at_label,
                                           label == Vec<A>(static_cast<A>(c)));
      tile.set(c, logit_gradient(probability(tile[c] - max, log_sum), scale, offset));
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      T* grad = args.grad_logits + (row + lane) * args.classes;
      if (labels[lane] < 0) {
        // Not a product with 0: an ignored row may hold NaN.
        __builtin_memset(static_cast<void*>(grad), 0, args.classes * sizeof(T));
        continue;
      }
      for (int64_t c = 0; c < args.classes; ++c) {
        grad[c] = static_cast<T>(tile.at(c, lane));
      }
    }
  }
  return bad_row;
}

// --- many classes: vectors along the row ---

// Folds x[0, n) into one value; lanes past the end see `padding`.
template <typename A, typename T, typename Step, typename Combine>
SOFTREG_INLINE A fold_row(const T* x, int64_t n, A init, A padding, Step step, Combine combine) {
  constexpr int64_t width = Vec<A>::size();
  const auto item = [x](int64_t i) { return load_vec(x + i * width); };
  Vec<A> total = fold_vectors(n / width, Vec<A>(init), item, step, combine);
  if (n % width != 0) {
    total = step(total, load_part(x + n / width * width, n % width, padding));
  }
  return fold_lanes(total, combine);
}

template <typename A, typename T>
SOFTREG_INLINE LogSumExp<A> chunk_log_sum_exp(const T* x, int64_t n) {
  const A max = fold_row<A>(x, n, -INFINITY, -INFINITY, Max(), Max());
  const Vec<A> common(shift(max));
  const auto add_exp = [common](Vec<A> sum, Vec<A> logit) { return sum + vexp(logit - common); };
  return {max, fold_row<A>(x, n, 0, -INFINITY, add_exp, Sum())};
}

// sum_c w_c (x_c - reference), weight null for all 1.
template <typename A, typename T>
SOFTREG_INLINE A weighted_logit_sum(const T* x, const A* weight, int64_t n, A reference) {
  const Vec<A> origin(reference);
  if (!weight) {
    const auto add = [origin](Vec<A> sum, Vec<A> logit) { return sum + (logit - origin); };
    return fold_row<A>(x, n, 0, reference, add, Sum());
  }
  constexpr int64_t width = Vec<A>::size();
  const auto item = [=](int64_t i) {
    return load_vec(weight + i * width) * (load_vec(x + i * width) - origin);
  };
  const Vec<A> whole = fold_vectors(n / width, Vec<A>(0), item, Sum(), Sum());
  const int64_t end = n / width * width;
  const Vec<A> rest =
      load_part(weight + end, n - end, A(0)) * (load_part(x + end, n - end, reference) - origin);
  return fold_lanes(whole + rest, Sum());
}

template <typename T, typename A>
ForwardTotals forward_many_classes(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  ForwardTotals totals;
  for (int64_t row = begin; row < end; ++row) {
    const RowTarget target(args, row, totals.bad_row);
    if (!target.counts) {
      args.row_max[row] = args.log_sum[row] = 0;
      add_row(args, row, target, A(0), A(0), totals);
      continue;
    }
    const T* logits = args.logits + row * args.row_stride;
    LogSumExp<A> state{-INFINITY, 0};
    A reference = 0, logit_sum = 0;
    for (int64_t c = 0; c < args.classes; c += kChunk) {
      const int64_t n = args.classes - c < kChunk ? args.classes - c : kChunk;
      const LogSumExp<A> chunk = chunk_log_sum_exp<A>(logits + c, n);
      state = c == 0 ? chunk : merge(state, chunk);
      if (args.label_smoothing > 0) {
        // Any finite reference near the logits will do; the first chunk's maximum is at hand.
        reference = c == 0 ? shift(chunk.max) : reference;
        logit_sum +=
            weighted_logit_sum(logits + c, args.weight ? args.weight + c : nullptr, n, reference);
      }
    }
    const A max = shift(state.max);
    const A log_sum = vlog(state.sum);
    args.row_max[row] = max;
    args.log_sum[row] = log_sum;
    const A logit = static_cast<A>(logits[target.label]);
    add_row(args, row, target, negative_log_likelihood(log_sum, logit - max),
            smooth_negative_log_likelihood(args.weight_sum, log_sum + (max - reference), logit_sum),
            totals);
  }
  return totals;
}

template <typename T, typename A>
int64_t backward_many_classes(const BackwardArgs<T, A>& args, int64_t begin, int64_t end) {
  constexpr int64_t width = Vec<A>::size();
  int64_t bad_row = kNoBadRow;
  for (int64_t row = begin; row < end; ++row) {
    const T* logits = args.logits + row * args.row_stride;
    T* grad = args.grad_logits + row * args.classes;
    const RowTarget target(args, row, bad_row);
    if (!target.counts) {
      __builtin_memset(static_cast<void*>(grad), 0, args.classes * sizeof(T));
      continue;
    }
    const A max = args.row_max[row], log_sum = args.log_sum[row];
    const RowGradient<A> gradient = row_gradient(args, row, target.label);
    const auto of_class = [&](auto logit, auto offset) {
      using F = decltype(logit);
      return logit_gradient(probability(logit - F(max), F(log_sum)), F(gradient.softmax_scale),
                            offset);
    };
    // Off the target, class weights matter through the smoothing only.
    const A* weight = args.label_smoothing > 0 ? args.weight : nullptr;
    const Vec<A> scale(gradient.weight_scale);
    int64_t c = 0;
    for (; c + width <= args.classes; c += width) {
      store_vec(grad + c,
                of_class(load_vec(logits + c), weight ? scale * load_vec(weight + c) : scale));
    }
    if (c < args.classes) {
      const int64_t n = args.classes - c;
      const Vec<A> offset = weight ? scale * load_part(weight + c, n, A(0)) : scale;
      store_part(grad + c, n, of_class(load_part(logits + c, n, A(0)), offset));
    }
    // Anew from the logit, so that a half type is rounded once.
    grad[target.label] =
        static_cast<T>(of_class(static_cast<A>(logits[target.label]), gradient.target_offset));
  }
  return bad_row;
}

template <typename T>
ForwardTotals forward(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return args.classes <= kMaxClassesInTile ? forward_few_classes(args, begin, end)
                                           : forward_many_classes(args, begin, end);
}

template <typename T>
int64_t backward(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return args.classes <= kMaxClassesInTile ? backward_few_classes(args, begin, end)
                                           : backward_many_classes(args, begin, end);
}

}  // namespace

const KernelSet SOFTREG_KERNEL_SET = {
    SOFTREG_KERNEL_SET_NAME,
    {forward<float>, backward<float>},
    {forward<double>, backward<double>},
    {forward<c10::BFloat16>, backward<c10::BFloat16>},
    {forward<c10::Half>, backward<c10::Half>},
};

}  // namespace softreg
