// Under autocast the loss is computed in float32, as torch computes its own.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops.h"

namespace softreg {
namespace {

template <c10::DeviceType device>
ForwardOutputs cross_entropy_forward_autocast(const CrossEntropyArgs& args) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto in_float = [](const at::Tensor& x) {
    return at::autocast::cached_cast(at::kFloat, x, device);
  };
  std::optional<at::Tensor> weight = args.weight;
  if (args.has_weight()) {
    weight = in_float(*args.weight);
  }
  return cross_entropy_forward(
      {args, in_float(args.logits), in_float(args.target), weight, args.return_lse});
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, AutocastCPU, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_autocast<c10::kCPU>>);
}

TORCH_LIBRARY_IMPL(softreg_ext, AutocastCUDA, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_autocast<c10::kCUDA>>);
}

}  // namespace softreg
