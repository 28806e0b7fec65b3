// CUDA: tensors to pointers, the dtype switch, the stream.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "args.h"
#include "checks.h"
#include "cuda/cross_entropy_kernel.h"
#include "kernel_inputs.h"

namespace softreg {
namespace {

int64_t multiprocessors(c10::DeviceIndex device) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

at::Tensor weight_sum_cuda(const at::Tensor& weight) {
  return weight.sum(at::kDouble).to(weight.scalar_type());
}

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  const KernelInputs<T> inputs(args, weight_sum_cuda);
  const ForwardArgs<T, Accumulator<T>> kernel_args = forward_args(args, inputs, outputs);
  const bool per_row = args.reduction == Reduction::kNone;
  const ForwardResult<T> result{per_row ? nullptr : outputs.loss.mutable_data_ptr<T>(),
                                args.reduction == Reduction::kMean,
                                outputs.total_weight.mutable_data_ptr<double>()};
  const int64_t processors = multiprocessors(args.logits.device().index());
  const at::Tensor workspace = at::empty({forward_workspace(kernel_args, processors)},
                                         args.logits.options().dtype(at::kByte));
  C10_CUDA_CHECK(launch_forward(kernel_args, result, workspace.mutable_data_ptr(), processors,
                                c10::cuda::getCurrentCUDAStream()));
}

template <typename T>
using GradientLauncher = cudaError_t(const BackwardArgs<T, Accumulator<T>>&, cudaStream_t);

// Fills `result`, which is shaped like the logits, by the kernel.
template <typename T>
void gradient_typed(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                    GradientLauncher<T>* launch, const at::Tensor& result) {
  if (result.numel() == 0) {
    return;
  }
  const GradientTensors<T> tensors(args, grad, result, weight_sum_cuda);
  C10_CUDA_CHECK(launch(tensors.kernel_args(), c10::cuda::getCurrentCUDAStream()));
  tensors.copy_to_result();
}

ForwardOutputs cross_entropy_forward_cuda(const CrossEntropyArgs& args) {
  check(args);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const ForwardOutputs outputs = empty_forward_outputs(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_forward_cuda",
                          [&] { forward_typed<scalar_t>(args, outputs); });
  return outputs;
}

at::Tensor cross_entropy_backward_cuda(const CrossEntropyArgs& args,
                                       const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const at::Tensor grad_logits = empty_grad_logits(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_cuda", [&] {
    gradient_typed<scalar_t>(args, grad, launch_backward<scalar_t>, grad_logits);
  });
  return grad_logits;
}

at::Tensor cross_entropy_grad_target_cuda(const CrossEntropyArgs& args,
                                          const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const at::Tensor grad_target = empty_grad_target(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_grad_target_cuda", [&] {
    gradient_typed<scalar_t>(args, grad, launch_grad_target<scalar_t>, grad_target);
  });
  return grad_target;
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CUDA, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cuda>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cuda>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_cuda>);
}

}  // namespace softreg
