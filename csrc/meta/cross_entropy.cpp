// Meta and fake tensors: the checks and the shapes, no numbers.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "args.h"
#include "checks.h"
#include "linear_args.h"

namespace softreg {
namespace {

ForwardOutputs cross_entropy_forward_meta(const CrossEntropyArgs& args) {
  check(args);
  return empty_forward_outputs(args);
}

ForwardWithGradientOutputs cross_entropy_forward_with_gradient_meta(const CrossEntropyArgs& args,
                                                                    double) {
  check(args);
  return {empty_forward_outputs(args), empty_grad_logits(args)};
}

at::Tensor cross_entropy_backward_meta(const CrossEntropyArgs& args,
                                       const CrossEntropyGradArgs& grad) {
  check(args, grad);
  return empty_grad_logits(args);
}

void cross_entropy_backward_in_place_meta(const CrossEntropyArgs& args,
                                          const CrossEntropyGradArgs& grad) {
  check(args, grad);
}

at::Tensor cross_entropy_grad_target_meta(const CrossEntropyArgs& args,
                                          const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  return empty_grad_target(args);
}

void cross_entropy_correction_meta(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                                   const at::Tensor& grad_logits, double,
                                   const at::Tensor& report) {
  check_correction(args, grad, grad_logits, report);
}

ForwardOutputs linear_cross_entropy_forward_meta(const LinearCrossEntropyArgs& args) {
  check_chunks(args);
  return empty_forward_outputs(args.with_logits(placeholder_logits(args)));
}

LayerGradients empty_gradients(const LinearCrossEntropyArgs& args, Wanted wanted) {
  const auto empty = [&](bool is_wanted, const at::Tensor& like) {
    return is_wanted ? at::empty_symint(like.sym_sizes(), like.options())
                     : at::empty({0}, args.input.options());
  };
  return {empty(wanted[0], args.input), empty(wanted[1], args.linear_weight),
          empty(wanted[2], wanted[2] ? *args.linear_bias : args.input)};
}

LinearForwardWithGradientOutputs linear_cross_entropy_forward_with_gradient_meta(
    const LinearCrossEntropyArgs& args, double, Wanted wanted) {
  return {linear_cross_entropy_forward_meta(args), empty_gradients(args, wanted)};
}

LayerGradients linear_cross_entropy_backward_meta(const LinearCrossEntropyArgs& args,
                                                  const CrossEntropyGradArgs& grad, Wanted wanted) {
  check_chunks(args, grad);
  return empty_gradients(args, wanted);
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, Meta, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_meta>);
  m.impl("cross_entropy_forward_with_gradient",
         forward_with_gradient_entry<cross_entropy_forward_with_gradient_meta>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_meta>);
  m.impl("cross_entropy_backward_", &backward_entry<cross_entropy_backward_in_place_meta>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_meta>);
  m.impl("cross_entropy_correction", correction_entry<cross_entropy_correction_meta>);
  m.impl("linear_cross_entropy_forward", linear_chunks_entry<linear_cross_entropy_forward_meta>);
  m.impl("linear_cross_entropy_forward_with_gradient",
         linear_with_gradient_entry<linear_cross_entropy_forward_with_gradient_meta>);
  m.impl("linear_cross_entropy_backward",
         &linear_backward_entry<linear_cross_entropy_backward_meta>);
}

}  // namespace softreg
