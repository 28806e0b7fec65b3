#include "cuda/cross_entropy_forward.cuh"

namespace softreg {

#define SOFTREG_FORWARD(T)                                                            \
  template int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>&, int64_t); \
  template cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>&,          \
                                      const ForwardResult<T>&, void*, int64_t, cudaStream_t);

SOFTREG_FORWARD(float)
SOFTREG_FORWARD(double)
SOFTREG_FORWARD(c10::BFloat16)
SOFTREG_FORWARD(c10::Half)

}  // namespace softreg
