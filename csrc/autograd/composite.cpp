#include "autograd/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

#include <vector>

#include "checks.h"

namespace softreg {
namespace {

// A value per class (C), shaped to meet the logits; a value per row, likewise.
at::Tensor along_classes(const at::Tensor& x, const CrossEntropyArgs& args) {
  c10::SymDimVector shape(args.logits.dim(), 1);
  shape[args.class_dim()] = -1;
  return x.reshape_symint(shape);
}

// The formulas of core/cross_entropy.h with everything a tensor at a time: row by row and class by
// class, the coefficient a of -log softmax(x). 0 where a row is ignored.
struct Coefficients {
  at::Tensor per_class;   // shaped like the logits
  at::Tensor row_weight;  // what a row adds to total_weight, shaped like the logits with C = 1
  at::Tensor ignored;     // likewise, undefined with probabilities

  Coefficients(const CrossEntropyArgs& args, at::ScalarType type) {
    const int64_t dim = args.class_dim();
    const c10::SymInt classes = args.logits.sym_size(dim);
    const auto options = args.logits.options().dtype(type);
    const at::Tensor weight = along_classes(
        args.has_weight() ? args.weight->to(type) : at::ones_symint({classes}, options), args);
    at::Tensor probabilities;
    if (args.has_probabilities()) {
      probabilities = args.target.to(type);
      row_weight = at::ones_like(probabilities.select(dim, 0).unsqueeze(dim));
    } else {
      at::Tensor target = args.target.to(at::kLong);
      target = args.logits.dim() == 1 ? target.reshape({1}) : target.unsqueeze(dim);
      ignored = target.eq(args.ignore_index);
      const at::Tensor numbers = along_classes(at::arange(classes, target.options()), args);
      probabilities = target.eq(numbers).to(type).masked_fill(ignored, 0);
      row_weight = (probabilities * weight).sum({dim}, /*keepdim=*/true);
    }
    const double smoothing = args.label_smoothing;
    per_class = weight * ((1 - smoothing) * probabilities +
                          smoothing / classes.guard_int(__FILE__, __LINE__));
    if (ignored.defined()) {
      per_class = per_class.masked_fill(ignored, 0);
    }
  }
};

// grad_output, shaped to meet the logits and divided for the mean.
at::Tensor upstream_of(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  at::Tensor upstream = grad.grad_output.to(accumulator_type(grad.grad_output.scalar_type()));
  if (args.has_row_losses()) {
    upstream = upstream.unsqueeze(args.class_dim());
  }
  return args.reduction == Reduction::kMean
             ? upstream / grad.total_weight.to(upstream.scalar_type())
             : upstream;
}

}  // namespace

ForwardOutputs cross_entropy_forward_composite(const CrossEntropyArgs& args) {
  check(args);
  const at::ScalarType type = accumulator_type(args.result_type());
  const Coefficients coefficients(args, type);
  at::Tensor input = args.logits;
  if (coefficients.ignored.defined()) {
    input = input.masked_fill(coefficients.ignored, 0);  // as if not read
  }
  const at::Tensor target = args.has_probabilities() ? args.target : args.target.to(at::kLong);
  const at::Tensor loss = at::cross_entropy_loss_symint(input, target, args.weight,
                                                        static_cast<int64_t>(args.reduction),
                                                        args.ignore_index, args.label_smoothing);
  const at::Tensor logits = input.detach().to(type);
  const int64_t dim = args.class_dim();
  at::Tensor max = logits.amax({dim}, /*keepdim=*/true);
  max = max.masked_fill(max.eq(-INFINITY), 0);
  std::vector<at::Tensor> lse = {max.reshape({-1}), (logits - max).exp().sum({dim}).reshape({-1})};
  if (args.has_probabilities()) {
    lse.push_back(coefficients.per_class.detach().sum({dim}).reshape({-1}));
  }
  return {loss, at::stack(lse), coefficients.row_weight.sum(at::kDouble)};
}

at::Tensor cross_entropy_backward_composite(const CrossEntropyArgs& args,
                                            const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const at::Tensor logits = args.logits.to(accumulator_type(args.result_type()));
  const int64_t dim = args.class_dim();
  const Coefficients coefficients(args, logits.scalar_type());
  const at::Tensor& a = coefficients.per_class;
  at::Tensor grad_logits =
      upstream_of(args, grad) * (logits.softmax(dim) * a.sum({dim}, /*keepdim=*/true) - a);
  if (coefficients.ignored.defined()) {
    grad_logits = grad_logits.masked_fill(coefficients.ignored, 0);
  }
  return grad_logits.to(args.logits.scalar_type());
}

at::Tensor cross_entropy_grad_target(const CrossEntropyArgs& args,
                                     const CrossEntropyGradArgs& grad) {
  const at::Tensor logits = args.logits.to(accumulator_type(args.result_type()));
  at::Tensor scale = upstream_of(args, grad) * (args.label_smoothing - 1);
  if (args.has_weight()) {
    scale = scale * along_classes(args.weight->to(logits.scalar_type()), args);
  }
  return (scale * logits.log_softmax(args.class_dim())).to(args.target.scalar_type());
}

}  // namespace softreg
