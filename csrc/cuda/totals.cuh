// Sums over all rows, block by block. Included by the kernels alone.
#pragma once

#include "cuda/cross_entropy_kernel.h"
#include "cuda/team.cuh"

namespace softreg {
namespace {

// Sums over rows: of the losses, and of what the mean divides by.
struct Totals {
  CompensatedSum loss, weight;

  __device__ void add(const Totals& other) {
    loss.add(other.loss);
    weight.add(other.weight);
  }
};

// Over the block's threads, in thread 0.
__device__ inline Totals sum_over_block(Totals totals) {
  __shared__ Totals of_warps[kMostWarps];
  const auto over_lanes = [](const Totals& x) {
    return Totals{fold_lanes(x.loss, kWarp, Sum()), fold_lanes(x.weight, kWarp, Sum())};
  };
  totals = over_lanes(totals);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) {
    of_warps[warp] = totals;
  }
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  return over_lanes(lane < warps ? of_warps[lane] : Totals());
}

// Ends a block: the result where it is the only one, else what the next launch adds up.
template <typename T>
__device__ __forceinline__ void finish_block(const ForwardResult<T>& result, Totals* of_blocks,
                                             const Totals& of_thread) {
  const Totals totals = sum_over_block(of_thread);
  if (threadIdx.x != 0) {
    return;
  }
  if (gridDim.x > 1) {
    of_blocks[blockIdx.x] = totals;
    return;
  }
  if (!result.has_total_weight) {
    *result.total_weight = totals.weight.total();
  }
  if (result.loss) {
    const double loss = totals.loss.total();
    *result.loss = static_cast<T>(result.is_mean ? loss / *result.total_weight : loss);
  }
}

// One block: the totals of the blocks before it.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    add_totals_kernel(const __grid_constant__ ForwardResult<T> result, const Totals* totals,
                      int count) {
  Totals of_thread;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    of_thread.add(totals[i]);
  }
  finish_block(result, nullptr, of_thread);
}

// After a launch that has left totals behind if it had several blocks.
template <typename T>
void add_totals(Launches& launches, const ForwardResult<T>& result, const Totals* of_blocks,
                int64_t blocks) {
  if (blocks > 1) {
    launches.add(add_totals_kernel<T>, dim3(1), kMostThreads, 0, result, of_blocks,
                 static_cast<int>(blocks));
  }
}

}  // namespace
}  // namespace softreg
