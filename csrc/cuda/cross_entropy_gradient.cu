#include "cuda/cross_entropy_gradient.cuh"

namespace softreg {

#define SOFTREG_GRADIENTS(T)                                                                  \
  template cudaError_t launch_backward(const BackwardArgs<T, Accumulator<T>>&, cudaStream_t); \
  template cudaError_t launch_grad_target(const BackwardArgs<T, Accumulator<T>>&, cudaStream_t);

SOFTREG_GRADIENTS(float)
SOFTREG_GRADIENTS(double)
SOFTREG_GRADIENTS(c10::BFloat16)
SOFTREG_GRADIENTS(c10::Half)

}  // namespace softreg
