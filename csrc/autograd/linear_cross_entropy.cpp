// How linear_cross_entropy is differentiated, and when its logits are there all at a time: where
// they are few, and where a transform asks for more than first derivatives in reverse mode.
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/derivatives.h"
#include "autograd/early_layer_gradients.h"
#include "checks.h"
#include "layer_products.h"
#include "layer_rows.h"
#include "no_autocast.h"
#include "ops.h"

namespace softreg {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor logits_of(const LinearCrossEntropyArgs& args) {
  const auto bias =
      args.has_bias() ? std::make_optional(args.linear_bias->flatten()) : std::nullopt;
  return at::linear(args.input, args.linear_weight.flatten(0, -2), bias)
      .to(args.logits_type())
      .reshape_symint(args.logits_shape());
}

ForwardOutputs linear_cross_entropy_forward_composite(const LinearCrossEntropyArgs& args) {
  return cross_entropy_forward(args.with_logits(logits_of(args)));
}

LayerGradients linear_cross_entropy_backward_composite(const LinearCrossEntropyArgs& args,
                                                       const CrossEntropyGradArgs& grad,
                                                       Wanted wanted) {
  check_chunks(args, grad);
  const NoAutocast as_in_the_forward_pass;
  const at::Tensor logits = logits_of(args);
  const at::Tensor of_logits = cross_entropy_backward(args.with_logits(logits), grad)
                                   .flatten(/*start_dim=*/1)
                                   .to(args.input.scalar_type());
  const at::Tensor none = at::empty({0}, args.input.options());
  return {
      wanted[0] ? of_logits.matmul(args.linear_weight.flatten(0, -2)) : none,
      wanted[1] ? of_logits.t().matmul(args.input).reshape_symint(args.linear_weight.sym_sizes())
                : none,
      wanted[2] ? of_logits.sum(at::IntArrayRef{0}).reshape_symint(args.linear_bias->sym_sizes())
                : none};
}

bool needs_all_logits(const LinearCrossEntropyArgs& args) {
  return args.any_tensor(needs_composite) || needs_grad(args.target) ||
         (args.has_weight() && needs_grad(*args.weight));
}

bool gains_from_chunks(const LinearCrossEntropyArgs& args) {
  if (args.input.dim() != 2 || needs_all_logits(args)) {
    return false;
  }
  const c10::SymDimVector shape = args.logits_shape();
  const auto rows = shape[0].maybe_as_int();
  const auto in_row = c10::multiply_integers(shape.begin() + 1, shape.end()).maybe_as_int();
  const auto features = args.input.sym_size(1).maybe_as_int();
  if (!rows || !in_row || !features) {
    return true;
  }
  const int64_t item_bytes = c10::elementSize(args.logits_type());
  return *rows * *in_row * item_bytes > few_bytes(args.input) ||
         gains_from_products(*rows, *in_row, *features, args.input);
}

class LinearCrossEntropyFunction : public torch::autograd::Function<LinearCrossEntropyFunction> {
 public:
  static constexpr bool is_traceable = true;

  // What else the op returns is handed out through `outputs`, as from cross_entropy's node.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input,
                               const at::Tensor& linear_weight,
                               const std::optional<at::Tensor>& linear_bias,
                               const LinearCrossEntropyArgs* args, ForwardOutputs* outputs) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (const auto upstream = expected_upstream(*args)) {
      const Wanted wanted{input.requires_grad(), linear_weight.requires_grad(),
                          args->has_bias() && linear_bias->requires_grad()};
      auto with = linear_cross_entropy_forward_with_gradient(*args, *upstream, wanted);
      save_early(ctx, with.gradients, *upstream);
      *outputs = std::move(with);
    } else {
      *outputs = linear_cross_entropy_forward(*args);
    }
    ctx->save_for_backward({input, linear_weight, args->has_bias() ? *linear_bias : at::Tensor(),
                            args->target, args->has_weight() ? *args->weight : at::Tensor(),
                            outputs->state, outputs->total_weight});
    save(ctx, *args);
    ctx->saved_data["float_logits"] = args->float_logits;
    if (!args->return_lse) {
      return {outputs->loss};
    }
    ctx->set_materialize_grads(false);
    return {outputs->loss, outputs->lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const auto optional = [&](const at::Tensor& x) {
      return x.defined() ? std::make_optional(x) : std::nullopt;
    };
    const auto linear_bias = optional(saved[2]), weight = optional(saved[4]);
    LinearCrossEntropyArgs args{saved_options(ctx), saved[0], saved[1],
                                linear_bias,        saved[3], weight};
    args.float_logits = ctx->saved_data["float_logits"].toBool();
    if (!grad_outputs[0].defined()) {
      const at::Tensor logits = placeholder_logits(args);
      const CrossEntropyArgs of_logits = args.with_logits(logits);
      grad_outputs[0] = at::zeros_symint(loss_shape(of_logits),
                                         args.input.options().dtype(of_logits.result_type()));
    }
    const auto grad_lse =
        grad_outputs.size() > 1 ? std::make_optional(grad_outputs[1]) : std::nullopt;
    const Wanted wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                        args.has_bias() && ctx->needs_input_grad(2)};
    auto gradients = take_early(ctx, grad_outputs[0]);
    if (!gradients) {
      gradients = linear_cross_entropy_backward(
          args, {grad_outputs[0], grad_lse, saved[5], unpacked_double(saved[6])}, wanted);
    }
    const auto [of_input, of_weight, of_bias] = *gradients;
    return {wanted[0] ? of_input : at::Tensor(),
            wanted[1] ? of_weight : at::Tensor(),
            wanted[2] ? of_bias : at::Tensor(),
            {},
            {}};
  }
};

ForwardOutputs linear_cross_entropy_forward_autograd(const LinearCrossEntropyArgs& args) {
  if (needs_all_logits(args)) {
    return linear_cross_entropy_forward_composite(args);
  }
  if (!args.any_tensor(needs_grad)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return linear_cross_entropy_forward(args);
  }
  ForwardOutputs outputs;
  const variable_list differentiable = LinearCrossEntropyFunction::apply(
      args.input, args.linear_weight, args.linear_bias, &args, &outputs);
  return {differentiable[0], args.return_lse ? differentiable[1] : outputs.lse, outputs.state,
          outputs.total_weight};
}

// Differentiable itself: with create_graph=True it runs with gradients recorded.
LayerGradients linear_cross_entropy_backward_autograd(const LinearCrossEntropyArgs& args,
                                                      const CrossEntropyGradArgs& grad,
                                                      Wanted wanted) {
  const auto is_differentiated = [](const at::Tensor& x) {
    return x.defined() && (needs_grad(x) || needs_composite(x));
  };
  if (args.any_tensor(is_differentiated) || is_differentiated(grad.grad_loss) ||
      (grad.has_grad_lse() && is_differentiated(*grad.grad_lse))) {
    return linear_cross_entropy_backward_composite(args, grad, wanted);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return linear_cross_entropy_backward(args, grad, wanted);
}

ForwardOutputs linear_cross_entropy_whole_or_in_chunks(const LinearCrossEntropyArgs& args) {
  check_layer(args);
  return gains_from_chunks(args) ? linear_cross_entropy_forward(args)
                                 : linear_cross_entropy_forward_composite(args);
}

// Under autocast the layer has the lower precision, its loss float32: as of torch's two ops.
template <c10::DeviceType device>
ForwardOutputs linear_cross_entropy_autocast(const LinearCrossEntropyArgs& args) {
  const NoAutocast no_autocast;
  const auto cast = [&](at::ScalarType type, const std::optional<at::Tensor>& x) {
    const bool is_there = x.has_value() && x->defined();
    return is_there ? std::make_optional(at::autocast::cached_cast(type, *x, device)) : x;
  };
  const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
  const bool float_logits = true;
  return linear_cross_entropy_whole_or_in_chunks(
      {args, *cast(lower, args.input), *cast(lower, args.linear_weight),
       cast(lower, args.linear_bias), *cast(at::kFloat, args.target), cast(at::kFloat, args.weight),
       args.return_lse, float_logits});
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CompositeImplicitAutograd, m) {
  m.impl("linear_cross_entropy", &linear_forward_entry<linear_cross_entropy_whole_or_in_chunks>);
}

TORCH_LIBRARY_IMPL(softreg_ext, AutocastCPU, m) {
  m.impl("linear_cross_entropy", &linear_forward_entry<linear_cross_entropy_autocast<c10::kCPU>>);
}

TORCH_LIBRARY_IMPL(softreg_ext, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", &linear_forward_entry<linear_cross_entropy_autocast<c10::kCUDA>>);
}

TORCH_LIBRARY_IMPL(softreg_ext, Autograd, m) {
  m.impl("linear_cross_entropy_forward",
         linear_chunks_entry<linear_cross_entropy_forward_autograd>);
  m.impl("linear_cross_entropy_backward",
         &linear_backward_entry<linear_cross_entropy_backward_autograd>);
}

TORCH_LIBRARY_IMPL(softreg_ext, FuncTorchBatched, m) {
  m.impl("linear_cross_entropy", &linear_forward_entry<linear_cross_entropy_whole_or_in_chunks>);
  m.impl("linear_cross_entropy_forward",
         linear_chunks_entry<linear_cross_entropy_forward_composite>);
  m.impl("linear_cross_entropy_backward",
         &linear_backward_entry<linear_cross_entropy_backward_composite>);
}

}  // namespace softreg
