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

GpuLimits limits_of(c10::DeviceIndex device) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrL2CacheSize)};
}

void check_classes(const CrossEntropyArgs& args) {
  const int64_t classes = args.logits.size(args.class_dim());
  TORCH_CHECK(classes <= kMostClasses, "cross_entropy: input has ", classes,
              " classes, but the kernels of a GPU take at most ", kMostClasses);
}

at::Tensor weight_sum_cuda(const at::Tensor& weight) {
  return weight.sum(at::kDouble).to(weight.scalar_type());
}

// What both forward passes launch with: launch(kernel_args, result, workspace, limits).
template <typename T, typename Launch>
void run_forward(const CrossEntropyArgs& args, const ForwardOutputs& outputs,
                 const Launch& launch) {
  check_classes(args);
  const KernelInputs<T> inputs(args, weight_sum_cuda);
  const ForwardArgs<T, Accumulator<T>> kernel_args = forward_args(args, inputs, outputs);
  const bool per_row = args.reduction == Reduction::kNone;
  const ForwardResult<T> result{per_row ? nullptr : outputs.loss.mutable_data_ptr<T>(),
                                args.reduction == Reduction::kMean,
                                outputs.total_weight.mutable_data_ptr<double>()};
  const GpuLimits limits = limits_of(args.logits.device().index());
  const at::Tensor workspace =
      at::empty({forward_workspace(kernel_args, limits)}, args.logits.options().dtype(at::kByte));
  C10_CUDA_CHECK(launch(kernel_args, result, workspace.mutable_data_ptr(), limits));
}

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  run_forward<T>(args, outputs, [](const auto&... launch_args) {
    return launch_forward(launch_args..., c10::cuda::getCurrentCUDAStream());
  });
}

template <typename T>
void forward_with_gradient_typed(const CrossEntropyArgs& args, double grad_loss,
                                 const ForwardWithGradientOutputs& outputs) {
  using A = Accumulator<T>;
  const WrittenGradient<T> written(outputs.grad_logits);
  run_forward<T>(args, outputs,
                 [&](const ForwardArgs<T, A>& kernel_args, const auto& result, void* workspace,
                     const GpuLimits& limits) {
                   BackwardArgs<T, A> gradient_args =
                       backward_args<T>(kernel_args, static_cast<A>(grad_loss), written.matrix());
                   gradient_args.total_weight = result.is_mean ? result.total_weight : nullptr;
                   return launch_forward_with_gradient(kernel_args, gradient_args, result,
                                                       workspace, limits,
                                                       c10::cuda::getCurrentCUDAStream());
                 });
  written.copy_to_result();
}

// Fills `result`, which is shaped like the logits: launch(kernel_args, limits, stream).
template <typename T, typename Launch>
void run_gradient(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                  const at::Tensor& result, const Launch& launch) {
  check_classes(args);
  if (result.numel() == 0) {
    return;
  }
  const GradientTensors<T> tensors(args, grad, result, weight_sum_cuda);
  C10_CUDA_CHECK(launch(tensors.kernel_args(), limits_of(args.logits.device().index()),
                        c10::cuda::getCurrentCUDAStream()));
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

ForwardWithGradientOutputs cross_entropy_forward_with_gradient_cuda(const CrossEntropyArgs& args,
                                                                    double grad_loss) {
  check(args);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const ForwardWithGradientOutputs outputs{empty_forward_outputs(args), empty_grad_logits(args)};
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_forward_with_gradient_cuda",
                          [&] { forward_with_gradient_typed<scalar_t>(args, grad_loss, outputs); });
  return outputs;
}

at::Tensor cross_entropy_backward_cuda(const CrossEntropyArgs& args,
                                       const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const at::Tensor grad_logits = empty_grad_logits(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_cuda", [&] {
    run_gradient<scalar_t>(args, grad, grad_logits, launch_backward<scalar_t>);
  });
  return grad_logits;
}

void cross_entropy_backward_in_place_cuda(const CrossEntropyArgs& args,
                                          const CrossEntropyGradArgs& grad) {
  check_in_place(args, grad);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_in_place_cuda", [&] {
    run_gradient<scalar_t>(args, grad, args.logits, launch_backward<scalar_t>);
  });
}

at::Tensor cross_entropy_grad_target_cuda(const CrossEntropyArgs& args,
                                          const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  const at::Tensor grad_target = empty_grad_target(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_grad_target_cuda", [&] {
    run_gradient<scalar_t>(args, grad, grad_target, launch_grad_target<scalar_t>);
  });
  return grad_target;
}

void cross_entropy_correction_cuda(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                                   const at::Tensor& grad_logits, double guess,
                                   const at::Tensor& report) {
  check_correction(args, grad, grad_logits, report);
  const c10::cuda::CUDAGuard guard(args.logits.device());
  void* report_on_device = nullptr;
  C10_CUDA_CHECK(cudaHostGetDevicePointer(&report_on_device, report.mutable_data_ptr(), 0));
  KnownGradient known{guess, static_cast<double*>(report_on_device)};
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_correction_cuda", [&] {
    run_gradient<scalar_t>(
        args, grad, grad_logits,
        [&](const auto& kernel_args, const GpuLimits& limits, cudaStream_t stream) {
          if (kernel_args.grad.data != grad_logits.const_data_ptr()) {
            known.upstream = NAN;  // a layout or dtype to copy to, and so to compute in any case
          }
          return launch_correction(kernel_args, known, limits, stream);
        });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CUDA, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cuda>);
  m.impl("cross_entropy_forward_with_gradient",
         forward_with_gradient_entry<cross_entropy_forward_with_gradient_cuda>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cuda>);
  m.impl("cross_entropy_backward_", &backward_entry<cross_entropy_backward_in_place_cuda>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_cuda>);
  m.impl("cross_entropy_correction", correction_entry<cross_entropy_correction_cuda>);
}

}  // namespace softreg
