// Threads that share a row, and what they do together. Included by the kernels alone.
#pragma once

#include "core/compensated_sum.h"
#include "core/row_state.h"
#include "cuda/device.cuh"

namespace softreg {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / kWarp;

// A power of two of adjacent threads: a part of a warp, or all of the block.
struct Team {
  int size;
  int log2_size = 0;

  __device__ explicit Team(int size) : size(size) {
    while (1 << log2_size < size) {
      ++log2_size;
    }
  }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) & (size - 1); }
  __device__ int index() const { return static_cast<int>(threadIdx.x) >> log2_size; }
  __device__ int per_block() const { return static_cast<int>(blockDim.x) >> log2_size; }
};

__device__ __forceinline__ CompensatedSum shuffle_xor(CompensatedSum x, int bit) {
  return {shuffle_xor(x.sum, bit), shuffle_xor(x.carry, bit)};
}

// Of `width` adjacent lanes, in each of them. Every lane of the warp takes part.
template <typename X, typename Combine>
__device__ __forceinline__ X fold_lanes(X x, int width, Combine combine) {
  for (int bit = width / 2; bit > 0; bit /= 2) {
    x = combine(x, shuffle_xor(x, bit));
  }
  return x;
}

struct Sum {
  template <typename X>
  __device__ X operator()(X a, X b) const {
    return a + b;
  }
  __device__ CompensatedSum operator()(CompensatedSum a, CompensatedSum b) const {
    a.add(b);
    return a;
  }
};

// The maximum first: one exponential a lane then, not one a step.
template <typename A>
__device__ __forceinline__ RowState<A> merge_lanes(RowState<A> state, int width, bool weighted) {
  const A max = fold_lanes(state.exp.max, width, [](A a, A b) { return vmax(a, b); });
  state = relative_to(state, max, weighted);
  state.exp.sum = fold_lanes(state.exp.sum, width, Sum());
  if (weighted) {
    state.coefficient = fold_lanes(state.coefficient, width, Sum());
    state.logit = fold_lanes(state.logit, width, Sum());
  }
  return state;
}

// The state of a team's row, in each of its threads. Of two merges in a row by the same block each
// uses the other half of `shared`: one barrier is enough then.
template <typename A>
struct TeamMerge {
  RowState<A> (*shared)[kMostWarps];
  int half = 0;

  __device__ RowState<A> operator()(RowState<A> state, Team team, bool weighted) {
    if (team.size <= kWarp) {
      return merge_lanes(state, team.size, weighted);
    }
    state = merge_lanes(state, kWarp, weighted);
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) {
      shared[half][threadIdx.x / kWarp] = state;
    }
    __syncthreads();
    const int warps = team.size / kWarp;
    state = shared[half][lane % warps];
    half ^= 1;
    return merge_lanes(state, warps, weighted);
  }
};

}  // namespace
}  // namespace softreg
