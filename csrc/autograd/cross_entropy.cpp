// How the ops are differentiated: by the fused kernels, or where a transform asks for more than
// first derivatives in reverse mode, by the composites.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/composite.h"
#include "autograd/derivatives.h"
#include "autograd/early_gradient.h"
#include "ops.h"

namespace softreg {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void save_early_gradient(AutogradContext* ctx, const CrossEntropyArgs& args, at::Tensor grad_logits,
                         double upstream) {
  note_waiting(args, grad_logits);
  ctx->saved_data["early_gradient"] = std::move(grad_logits);
  ctx->saved_data["early_gradient_upstream"] = upstream;
}

// Undefined where there is none, or no use for it. Given away once: whoever gets it may add to it
// in place. Without a taker it is freed: the loss may outlive its graph.
at::Tensor take_early_gradient(AutogradContext* ctx, const CrossEntropyArgs& args,
                               const CrossEntropyGradArgs& grad) {
  const at::Tensor grad_logits = take(ctx, "early_gradient");
  const double upstream =
      grad_logits.defined() ? ctx->saved_data["early_gradient_upstream"].toDouble() : 0;
  const bool is_of_use = ctx->needs_input_grad(0) && !at::GradMode::is_enabled() &&
                         !needs_composite(grad.grad_loss) &&
                         correct(args, grad, grad_logits, upstream);
  return is_of_use ? grad_logits : at::Tensor();
}

class CrossEntropyFunction : public torch::autograd::Function<CrossEntropyFunction> {
 public:
  static constexpr bool is_traceable = true;

  // Returns the loss, and lse where it is asked for; what else the op returns is handed out through
  // `outputs`, since compiled autograd refuses outputs marked as not differentiable.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits,
                               const at::Tensor& target, const CrossEntropyArgs* args,
                               ForwardOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto upstream = logits.requires_grad() ? expected_upstream(*args) : std::nullopt;
    if (upstream) {
      ForwardWithGradientOutputs with = cross_entropy_forward_with_gradient(*args, *upstream);
      save_early_gradient(ctx, *args, std::move(with.grad_logits), *upstream);
      *outputs = std::move(with);
    } else {
      *outputs = cross_entropy_forward(*args);
    }
    ctx->save_for_backward({logits, target, args->has_weight() ? *args->weight : at::Tensor(),
                            outputs->state, outputs->total_weight});
    save(ctx, *args);
    if (!args->return_lse) {
      return {outputs->loss};
    }
    ctx->set_materialize_grads(false);  // rows that only lse would have read are not read again
    return {outputs->loss, outputs->lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &logits = saved[0], &target = saved[1], &state = saved[3];
    const at::Tensor total_weight = unpacked_double(saved[4]);
    const auto weight = saved[2].defined() ? std::make_optional(saved[2]) : std::nullopt;
    const CrossEntropyArgs args{saved_options(ctx), logits, target, weight};
    if (!grad_outputs[0].defined()) {
      grad_outputs[0] =
          at::zeros_symint(loss_shape(args), logits.options().dtype(args.result_type()));
    }
    const auto grad_lse =
        grad_outputs.size() > 1 ? std::make_optional(grad_outputs[1]) : std::nullopt;
    const CrossEntropyGradArgs grad{grad_outputs[0], grad_lse, state, total_weight};
    at::Tensor grad_logits = take_early_gradient(ctx, args, grad), grad_target;
    if (ctx->needs_input_grad(0) && !grad_logits.defined()) {
      grad_logits = cross_entropy_backward(args, grad);
    }
    if (ctx->needs_input_grad(1)) {
      grad_target = cross_entropy_grad_target(args, grad);
    }
    return {grad_logits, grad_target, {}, {}};
  }
};

ForwardOutputs cross_entropy_forward_autograd(const CrossEntropyArgs& args) {
  const bool weight_needs_grad = args.has_weight() && needs_grad(*args.weight);
  TORCH_CHECK(
      args.has_probabilities() || !weight_needs_grad,
      "cross_entropy: weight requires grad, but the loss is not differentiable with respect "
      "to it; pass weight.detach()");
  if (weight_needs_grad || needs_composite(args.logits) || needs_composite(args.target) ||
      (args.has_weight() && needs_composite(*args.weight))) {
    return cross_entropy_forward_composite(args);
  }
  if (!needs_grad(args.logits) && !needs_grad(args.target)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return cross_entropy_forward(args);
  }
  ForwardOutputs outputs;
  const variable_list differentiable =
      CrossEntropyFunction::apply(args.logits, args.target, &args, &outputs);
  return {differentiable[0], args.return_lse ? differentiable[1] : outputs.lse, outputs.state,
          outputs.total_weight};
}

// Differentiable themselves: with create_graph=True they run with gradients recorded.
template <BackwardImplementation fused, BackwardImplementation composite>
at::Tensor gradient_autograd(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  const at::Tensor none;
  const at::Tensor& weight = args.has_weight() ? *args.weight : none;
  const at::Tensor& grad_lse = grad.has_grad_lse() ? *grad.grad_lse : none;
  for (const at::Tensor* input :
       {&args.logits, &args.target, &weight, &grad.grad_loss, &grad_lse}) {
    if (input->defined() && (needs_grad(*input) || needs_composite(*input))) {
      return composite(args, grad);
    }
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return fused(args, grad);
}

constexpr auto cross_entropy_backward_autograd =
    gradient_autograd<cross_entropy_backward, cross_entropy_backward_composite>;
constexpr auto cross_entropy_grad_target_autograd =
    gradient_autograd<cross_entropy_grad_target, cross_entropy_grad_target_composite>;

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, Autograd, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_autograd>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_autograd>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_autograd>);
}

TORCH_LIBRARY_IMPL(softreg_ext, FuncTorchBatched, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_composite>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_composite>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_composite>);
}

}  // namespace softreg
