// Folding many vectors, or the lanes of one, into a value. Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec.h"
// after the vectors, whose overloads the formulas call
#include "core/row_state.h"

namespace softreg {
namespace {

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

// Each lane of its own row, or of its own classes of one row.
template <typename A>
using LaneRowState = RowState<Vec<A>, Vec<A>>;

struct SumOfStates {
  template <typename A>
  SOFTREG_INLINE LaneRowState<A> operator()(LaneRowState<A> a, LaneRowState<A> b) const {
    return sum_of(a, b, true);
  }
};

// Adds a logit with a coefficient, all but its exponential.
template <typename A>
SOFTREG_INLINE void add_weighted(LaneRowState<A>& state, Vec<A> coefficient, Vec<A> shifted) {
  state.coefficient = state.coefficient + coefficient;
  state.logit = at::vec::fmadd(coefficient, shifted, state.logit);
}

// Folds item(0), ..., item(n - 1) with `step`, starting from `init`, of which `combine` makes
// nothing. Four accumulators hide the latency of `step`; in blocks of kInBlock, for a sum of blocks
// of sums rounds less than one long sum.
template <int64_t kInBlock, typename V, typename Item, typename Step, typename Combine>
SOFTREG_INLINE V fold_vectors(int64_t n, V init, Item item, Step step, Combine combine) {
  V total = init;
  for (int64_t begin = 0; begin < n; begin += kInBlock) {
    const int64_t end = n - begin < kInBlock ? n : begin + kInBlock;
    V acc[4] = {init, init, init, init};
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < 4; ++k) {
        acc[k] = step(acc[k], item(i + k));
      }
    }
    for (; i < end; ++i) {
      acc[0] = step(acc[0], item(i));
    }
    total = combine(total, combine(combine(acc[0], acc[1]), combine(acc[2], acc[3])));
  }
  return total;
}

// Folds lanes[0, 2 kHalf) into lanes[0], half by half.
template <int64_t kHalf, typename A, typename Combine>
SOFTREG_INLINE void fold_halves(A* lanes, Combine combine) {
  if constexpr (kHalf > 0) {
    for (int64_t lane = 0; lane < kHalf; ++lane) {
      lanes[lane] = combine(lanes[lane], lanes[lane + kHalf]);
    }
    fold_halves<kHalf / 2>(lanes, combine);
  }
}

template <typename A, typename Combine>
SOFTREG_INLINE A fold_lanes(Vec<A> x, Combine combine) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return at::vec::vec_reduce_all<A>([&](Vec<A>& a, Vec<A>& b) { return combine(a, b); }, x);
  }
#endif
  // In halves too, where at::vec has no shuffles: lane after lane, a sum would round more.
  A lanes[Vec<A>::size()];
  x.store(lanes);
  fold_halves<Vec<A>::size() / 2>(lanes, combine);
  return lanes[0];
}

}  // namespace
}  // namespace softreg
