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
      counting = weight = padded(Vec<A>(args.classes > 0 ? 1 : 0), count, A(0));
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

// Sums of as many values as there are lanes. Floats in double, which does not round them by
// anything that counts; what doubles round is kept.
template <typename A>
struct LaneSums {
  CompensatedSum of_lane[Vec<A>::size()];

  SOFTREG_INLINE void add(Vec<A> x) {
    A lanes[Vec<A>::size()];
    x.store(lanes);
    for (int64_t lane = 0; lane < Vec<A>::size(); ++lane) {
      of_lane[lane].add(lanes[lane]);
    }
  }

  SOFTREG_INLINE void add_to(CompensatedSum& total) const {
    for (const CompensatedSum& sum : of_lane) {
      total.add(sum);
    }
  }
};

template <>
struct LaneSums<float> {
  WideVec sums{0};

  SOFTREG_INLINE void add(Vec<float> x) { sums = sums + WideVec(x); }

  SOFTREG_INLINE void add_to(CompensatedSum& total) const {
    for (const Vec<double>& half : {sums.low, sums.high}) {
      double lanes[Vec<double>::size()];
      half.store(lanes);
      for (const double lane : lanes) {
        total.add(lane);
      }
    }
  }
};

// Over the rows of a block.
template <typename A>
struct LaneTotals {
  LaneSums<A> loss, weight;
};

}  // namespace
}  // namespace softreg
