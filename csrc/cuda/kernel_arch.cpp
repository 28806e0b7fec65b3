// Which of the compiled architectures a GPU runs: the first thing to ask of a CUDA build.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/arch_kernel.h"

namespace softreg {
namespace {

// A 0-dim int64 tensor on `like`'s device: 90 for sm_90.
at::Tensor kernel_arch_cuda(const at::Tensor& like) {
  const c10::cuda::CUDAGuard guard(like.device());
  at::Tensor arch = at::empty({}, like.options().dtype(at::kLong));
  launch_arch_kernel(arch.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return arch;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(softreg_ext, m) { m.def("kernel_arch(Tensor like) -> Tensor"); }

TORCH_LIBRARY_IMPL(softreg_ext, CUDA, m) { m.impl("kernel_arch", &kernel_arch_cuda); }

}  // namespace softreg
