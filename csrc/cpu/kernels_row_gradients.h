// The gradients of a row's logits, a vector at a time. Included by the kernels alone.
#pragma once

#include "cpu/kernels_row_state.h"
// after the vectors, whose overloads the formulas call
#include "row_target.h"

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

  SOFTREG_INLINE void begin(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                            SavedRow<A> saved, int64_t first) {
    begin(args, row, target.label,
          row_gradient(args, row, target, saved, upstream_gradient(args, row)), first);
  }
  // Member by member: to copy what narrow stores have just put together is to wait for it.
  SOFTREG_INLINE void begin(const BackwardArgs<T, A>& args, int64_t row, int64_t label_of_row,
                            RowGradient<A> gradient, int64_t first) {
    weights.begin(args, row, first);
    softmax_scale = Vec<A>(gradient.softmax_scale);
    weight_scale = Vec<A>(gradient.weight_scale);
    at_label = Vec<A>(gradient.target_offset);
    upstream = Vec<A>(gradient.upstream);
    label = static_cast<uint64_t>(label_of_row - first);
    weighted = args.coefficients_vary();
  }

  // Of the columns from c on, whose exp(x - max) are given, as if none were the label's.
  // kMayBeWeighted: else none are.
  template <bool kMayBeWeighted = true, typename Lanes>
  SOFTREG_INLINE Vec<A> of_others(int64_t c, Lanes lanes, Vec<A> exp) const {
    return logit_gradient(exp, softmax_scale, offset<kMayBeWeighted>(c, lanes), upstream);
  }

  SOFTREG_INLINE Vec<A> of_label(Vec<A> exp) const {
    return logit_gradient(exp, softmax_scale, at_label, upstream);
  }

  // Of the columns from c on, where the label's may be one of them.
  template <typename Lanes>
  SOFTREG_INLINE Vec<A> operator()(int64_t c, Lanes lanes, Vec<A> exp) const {
    Vec<A> offsets = offset(c, lanes);
    const uint64_t lane = label - static_cast<uint64_t>(c);
    if (__builtin_expect(lane < static_cast<uint64_t>(Vec<A>::size()), false)) {
      offsets = where_equal(lane_numbers<A>(), Vec<A>(static_cast<A>(lane)), at_label, offsets);
    }
    return logit_gradient(exp, softmax_scale, offsets, upstream);
  }

 private:
  template <bool kMayBeWeighted = true, typename Lanes>
  SOFTREG_INLINE Vec<A> offset(int64_t c, Lanes lanes) const {
    return kMayBeWeighted && weighted ? weight_scale * weights(c, lanes) : weight_scale;
  }
};

// Where a row has none.
template <typename T, typename A>
SOFTREG_INLINE void store_no_gradients(const BackwardArgs<T, A>& args, int64_t row,
                                       Columns columns) {
  __builtin_memset(static_cast<void*>(args.grad.row(row) + columns.first), 0,
                   columns.count * sizeof(T));
}

// Stores a row's gradients: value(c, lanes, of), for the columns from c on, where of(exp) is what
// is made of their exp(x - max). In the walk the label's column costs a branch that nobody
// foresees, so it comes afterwards; but not where gradients are streamed, for to change one is to
// wait for it to come back. Not streamed, the first `done` are there already, but for the label's.
template <typename T, typename A, typename Value>
SOFTREG_INLINE void store_gradients(const RowGradients<T, A>& gradients, T* grad, int64_t n,
                                    bool streams, Value value, int64_t done = 0) {
  if (streams) {
    store_row<A>(grad, n, true, [&](int64_t c, auto lanes) {
      return value(c, lanes, [&](Vec<A> exp) { return gradients(c, lanes, exp); });
    });
    return;
  }
  const bool has_label = gradients.label < static_cast<uint64_t>(n);
  Vec<A> of_label;
  if (has_label) {  // before it is overwritten, if it lies there
    of_label =
        value(gradients.label, First{1}, [&](Vec<A> exp) { return gradients.of_label(exp); });
  }
  store_row<A>(grad + done, n - done, false, [&](int64_t i, auto lanes) {
    const int64_t c = done + i;
    return value(c, lanes, [&](Vec<A> exp) { return gradients.of_others(c, lanes, exp); });
  });
  if (has_label) {
    store_part(grad + gradients.label, 1, of_label);
  }
}

// The gradients of logits that are transformed to y: of(exp) are those of y.
template <typename A, typename Of>
SOFTREG_INLINE Vec<A> gradient_of_transformed(const TransformedLogit<Vec<A>>& y, Vec<A> max,
                                              Of of) {
  return of(vexp(y.value - max)) * y.slope;
}

// What the forward pass will leave of a row.
template <typename A>
SOFTREG_INLINE SavedRow<A> saved_row(const RowState<A>& state) {
  return {shift(state.exp.max), state.exp.sum, static_cast<A>(state.coefficient)};
}

// What is kept of a chunk of a row for its gradients.
template <typename A>
struct KeptChunk {
  Staged<A> values;  // logits, transformed; then exp(x - max), where that is kept
  Staged<A> slopes;  // of the transform, if there is one

  template <typename T>
  void fill(const LogitTransform<A>& transform, const T* x, int64_t n) {
    for_each_transformed(transform, x, n, [&](int64_t i, auto y) {
      store_lane_vec(values.values + i, y.value);
      store_lane_vec(slopes.values + i, y.slope);
    });
  }

  // of(value): the gradients of the values from c on.
  template <bool kTransformed, typename Lanes, typename Of>
  SOFTREG_INLINE Vec<A> gradient(int64_t c, Lanes lanes, Of of) const {
    const Vec<A> grad = of(load_lanes(lanes, values.values + c, A(0)));
    return kTransformed ? grad * load_lanes(lanes, slopes.values + c, A(0)) : grad;
  }
};

// Of a row whose logits are transformed; `tanhs` of its columns, where the forward pass kept them,
// or null. A function of its own, for else other rows would get fewer registers; what is done with
// a vector is inlined by force, for a call would take it through memory.
template <typename T, typename A>
__attribute__((noinline)) void backward_row_transformed(const BackwardArgs<T, A>& args, int64_t row,
                                                        RowTarget target, SavedRow<A> saved,
                                                        Columns columns, const A* tanhs) {
  const LogitTransform<A> transform = args.transform;  // a copy: see for_each_transformed
  const Vec<A> max(saved.max);
  const T* logits = args.logits.row(row) + columns.first;
  T* grad = args.grad.row(row) + columns.first;
  RowGradients<T, A> gradients;
  if (!transform.is_capped()) {
    gradients.begin(args, row, target, saved, columns.first);
    store_gradients(gradients, grad, columns.count, streams(args),
                    [&](int64_t c, auto lanes, auto of) __attribute__((always_inline)) {
                      fetch_ahead(logits + c);
                      const Vec<A> x = load_lanes(lanes, logits + c, A(0));
                      return gradient_of_transformed(scaled_logit(transform, x), max, of);
                    });
    return;
  }
  // a chunk at a time: a tanh in the same loop as the exponential would be one longer chain
  Staged<A> staged;
  for (int64_t first = 0; first < columns.count; first += kChunk) {
    const int64_t rest = columns.count - first, count = rest < kChunk ? rest : kChunk;
    const A* of_chunk =
        tanhs ? tanhs + first : staged.fill_with_tanhs(transform, logits + first, count);
    gradients.begin(args, row, target, saved, columns.first + first);
    store_gradients(gradients, grad + first, count, streams(args),
                    [&](int64_t c, auto lanes, auto of) __attribute__((always_inline)) {
                      const auto y = capped_logit(transform, load_lanes(lanes, of_chunk + c, A(0)));
                      return gradient_of_transformed(y, max, of);
                    });
  }
}

template <typename T, typename A>
SOFTREG_INLINE void backward_row(const BackwardArgs<T, A>& args, int64_t row, RowTarget target,
                                 SavedRow<A> saved, Columns columns, const A* tanhs = nullptr) {
  if (!is_read(args, target)) {
    store_no_gradients(args, row, columns);
    return;
  }
  if (!args.transform.is_identity) {
    backward_row_transformed(args, row, target, saved, columns, tanhs);
    return;
  }
  RowGradients<T, A> gradients;
  gradients.begin(args, row, target, saved, columns.first);
  const T* logits = args.logits.row(row) + columns.first;
  const Vec<A> max(saved.max);
  store_gradients(gradients, args.grad.row(row) + columns.first, columns.count, streams(args),
                  [&](int64_t c, auto lanes, auto of) __attribute__((always_inline)) {
                    fetch_ahead(logits + c);
                    return of(vexp(load_lanes(lanes, logits + c, A(0)) - max));
                  });
}

// Writes the gradients of a row, all but its end beside the arithmetic of another where a vector is
// a register of what lies in memory: half types need two, and gained nothing.
template <bool kTransformed, typename T, typename A>
class RowGradientWriter {
  static constexpr int64_t kWidth = Vec<A>::size();
  static constexpr bool kBeside = StorageVec<T>::size() == kWidth;

 public:
  SOFTREG_INLINE explicit RowGradientWriter(const BackwardArgs<T, A>& args)
      : args_(args), streams_(streams(args)) {}

  // `kept`: until all is written; `state`: of the row.
  SOFTREG_INLINE void begin(int64_t row, RowTarget target, const RowState<A>& state,
                            const KeptChunk<A>& kept) {
    grad_ = beside_ = nullptr;
    if (!is_read(args_, target)) {
      store_no_gradients(args_, row, all_columns(args_));
      return;
    }
    gradients_.begin(args_, row, target, saved_row(state), 0);
    kept_ = &kept;
    grad_ = args_.grad.row(row);
    beside_ = kBeside && !streams_ ? grad_ : nullptr;
  }

  // Those of a vector of classes from c on.
  template <bool kMayBeWeighted>
  SOFTREG_INLINE void write_beside(int64_t c) const {
    T* const to = beside_;
    if (kBeside && to) {
      fetch_ahead(to + c);
      store_vec(to + c, kept_->template gradient<kTransformed>(c, All(), [&](Vec<A> exp) {
        return gradients_.template of_others<kMayBeWeighted>(c, All(), exp);
      }));
    }
  }

  // What is left when each whole vector had its turn, or none had.
  SOFTREG_INLINE void write_rest(bool had_turns) const {
    if (grad_) {
      const int64_t n = args_.classes, done = beside_ && had_turns ? n - n % kWidth : 0;
      const auto value = [&](int64_t c, auto lanes, auto of) {
        return kept_->template gradient<kTransformed>(c, lanes, of);
      };
      store_gradients(gradients_, grad_, n, streams_, value, done);
    }
  }

 private:
  const BackwardArgs<T, A>& args_;
  RowGradients<T, A> gradients_;
  const KeptChunk<A>* kept_;
  T *grad_ = nullptr, *beside_ = nullptr;
  bool streams_;
};

}  // namespace
}  // namespace softreg
