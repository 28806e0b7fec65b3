// As many rows as the vector of rows has lanes, taken up together with vectors along each: for rows
// of so few vectors that their beginnings and ends, one by one, would cost as much as the rest.
// Included by the kernels alone.
#pragma once

#include "cpu/kernels_lanes.h"
#include "cpu/kernels_row_gradients.h"

namespace softreg {
namespace {

// The most classes of such rows: of more, nothing is gained. Half types gain for longer, for they
// are widened once, not twice. None where at::vec has no shuffles.
template <typename T>
constexpr int64_t kMostTogether =
#if defined(CPU_CAPABILITY_AVX512)
    sizeof(T) == 2 ? 512 : 896 / sizeof(T);
#elif defined(CPU_CAPABILITY_AVX2)
    sizeof(T) == 2 ? 512 : 640 / sizeof(T);
#else
    0;
#endif

// A Vec for each of V's rows; in memory, where nobody fills it with zeros first.
template <typename V>
class RowVectors {
  using A = typename V::value_type;
  static constexpr int64_t kWidth = PartOf<V>::size();

 public:
  SOFTREG_INLINE void set(int64_t r, Vec<A> x) { x.store(values_ + r * kWidth); }

  // Each of them folded, in the lane of its row.
  template <typename Combine>
  SOFTREG_INLINE V folded(Combine combine) const {
    return lanes_of<V>([&](int64_t k) { return folded<kWidth>(k * kWidth, combine); });
  }

 private:
  template <int64_t kCount, typename Combine>
  SOFTREG_INLINE Vec<A> folded(int64_t first, Combine combine) const {
    if constexpr (kCount == 1) {
      return load_vec(values_ + first * kWidth);
    } else {
      const auto [even, odd] = at::vec::deinterleave2(
          folded<kCount / 2>(first, combine), folded<kCount / 2>(first + kCount / 2, combine));
      return combine(even, odd);
    }
  }

  alignas(64) A values_[V::size() * kWidth];
};

// Which rows of a vector of them: a bit for each.
using RowBits = uint64_t;

SOFTREG_INLINE bool has_row(RowBits rows, int64_t r) { return rows >> r & 1; }

template <typename V>
SOFTREG_INLINE RowBits rows_to_read(const LaneTargets<V>& targets, int64_t count, bool all) {
  return all ? ~RowBits(0) >> (64 - count) : targets.counting_lanes();
}

// What is done with the exponentials beside their sums. of_row(row).keep(c, x, exp): those of the
// classes from c on, whose logits are at x. Here nothing.
struct ForgetExps {
  static constexpr bool kKeeps = false;

  SOFTREG_INLINE ForgetExps of_row(int64_t) const { return {}; }

  template <typename A>
  SOFTREG_INLINE void keep(int64_t, A*, Vec<A>) const {}
};

// They take the logits' place, and where their gradients will go is called. Not if those go past
// the caches: the logits that were read are as good as nothing.
template <typename T>
struct KeepExps {
  static constexpr bool kKeeps = true;
  RowMatrix<const T> called;

  template <typename A>
  SOFTREG_INLINE explicit KeepExps(const BackwardArgs<T, A>& args) : called(args.logits) {
    if (!streams(args)) {
      called.data = args.grad.data;
      called.outer_stride = args.grad.outer_stride;
    }
  }

  struct OfRow {
    const T* called;

    template <typename A>
    SOFTREG_INLINE void keep(int64_t c, A* x, Vec<A> exp) const {
      fetch(called + c);
      exp.store(x);
    }
  };
  SOFTREG_INLINE OfRow of_row(int64_t row) const { return {called.row(row)}; }
};

// The logits of V's rows, transformed; then, if they are kept, their exponentials. Memory is asked
// for the next rows' logits beside the arithmetic of these.
// kKeeps: for gradients, the slopes of the transform too.
template <bool kKeeps, typename T, typename V>
class RowsTogether {
  using A = typename V::value_type;
  static constexpr int64_t kRows = V::size(), kWidth = Vec<A>::size();

 public:
  SOFTREG_INLINE explicit RowsTogether(const CrossEntropyRows<T, A>& args)
      : args_(args), stride_((args.classes + kWidth - 1) / kWidth * kWidth) {}

  // Past the classes numbers are -inf, then 0, up to the end of a vector.
  SOFTREG_INLINE const A* row(int64_t r) const { return values_ + r * stride_; }
  // Of the transform, if there is one.
  SOFTREG_INLINE const A* slopes(int64_t r) const { return slopes_ + r * stride_; }

  // Of the rows from `first` on those of `rows`, whose maxima it returns.
  SOFTREG_INLINE V read(int64_t first, RowBits rows) {
    first_ = first;
    rows_ = rows;
    return args_.transform.is_identity ? read_transformed<true>() : read_transformed<false>();
  }

  // Of rows that were read; of others, and those without a label, any number.
  SOFTREG_INLINE V label_logits(const LaneTargets<V>& targets) const {
    int64_t labels[kRows];
    A logits[kRows];
    targets.store_labels(labels);
    for (int64_t r = 0; r < kRows; ++r) {
      logits[r] = has_row(rows_, r) ? row(r)[labels[r] < 0 ? 0 : labels[r]] : A(0);
    }
    return load_lane_vec<V>(logits);
  }

  // Sums relative to `common`, weighted ones too if `weighted`.
  template <typename Exps>
  SOFTREG_INLINE RowState<V, V> sums(const V& common, bool weighted, const Exps& exps) {
    return weighted ? sums_with_weights(common, exps)
                    : RowState<V, V>{{common, sums_of_exp(common, exps)}, V(0), V(0)};
  }

 private:
  // step(folded, c, lanes) of the classes from c on, for the first n of a row's. Two at a time, and
  // no blocks: of a few vectors, what fold_vectors does would take as long as they do.
  template <typename S, typename Step, typename Combine>
  SOFTREG_INLINE S fold(int64_t n, S init, Step step, Combine combine) const {
    S some = init, others = init;
    int64_t c = 0;
    for (; c + 2 * kWidth <= n; c += 2 * kWidth) {
      some = step(some, c, All());
      others = step(others, c + kWidth, All());
    }
    if (c + kWidth <= n) {
      some = step(some, c, All());
      c += kWidth;
    }
    if (c < n) {
      others = step(others, c, First{n - c});
    }
    return combine(some, others);
  }

  // What follows are functions of their own, for else the rest would take their registers.
  template <bool kIsIdentity>
  __attribute__((noinline)) V read_transformed() {
    const A nothing = -static_cast<A>(INFINITY);
    const RowBits rows = rows_;
    const int64_t classes = args_.classes, row_stride = args_.logits.outer_stride, stride = stride_;
    const T* logits = args_.logits.row(first_);
    A* to = values_;
    RowVectors<V> max;
    for (int64_t r = 0; r < kRows; ++r, logits += row_stride, to += stride) {
      Vec<A> of_row(nothing);
      if (has_row(rows, r)) {
        const auto take_from = [&](const auto* from) {
          const auto take = [&](Vec<A> before, int64_t c, auto lanes) {
            const Vec<A> x = load_lanes(lanes, from + c, nothing);
            x.store(to + c);
            return vmax(before, x);
          };
          return fold(classes, of_row, take, Max());
        };
        if constexpr (kIsIdentity) {
          of_row = take_from(logits);
        } else {
          for_each_transformed(args_.transform, logits, classes, [&](int64_t c, auto y) {
            store_lane_vec(to + c, y.value);
            if constexpr (kKeeps) {
              store_lane_vec(slopes_ + r * stride + c, y.slope);
            }
          });
          of_row = take_from(to);  // which puts -inf past the classes
        }
      }
      max.set(r, of_row);
    }
    return max.folded(Max());
  }

  template <typename Exps>
  __attribute__((noinline)) V sums_of_exp(const V& common, const Exps& exps) {
    A commons[kRows];
    store_lane_vec(commons, common);
    const RowBits rows = rows_;
    const int64_t row_stride = args_.logits.outer_stride, stride = stride_;
    const T* next = args_.logits.row(first_ + kRows);
    A* x = values_;
    RowVectors<V> sums;
    for (int64_t r = 0; r < kRows; ++r, x += stride, next += row_stride) {
      Vec<A> of_row(0);
      if (has_row(rows, r)) {
        const Vec<A> common_of_row(commons[r]);
        const auto kept = exps.of_row(first_ + r);
        const auto add = [&](Vec<A> sum, int64_t c, auto) {
          fetch(next + c);
          Vec<A> exp;
          sum = add_exp(sum, load_vec(x + c) - common_of_row, exp);
          kept.keep(c, x + c, exp);
          return sum;
        };
        of_row = fold(stride, of_row, add, Sum());
      }
      sums.set(r, of_row);
    }
    return sums.folded(Sum());
  }

  template <typename Exps>
  __attribute__((noinline)) RowState<V, V> sums_with_weights(const V& common, const Exps& exps) {
    A commons[kRows];
    store_lane_vec(commons, common);
    const RowBits rows = rows_;
    const int64_t row_stride = args_.logits.outer_stride, stride = stride_;
    const int64_t classes = args_.classes;
    const T* next = args_.logits.row(first_ + kRows);
    A* x = values_;
    RowVectors<V> exp_sum, coefficient, logit;
    for (int64_t r = 0; r < kRows; ++r, x += stride, next += row_stride) {
      LaneRowState<A> of_row = LaneRowState<A>::empty();
      if (has_row(rows, r)) {
        const Vec<A> common_of_row(commons[r]);
        const RowWeights<T, A> weights(args_, first_ + r, 0);
        const auto kept = exps.of_row(first_ + r);
        const auto add = [&](LaneRowState<A> state, int64_t c, auto lanes) {
          fetch(next + c);
          const Vec<A> shifted = load_vec(x + c) - common_of_row;
          Vec<A> exp;
          state.exp.sum = add_exp(state.exp.sum, shifted, exp);
          kept.keep(c, x + c, exp);
          add_weighted(state, weights(c, lanes), in_lanes(lanes, shifted));
          return state;
        };
        of_row = fold(classes, of_row, add, SumOfStates());
      }
      exp_sum.set(r, of_row.exp.sum);
      coefficient.set(r, of_row.coefficient);
      logit.set(r, of_row.logit);
    }
    return {{common, exp_sum.folded(Sum())}, coefficient.folded(Sum()), logit.folded(Sum())};
  }

  const CrossEntropyRows<T, A>& args_;
  const int64_t stride_;
  int64_t first_ = 0;
  RowBits rows_ = 0;
  // a vector may begin at any class
  alignas(64) A values_[kRows * kMostTogether<T> + kWidth];
  alignas(64) A slopes_[kKeeps ? kRows * kMostTogether<T> + kWidth : 1];
};

}  // namespace
}  // namespace softreg
