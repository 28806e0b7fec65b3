// The schemas, and how C++ calls the ops.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>
#include <type_traits>

namespace softreg {
namespace {

using ForwardSchema = decltype(forward_entry<cross_entropy_forward>);
using ForwardWithGradientSchema = std::remove_pointer_t<
    decltype(forward_with_gradient_entry<cross_entropy_forward_with_gradient>)>;
using BackwardSchema = decltype(backward_entry<cross_entropy_backward>);
using InPlaceSchema = decltype(backward_entry<cross_entropy_backward_in_place>);
using CorrectionSchema =
    std::remove_pointer_t<decltype(correction_entry<cross_entropy_correction>)>;

using LinearSchema = decltype(linear_forward_entry<linear_cross_entropy>);
using LinearForwardSchema =
    std::remove_pointer_t<decltype(linear_chunks_entry<linear_cross_entropy_forward>)>;
using LinearWithGradientSchema = std::remove_pointer_t<
    decltype(linear_with_gradient_entry<linear_cross_entropy_forward_with_gradient>)>;
using LinearBackwardSchema = decltype(linear_backward_entry<linear_cross_entropy_backward>);

ForwardOutputs forward_outputs(
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> op_results) {
  auto& [loss, lse, state, total_weight] = op_results;
  return {std::move(loss), std::move(lse), std::move(state), std::move(total_weight)};
}

template <typename Schema>
c10::TypedOperatorHandle<Schema> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

// `more`: what follows the arguments that every such op has.
template <typename Schema, typename... More>
auto call_forward(const c10::TypedOperatorHandle<Schema>& op, const CrossEntropyArgs& args,
                  const More&... more) {
  return op.call(args.logits, args.target, args.weight, static_cast<int64_t>(args.reduction),
                 args.ignore_index, args.label_smoothing, args.z_loss, args.logit_scale,
                 args.optional_softcap(), args.return_lse, more...);
}

template <typename Schema, typename... More>
auto call_backward(const c10::TypedOperatorHandle<Schema>& op, const CrossEntropyArgs& args,
                   const CrossEntropyGradArgs& grad, const More&... more) {
  return op.call(grad.grad_loss, grad.grad_lse, args.logits, args.target, grad.state,
                 grad.total_weight, args.weight, static_cast<int64_t>(args.reduction),
                 args.ignore_index, args.label_smoothing, args.z_loss, args.logit_scale,
                 args.optional_softcap(), more...);
}

template <typename Schema, typename... More>
auto call_linear_forward(const c10::TypedOperatorHandle<Schema>& op,
                         const LinearCrossEntropyArgs& args, const More&... more) {
  return op.call(args.input, args.linear_weight, args.linear_bias, args.target, args.weight,
                 static_cast<int64_t>(args.reduction), args.ignore_index, args.label_smoothing,
                 args.z_loss, args.logit_scale, args.optional_softcap(), args.return_lse, more...);
}

}  // namespace

ForwardOutputs cross_entropy_forward(const CrossEntropyArgs& args) {
  static const auto op = find_op<ForwardSchema>("softreg_ext::cross_entropy_forward");
  return forward_outputs(call_forward(op, args));
}

ForwardWithGradientOutputs cross_entropy_forward_with_gradient(const CrossEntropyArgs& args,
                                                               double grad_loss) {
  static const auto op =
      find_op<ForwardWithGradientSchema>("softreg_ext::cross_entropy_forward_with_gradient");
  auto [loss, lse, state, total_weight, grad_logits] = call_forward(op, args, grad_loss);
  return {{std::move(loss), std::move(lse), std::move(state), std::move(total_weight)},
          std::move(grad_logits)};
}

at::Tensor cross_entropy_backward(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  static const auto op = find_op<BackwardSchema>("softreg_ext::cross_entropy_backward");
  return call_backward(op, args, grad);
}

void cross_entropy_backward_in_place(const CrossEntropyArgs& args,
                                     const CrossEntropyGradArgs& grad) {
  static const auto op = find_op<InPlaceSchema>("softreg_ext::cross_entropy_backward_");
  call_backward(op, args, grad);
}

at::Tensor cross_entropy_grad_target(const CrossEntropyArgs& args,
                                     const CrossEntropyGradArgs& grad) {
  static const auto op = find_op<BackwardSchema>("softreg_ext::cross_entropy_grad_target");
  return call_backward(op, args, grad);
}

void cross_entropy_correction(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                              const at::Tensor& grad_logits, double guess,
                              const at::Tensor& report) {
  static const auto op = find_op<CorrectionSchema>("softreg_ext::cross_entropy_correction");
  call_backward(op, args, grad, grad_logits, guess, report);
}

ForwardOutputs linear_cross_entropy(const LinearCrossEntropyArgs& args) {
  static const auto op = find_op<LinearSchema>("softreg_ext::linear_cross_entropy");
  return forward_outputs(call_linear_forward(op, args));
}

ForwardOutputs linear_cross_entropy_forward(const LinearCrossEntropyArgs& args) {
  static const auto op = find_op<LinearForwardSchema>("softreg_ext::linear_cross_entropy_forward");
  return forward_outputs(call_linear_forward(op, args, args.float_logits));
}

LinearForwardWithGradientOutputs linear_cross_entropy_forward_with_gradient(
    const LinearCrossEntropyArgs& args, double grad_loss, Wanted wanted) {
  static const auto op =
      find_op<LinearWithGradientSchema>("softreg_ext::linear_cross_entropy_forward_with_gradient");
  auto [loss, lse, state, total_weight, of_input, of_weight, of_bias] =
      call_linear_forward(op, args, args.float_logits, grad_loss, wanted);
  return {{std::move(loss), std::move(lse), std::move(state), std::move(total_weight)},
          {std::move(of_input), std::move(of_weight), std::move(of_bias)}};
}

LayerGradients linear_cross_entropy_backward(const LinearCrossEntropyArgs& args,
                                             const CrossEntropyGradArgs& grad, Wanted wanted) {
  static const auto op =
      find_op<LinearBackwardSchema>("softreg_ext::linear_cross_entropy_backward");
  return op.call(grad.grad_loss, grad.grad_lse, args.input, args.linear_weight, args.linear_bias,
                 args.target, grad.state, grad.total_weight, args.weight,
                 static_cast<int64_t>(args.reduction), args.ignore_index, args.label_smoothing,
                 args.z_loss, args.logit_scale, args.optional_softcap(), args.float_logits, wanted);
}

TORCH_LIBRARY(softreg_ext, m) {
  const std::string options =
      "Tensor? weight, int reduction, SymInt ignore_index, float label_smoothing, float z_loss, "
      "float logit_scale, float? softcap";
  const std::string arguments = "Tensor input, Tensor target, " + options + ", bool return_lse";
  const std::string results = "Tensor loss, Tensor lse, Tensor state, Tensor total_weight";
  const auto define = [&m](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("cross_entropy_forward(" + arguments + ") -> (" + results + ")");
  define("cross_entropy_forward_with_gradient(" + arguments + ", float grad_loss) -> (" + results +
         ", Tensor grad_input)");
  const std::string upstream = "Tensor grad_loss, Tensor? grad_lse, ";
  const std::string saved = " input, Tensor target, Tensor state, Tensor total_weight, " + options;
  const std::string backward_arguments = upstream + "Tensor" + saved;
  define("cross_entropy_backward(" + backward_arguments + ") -> Tensor");
  define("cross_entropy_backward_(" + upstream + "Tensor(a!)" + saved + ") -> ()");
  define("cross_entropy_grad_target(" + backward_arguments + ") -> Tensor");
  define("cross_entropy_correction(" + backward_arguments +
         ", Tensor(a!) grad_input, float guess, Tensor(b!) report) -> ()");

  const std::string layer =
      "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, ";
  const std::string linear_arguments = layer + options + ", bool return_lse";
  define("linear_cross_entropy(" + linear_arguments + ") -> (" + results + ")");
  define("linear_cross_entropy_forward(" + linear_arguments + ", bool float_logits) -> (" +
         results + ")");
  const std::string gradients =
      "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias";
  define("linear_cross_entropy_forward_with_gradient(" + linear_arguments +
         ", bool float_logits, float grad_loss, bool[3] wanted) -> (" + results + ", " + gradients +
         ")");
  define("linear_cross_entropy_backward(" + upstream + layer +
         "Tensor state, Tensor total_weight, " + options +
         ", bool float_logits, bool[3] wanted) -> (" + gradients + ")");
}

}  // namespace softreg
