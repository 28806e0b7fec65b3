// How the ops are differentiated: by the fused kernels, or where a transform asks for more than
// first derivatives in reverse mode, by the composites.
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/composite.h"
#include "ops.h"

namespace softreg {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A torch.func transform is running, or x carries a forward-mode tangent.
bool needs_composite(const at::Tensor& x) {
  if (x._fw_grad(/*level=*/0).defined()) {
    return true;
  }
  const auto& functorch = at::functorch::functorchTLSAccessor();
  if (!functorch) {
    return false;
  }
  try {
    functorch->checkSupportsCppAutogradFunction();
    return false;
  } catch (const c10::Error&) {  // functorch has no other way to say that a transform is running
    return true;
  }
}

bool needs_grad(const at::Tensor& x) { return at::GradMode::is_enabled() && x.requires_grad(); }

class CrossEntropyFunction : public torch::autograd::Function<CrossEntropyFunction> {
 public:
  static constexpr bool is_traceable = true;

  // Returns the loss alone; what else the op returns is handed out through `outputs`, since
  // compiled autograd refuses outputs marked as not differentiable.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& logits,
                            const at::Tensor& target, const CrossEntropyArgs* args,
                            ForwardOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    *outputs = cross_entropy_forward(*args);
    const auto& [loss, lse, total_weight] = *outputs;
    ctx->save_for_backward(
        {logits, target, args->has_weight() ? *args->weight : at::Tensor(), lse, total_weight});
    ctx->saved_data["reduction"] = static_cast<int64_t>(args->reduction);
    ctx->saved_data["ignore_index"] = args->ignore_index;
    ctx->saved_data["label_smoothing"] = args->label_smoothing;
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &logits = saved[0], &target = saved[1], &lse = saved[3],
                     &total_weight = saved[4];
    const auto weight = saved[2].defined() ? std::make_optional(saved[2]) : std::nullopt;
    const CrossEntropyArgs args{logits,
                                target,
                                weight,
                                static_cast<Reduction>(ctx->saved_data["reduction"].toInt()),
                                ctx->saved_data["ignore_index"].toInt(),
                                ctx->saved_data["label_smoothing"].toDouble()};
    const CrossEntropyGradArgs grad{grad_outputs[0], lse, total_weight};
    return {ctx->needs_input_grad(0) ? cross_entropy_backward(args, grad) : at::Tensor(),
            ctx->needs_input_grad(1) ? cross_entropy_grad_target(args, grad) : at::Tensor(),
            {},
            {}};
  }
};

ForwardOutputs cross_entropy_forward_autograd(const CrossEntropyArgs& args) {
  const bool weight_needs_grad = args.has_weight() && needs_grad(*args.weight);
  TORCH_CHECK(
      args.has_probabilities() || !weight_needs_grad,
      "cross_entropy: weight requires grad, but the loss is not differentiable with respect "
      "to it; pass weight.detach()");
  if (weight_needs_grad || needs_composite(args.logits) || needs_composite(args.target)) {
    return cross_entropy_forward_composite(args);
  }
  if (!needs_grad(args.logits) && !needs_grad(args.target)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return cross_entropy_forward(args);
  }
  ForwardOutputs outputs;
  const at::Tensor loss = CrossEntropyFunction::apply(args.logits, args.target, &args, &outputs);
  return {loss, std::get<1>(outputs), std::get<2>(outputs)};
}

// Differentiable itself: with create_graph=True this runs with gradients recorded.
at::Tensor cross_entropy_backward_autograd(const CrossEntropyArgs& args,
                                           const CrossEntropyGradArgs& grad) {
  for (const at::Tensor* input : {&args.logits, &args.target, &grad.grad_output}) {
    if (needs_grad(*input) || needs_composite(*input)) {
      return cross_entropy_backward_composite(args, grad);
    }
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return cross_entropy_backward(args, grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, Autograd, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_autograd>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_autograd>);
}

TORCH_LIBRARY_IMPL(softreg_ext, FuncTorchBatched, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_composite>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_composite>);
}

}  // namespace softreg
