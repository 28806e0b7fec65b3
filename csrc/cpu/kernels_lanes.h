// What is known of the rows in the lanes beside their logits: targets, and sums over them. Included
// by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_tile.h"

namespace softreg {
namespace {

// x in the lanes where `counting` is 1; not a product with 0, for an ignored row may hold NaN.
template <typename V>
SOFTREG_INLINE V of_counting(const V& counting, const V& x) {
  return where_equal(counting, V(1), x, V(0));
}

// The targets of a vector of rows. Lanes without a row do not count. In registers throughout: what
// narrow stores put together a wide load gets late, after every store before them.
template <typename V>
struct LaneTargets {
  using A = typename V::value_type;
  static constexpr int64_t kLanes = V::size(), kWidth = Vec<A>::size();
  static constexpr uint64_t kAllLanes = (uint64_t(1) << kLanes) - 1;
  LaneIndices<A> label[kLanes / kWidth];  // -1 where none counts
  LaneIndices<A> bad{0};                  // not 0 in lanes where a label was out of range, ever
  V number;                               // the label as a number, if small
  V counting;                             // 1 or 0
  V weight;                               // of the label's class, 0 where the row does not count

  template <typename T>
  SOFTREG_INLINE void read(const CrossEntropyRows<T, A>& args, int64_t row, int64_t count) {
    const LaneIndices<A> none(-1);
    if (args.has_probabilities()) {
      for (auto& part : label) {
        part = none;
      }
      number = V(-1);
      counting = weight = first_lanes_of<V>(args.classes > 0 ? 1 : 0, count);
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
    const LaneIndices<A> ignored(labels.ignore_index), classes(args.classes);
    for (auto& part : label) {
      const auto of = LaneIndices<A>::loadu(given);
      const auto keeps = of != ignored, counts = keeps & (of > none) & (of < classes);
      bad = bad | (keeps ^ counts);
      part = LaneIndices<A>::blendv(none, of, counts);
      given += kWidth;
    }
    number = counted_from(0);
    counting = weight = where_equal(number, V(-1), V(0), V(1));
    if (args.weight && args.classes > 0) {
      weight = of_counting(lanes_of<V>([&](int64_t part) {
        return gather(args.weight, maximum(label[part], LaneIndices<A>(0)));
      }));
    }
  }

  // A bit for each lane that counts.
  SOFTREG_INLINE uint64_t counting_lanes() const {
    uint64_t ignored = 0;
    for_each_part(counting, [&](int64_t k, Vec<A> part) {
      ignored |= static_cast<uint64_t>(part.zero_mask()) << k * kWidth;
    });
    return ignored ^ kAllLanes;
  }
  SOFTREG_INLINE bool all_count() const { return counting_lanes() == kAllLanes; }
  SOFTREG_INLINE bool none_counts() const { return counting_lanes() == 0; }

  SOFTREG_INLINE V of_counting(V x) const { return softreg::of_counting(counting, x); }

  // The labels as numbers counted from `first`, to compare a small class number with.
  SOFTREG_INLINE V labels_from(int64_t first) const {
    return first == 0 ? number : counted_from(first);
  }
  SOFTREG_INLINE V counted_from(int64_t first) const {
    return lanes_of<V>([&](int64_t part) -> Vec<A> {
      return at::vec::convert<A, 1, int64_t, LaneIndices<A>::size() / Vec<int64_t>::size()>(
          label[part] - LaneIndices<A>(first));
    });
  }

  SOFTREG_INLINE void store_labels(int64_t* to) const {
    for (const auto& part : label) {
      part.store(to);
      to += kWidth;
    }
  }

  // The first bad row of those that were read.
  template <typename T>
  int64_t bad_row(const CrossEntropyRows<T, A>& args, int64_t begin, int64_t end) const {
    int64_t lanes[kWidth], any = 0, first = kNoBadRow;
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

// Sums of rows in the lanes, of the same bits whether a vector of them is one Vec or two. Floats in
// double, which does not round them by anything that counts; what doubles round is kept.
template <typename A>
struct LaneSums {
  CompensatedSum of_lane[Vec<A>::size()];

  template <typename V>
  SOFTREG_INLINE void add(const V& x) {
    for_each_part(x, [&](int64_t, Vec<A> part) {
      A lanes[Vec<A>::size()];
      part.store(lanes);
      for (int64_t lane = 0; lane < Vec<A>::size(); ++lane) {
        of_lane[lane].add(lanes[lane]);
      }
    });
  }

  SOFTREG_INLINE void add_to(CompensatedSum& total) const {
    for (const CompensatedSum& sum : of_lane) {
      total.add(sum);
    }
  }
};

template <>
struct LaneSums<float> {
  Vec<double> sums{0};

  template <typename V>
  SOFTREG_INLINE void add(const V& x) {
    for_each_part(x, [&](int64_t, Vec<float> part) {
      const WideVec wide(part);
      sums = sums + (wide.low + wide.high);
    });
  }

  SOFTREG_INLINE void add_to(CompensatedSum& total) const { total.add(fold_lanes(sums, Sum())); }
};

// Over the rows of a block.
template <typename A>
struct LaneTotals {
  LaneSums<A> loss, weight;

  SOFTREG_INLINE ForwardTotals folded(int64_t bad_row) const {
    ForwardTotals totals;
    loss.add_to(totals.loss);
    weight.add_to(totals.weight);
    totals.bad_row = bad_row;
    return totals;
  }
};

}  // namespace
}  // namespace softreg
