// The launcher behind kernel_arch.cpp, declared apart: sources for nvcc include no ATen header,
// which it would parse once for each architecture.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace softreg {

// Writes the architecture whose code the GPU runs, 90 for sm_90, to device memory.
void launch_arch_kernel(int64_t* arch, cudaStream_t stream);

}  // namespace softreg
