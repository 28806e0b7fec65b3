// Folding many vectors, or the lanes of one, into a value. Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec_exp.h"
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

struct SumOfStates {
  template <typename V>
  SOFTREG_INLINE RowState<V, V> operator()(RowState<V, V> a, RowState<V, V> b) const {
    return sum_of(a, b, true);
  }
};

// Adds a logit with a coefficient, all but its exponential.
template <typename V>
SOFTREG_INLINE void add_weighted(RowState<V, V>& state, V coefficient, V shifted) {
  state.coefficient = state.coefficient + coefficient;
  state.logit = mul_add(coefficient, shifted, state.logit);
}

// Folds values[0, n) by pairs, of pairs, and so on.
template <int64_t n, typename V, typename Combine>
SOFTREG_INLINE V fold_pairs(const V* values, Combine combine) {
  if constexpr (n == 1) {
    return values[0];
  } else {
    return combine(fold_pairs<n / 2>(values, combine), fold_pairs<n / 2>(values + n / 2, combine));
  }
}

// Folds item(0), ..., item(n - 1) with `step`, starting from `init`, of which `combine` makes
// nothing. Several accumulators hide the latency of `step`; in blocks of kInBlock, for a sum of
// blocks of sums rounds less than one long sum.
template <int64_t kInBlock, int64_t kAccumulators = 4, typename V, typename Item, typename Step,
          typename Combine>
SOFTREG_INLINE V fold_vectors(int64_t n, V init, Item item, Step step, Combine combine) {
  V total = init;
  for (int64_t begin = 0; begin < n; begin += kInBlock) {
    const int64_t end = n - begin < kInBlock ? n : begin + kInBlock;
    V acc[kAccumulators];
    for (V& folded : acc) {
      folded = init;
    }
    int64_t i = begin;
    for (; i + kAccumulators <= end; i += kAccumulators) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kAccumulators; ++k) {
        acc[k] = step(acc[k], item(i + k));
      }
    }
    for (; i < end; ++i) {
      acc[0] = step(acc[0], item(i));
    }
    total = combine(total, fold_pairs<kAccumulators>(acc, combine));
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
