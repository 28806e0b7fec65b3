// What the kernels ask of a GPU beyond C++, all of it in one place. Included by the kernels alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include "core/value.h"
#include "kernel_args.h"

namespace softreg {
namespace {

constexpr int kWarp = 32;

// x of the lane whose number differs in the bit `bit`. Every lane of the warp takes part.
template <typename X>
__device__ __forceinline__ X shuffle_xor(X x, int bit) {
  return __shfl_xor_sync(0xffffffffu, x, bit);
}

// What one thread moves with one instruction.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kItems = 16 / sizeof(T);
  T items[kItems];
};

// One instruction: left to itself the compiler may store a pack item by item.
template <typename T>
__device__ __forceinline__ void store_pack(Pack<T>* to, const Pack<T>& pack) {
  uint4 words;
  static_assert(sizeof(words) == sizeof(pack));
  __builtin_memcpy(&words, &pack, sizeof(words));
  __stwb(reinterpret_cast<uint4*>(to), words);
}

// exp of logits of type T, less their maximum: beside the rounding of a half type's logits the
// 2^-21 of the hardware's exponential is nothing.
template <typename T>
__device__ __forceinline__ Accumulator<T> exp_beside_logits(Accumulator<T> x) {
  if constexpr (sizeof(T) == 2) {
    return __expf(x);
  } else {
    return vexp(x);
  }
}

// Launches kernels one after the other, none after one that failed. By the function, not by <<<>>>,
// which is no C++.
struct Launches {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <typename... Parameters, typename... Given>
  void add(void (*kernel)(Parameters...), dim3 blocks, int threads, Given&&... given) {
    if (error != cudaSuccess) {
      return;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, given...);
  }
};

}  // namespace
}  // namespace softreg
