// The CUDA back end, host code and kernels, in the place of the CPU's.
#include "../../csrc/cuda/cross_entropy.cpp"
// after the host code, with which they are compiled apart on a GPU
#include "../../csrc/cuda/cross_entropy_forward.cu"
#include "../../csrc/cuda/cross_entropy_forward_with_gradient.cu"
#include "../../csrc/cuda/cross_entropy_gradient.cu"

namespace softreg {

TORCH_LIBRARY_IMPL(softreg_ext, CPU, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cuda>);
  m.impl("cross_entropy_forward_with_gradient",
         forward_with_gradient_entry<cross_entropy_forward_with_gradient_cuda>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cuda>);
  m.impl("cross_entropy_backward_", &backward_entry<cross_entropy_backward_in_place_cuda>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_cuda>);
  m.impl("cross_entropy_correction", correction_entry<cross_entropy_correction_cuda>);
}

}  // namespace softreg
