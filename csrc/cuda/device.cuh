// What the kernels ask of a GPU beyond C++, all of it in one place. Included by the kernels alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include "core/value.h"
#include "cuda/launch_plan.h"
#include "kernel_args.h"

namespace softreg {
namespace {

// What sm_80 brought: copies into shared memory without a register, conversions of pairs.
#if !defined(__CUDA_ARCH__)
constexpr bool kCopiesAreAsynchronous = true, kConvertsPairs = false;
#elif __CUDA_ARCH__ >= 800
constexpr bool kCopiesAreAsynchronous = true, kConvertsPairs = true;
#else
constexpr bool kCopiesAreAsynchronous = false, kConvertsPairs = false;
#endif

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

// One instruction: left to itself the compiler may move a pack item by item.
template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const Pack<T>* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  Pack<T> pack;
  static_assert(sizeof(words) == sizeof(pack));
  __builtin_memcpy(&pack, &words, sizeof(pack));
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(Pack<T>* to, const Pack<T>& pack) {
  uint4 words;
  __builtin_memcpy(&words, &pack, sizeof(words));
  __stwb(reinterpret_cast<uint4*>(to), words);
}

// A pack's items as accumulators.
template <typename T>
struct WidePack {
  static constexpr int kItems = Pack<T>::kItems;
  Accumulator<T> items[kItems];

  WidePack() = default;
  __device__ __forceinline__ explicit WidePack(const Pack<T>& pack) {
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      // One instruction an item, where the compiler would first take it out of its word.
      uint32_t words[kItems / 2];
      __builtin_memcpy(words, &pack, sizeof(words));
#pragma unroll
      for (int i = 0; i < kItems / 2; ++i) {
        const uint32_t low = words[i] << 16, high = words[i] & 0xffff0000u;
        __builtin_memcpy(&items[2 * i], &low, sizeof(low));
        __builtin_memcpy(&items[2 * i + 1], &high, sizeof(high));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        items[i] = static_cast<Accumulator<T>>(pack.items[i]);
      }
    }
  }

  // Pairwise: as exact, and as short a chain, as a sum of so many gets.
  __device__ __forceinline__ Accumulator<T> sum() const {
    WidePack sums = *this;
#pragma unroll
    for (int step = kItems / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < step; ++i) {
        sums.items[i] += sums.items[i + step];
      }
    }
    return sums.items[0];
  }

  __device__ __forceinline__ Pack<T> narrow() const {
    Pack<T> pack;
    if constexpr (kConvertsPairs && sizeof(T) == 2) {
      uint32_t words[kItems / 2];
#pragma unroll
      for (int i = 0; i < kItems / 2; ++i) {
        words[i] = narrow_pair(items[2 * i], items[2 * i + 1]);
      }
      __builtin_memcpy(&pack, words, sizeof(pack));
    } else {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        pack.items[i] = static_cast<T>(items[i]);
      }
    }
    return pack;
  }

 private:
  // Two items of a half type, in one instruction.
  __device__ __forceinline__ static uint32_t narrow_pair(float low, float high) {
    uint32_t word;
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    }
    return word;
  }
};

// Lets the compiler take the pack for another: it would keep the widened items of one that is used
// twice, in twice the registers.
template <typename T>
__device__ __forceinline__ void forget(Pack<T>& pack) {
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 2) {
    uint4 words;
    __builtin_memcpy(&words, &pack, sizeof(words));
    asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    __builtin_memcpy(&pack, &words, sizeof(words));
  }
#endif
}

// exp of logits of type T, less their maximum: beside the rounding of a half type's logits the
// 2^-21 of the hardware's exponential is nothing, and nor is what it makes of subnormal numbers, 0.
template <typename T>
__device__ __forceinline__ Accumulator<T> exp_beside_logits(Accumulator<T> x) {
  if constexpr (sizeof(T) == 2) {
#ifdef __CUDA_ARCH__
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x * 0x1.715476p0f));
    return x;
#endif
  }
  return vexp(x);
}

// The block's memory that the launch asks for.
template <typename X>
__device__ __forceinline__ X* block_memory() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
#else
  uint4* const memory = cuda_on_host::block_memory();
#endif
  return reinterpret_cast<X*>(memory);
}

// Into the block's memory, without a register and without waiting, from sm_80 on.
template <typename T>
__device__ __forceinline__ void copy_pack(Pack<T>* to, const T* from) {
  __pipeline_memcpy_async(to, from, sizeof(*to));
}

template <typename X>
__device__ __forceinline__ void copy_item(X* to, const X* from) {
  __pipeline_memcpy_async(to, from, sizeof(*to));
}

__device__ __forceinline__ void end_of_copies() { __pipeline_commit(); }

// For all of this thread's copies up to an end_of_copies() that `but` others, or more, have
// followed.
__device__ __forceinline__ void wait_for_copies(int but) {
  if (but >= 3) {
    __pipeline_wait_prior(3);
  } else if (but == 2) {
    __pipeline_wait_prior(2);
  } else if (but == 1) {
    __pipeline_wait_prior(1);
  } else {
    __pipeline_wait_prior(0);
  }
}

// Launches kernels one after the other, none after one that failed. By the function, not by <<<>>>,
// which is no C++.
struct Launches {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <typename... Parameters, typename... Given>
  void add(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes,
           Given&&... given) {
    constexpr int64_t kUnasked = 40 << 10;  // of 48, besides what the kernel declares
    if (error == cudaSuccess && shared_bytes > kUnasked) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes));
    }
    if (error != cudaSuccess) {
      return;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, given...);
  }
};

}  // namespace
}  // namespace softreg
