// The gradients of a row's logits, a vector at a time. Included by the kernels alone.
#pragma once

#include "cpu/kernels_row_state.h"
#include "cpu/kernels_target.h"

namespace softreg {
namespace {

// Whether a gradient is stored past the caches: not in the logits' place, for then some of it is
// written before all that it takes is read.
template <typename T, typename A>
SOFTREG_INLINE bool streams(const BackwardArgs<T, A>& args) {
  return args.grad.data != args.logits.data &&
         args.rows * args.classes * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes;
}

// What the gradients of a row's columns are made of besides their exponentials.
template <typename T, typename A>
struct RowGradients {
  RowWeights<T, A> weights;
  Vec<A> softmax_scale, weight_scale, at_label, upstream;
  uint64_t label;
  bool weighted;

  // Member by member: to copy what narrow stores have just put together is to wait for it.
  SOFTREG_INLINE void begin(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                            int64_t first) {
    const RowGradient<A> gradient =
        row_gradient(args, row, target, saved_row(args, row), upstream_gradient(args, row));
    weights.begin(args, row, first);
    softmax_scale = Vec<A>(gradient.softmax_scale);
    weight_scale = Vec<A>(gradient.weight_scale);
    at_label = Vec<A>(gradient.target_offset);
    upstream = Vec<A>(gradient.upstream);
    label = static_cast<uint64_t>(target.label - first);
    weighted = args.coefficients_vary();
  }

  // Of the columns from c on, whose exp(x - max) are given. kMayBeWeighted: else none are.
  template <bool kMayBeWeighted = true, typename Lanes>
  SOFTREG_INLINE Vec<A> operator()(int64_t c, Lanes lanes, Vec<A> exp) const {
    Vec<A> offset = weight_scale;
    if (kMayBeWeighted && weighted) {
      offset = offset * weights(c, lanes);
    }
    // Here, not afterwards: to change what was streamed is to wait for it to come back.
    const uint64_t lane = label - static_cast<uint64_t>(c);
    if (__builtin_expect(lane < static_cast<uint64_t>(Vec<A>::size()), false)) {
      offset = where_equal(lane_numbers<A>(), Vec<A>(static_cast<A>(lane)), at_label, offset);
    }
    return logit_gradient(exp, softmax_scale, offset, upstream);
  }
};

// Where a row has none.
template <typename T, typename A>
SOFTREG_INLINE void store_no_gradients(const BackwardArgs<T, A>& args, int64_t row,
                                       Columns columns) {
  __builtin_memset(static_cast<void*>(args.grad.row(row) + columns.first), 0,
                   columns.count * sizeof(T));
}

template <typename T, typename A>
SOFTREG_INLINE void backward_row(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                 Columns columns) {
  if (!is_read(args, target)) {
    store_no_gradients(args, row, columns);
    return;
  }
  RowGradients<T, A> gradients;
  gradients.begin(args, row, target, columns.first);
  const T* logits = args.logits.row(row) + columns.first;
  T* grad = args.grad.row(row) + columns.first;
  const Vec<A> max(args.row_max[row]);
  const auto load = [&](int64_t c, auto lanes) {
    fetch_ahead(logits + c);
    return load_lanes(lanes, logits + c, A(0));
  };
  if (args.transform.is_identity) {
    store_row<A>(grad, columns.count, streams(args), [&](int64_t c, auto lanes) {
      return gradients(c, lanes, vexp(load(c, lanes) - max));
    });
  } else {
    store_row<A>(grad, columns.count, streams(args), [&](int64_t c, auto lanes) {
      const auto y = transform_logit(args.transform, load(c, lanes));
      return gradients(c, lanes, vexp(y.value - max)) * y.slope;
    });
  }
}

// Writes the gradients of a row, all but its end beside the arithmetic of another where a vector is
// a register of what lies in memory: half types need two, and gained nothing.
template <typename T, typename A>
class RowGradientWriter {
  static constexpr int64_t kWidth = Vec<A>::size();
  static constexpr bool kBeside = StorageVec<T>::size() == kWidth;

 public:
  SOFTREG_INLINE explicit RowGradientWriter(const BackwardArgs<T, A>& args)
      : args_(args), streams_(streams(args)) {}

  // `exps`: exp(x - max) of the logits, until all is written.
  SOFTREG_INLINE void begin(int64_t row, RowTarget target, const A* exps) {
    grad_ = beside_ = nullptr;
    if (!is_read(args_, target)) {
      store_no_gradients(args_, row, all_columns(args_));
      return;
    }
    gradients_.begin(args_, row, target, 0);
    exps_ = exps;
    grad_ = args_.grad.row(row);
    beside_ = kBeside && !streams_ ? grad_ : nullptr;
  }

  // Those of a vector of classes from c on.
  template <bool kMayBeWeighted>
  SOFTREG_INLINE void write_beside(int64_t c) const {
    T* const to = beside_;
    if (kBeside && to) {
      fetch_ahead(to + c);
      store_vec(to + c, gradient<kMayBeWeighted>(c, All()));
    }
  }

  // What is left when each whole vector had its turn, or none had.
  SOFTREG_INLINE void write_rest(bool had_turns) const {
    if (grad_) {
      const int64_t n = args_.classes, done = beside_ && had_turns ? n - n % kWidth : 0;
      store_row<A>(grad_ + done, n - done, streams_,
                   [&](int64_t c, auto lanes) { return gradient<true>(done + c, lanes); });
    }
  }

 private:
  template <bool kMayBeWeighted, typename Lanes>
  SOFTREG_INLINE Vec<A> gradient(int64_t c, Lanes lanes) const {
    return gradients_.template operator()<kMayBeWeighted>(c, lanes,
                                                          load_lanes(lanes, exps_ + c, A(0)));
  }

  const BackwardArgs<T, A>& args_;
  RowGradients<T, A> gradients_;
  const A* exps_;
  T *grad_ = nullptr, *beside_ = nullptr;
  bool streams_;
};

}  // namespace
}  // namespace softreg
