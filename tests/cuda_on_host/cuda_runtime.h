// In front of CUDA's own header on the include path, this one lets the host's compiler build the
// kernels of csrc/cuda as they are: for tests where there is no GPU. A block's threads are fibers
// on one thread of the host (fibers.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time.
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the CUDA thread that runs.
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// 16 bytes of anything.
struct [[gnu::may_alias]] alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace cuda_on_host {

constexpr int kWarp = 32;

void run_kernel(dim3 blocks, dim3 threads, size_t shared_bytes, void (*body)(void*),
                void* arguments);

// What the launch asked for, full of NaN when a block begins.
uint4* block_memory();

// Waits for the block; for the warp.
void wait_for_block();
void wait_for_warp();
// 16 bytes of a lane of this warp, for the others to see.
struct alignas(16) Slot {
  unsigned char bytes[16];
};
Slot& slot_of_lane(int lane);

// Of this thread, in groups of which all but the last `but` are made.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};
void copy_later(Copy copy);
void end_group_of_copies();
void wait_for_copies(size_t but);

template <typename X>
X shuffle_xor(unsigned mask, X x, int bit) {
  static_assert(sizeof(X) <= sizeof(Slot));
  if (mask != 0xffffffffu) {
    std::abort();
  }
  const int lane = threadIdx.x % kWarp;
  __builtin_memcpy(slot_of_lane(lane).bytes, &x, sizeof(X));
  wait_for_warp();
  __builtin_memcpy(&x, slot_of_lane(lane ^ bit).bytes, sizeof(X));
  wait_for_warp();
  return x;
}

}  // namespace cuda_on_host

#define __syncthreads cuda_on_host::wait_for_block
#define __shfl_xor_sync cuda_on_host::shuffle_xor

inline void __stwb(uint4* to, uint4 words) { *to = words; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Given&&... given) {
  auto call = [&] { kernel(Parameters(given)...); };
  cuda_on_host::run_kernel(
      config->gridDim, config->blockDim, config->dynamicSmemBytes,
      [](void* f) { (*static_cast<decltype(call)*>(f))(); }, &call);
  return cudaSuccess;
}

inline cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrL2CacheSize
};

// Little, so that small inputs go every way: a block a row, several, columns split; rows that are
// kept, rows that are not.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : 100 << 10;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
