// What is known of the rows in the lanes: their targets, the state of their logits, and sums over
// them. Included by the kernels alone.
#pragma once

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

}  // namespace
}  // namespace softreg
