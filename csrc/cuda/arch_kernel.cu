#include "cuda/arch_kernel.h"

namespace softreg {
namespace {

__global__ void arch_kernel(int64_t* arch) {
#ifdef __CUDA_ARCH__
  *arch = __CUDA_ARCH__ / 10;
#endif
}

}  // namespace

void launch_arch_kernel(int64_t* arch, cudaStream_t stream) {
  arch_kernel<<<1, 1, 0, stream>>>(arch);
}

}  // namespace softreg
