#include "autograd/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
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
      row_weight = at::ones_like(probabilities.sum({dim}, /*keepdim=*/true));
    } else {
      at::Tensor target = args.target.to(at::kLong);
      target = args.logits.dim() == 1 ? target.reshape({1}) : target.unsqueeze(dim);
      ignored = target.eq(args.ignore_index);
      const at::Tensor numbers = along_classes(at::arange(classes, target.options()), args);
      probabilities = target.eq(numbers).to(type).masked_fill(ignored, 0);
      row_weight = (probabilities * weight).sum({dim}, /*keepdim=*/true);
    }
    const at::Tensor evenly =
        at::scalar_tensor(args.label_smoothing, options.dtype(at::kDouble)) / classes;
    per_class = weight * ((1 - args.label_smoothing) * probabilities + evenly);
    if (ignored.defined()) {
      per_class = per_class.masked_fill(ignored, 0);
    }
  }
};

// The logits in the accumulator's dtype, transformed as in core/logit_transform.h; and dy / dx.
at::Tensor transformed(const CrossEntropyArgs& args, const at::Tensor& logits) {
  const at::Tensor scaled = logits.to(accumulator_type(args.result_type())) * args.logit_scale;
  return args.caps_logits() ? args.softcap * (scaled / args.softcap).tanh() : scaled;
}

at::Tensor slope_of(const CrossEntropyArgs& args, const at::Tensor& y) {
  const at::Tensor uncapped = at::scalar_tensor(args.logit_scale, y.options());
  return args.caps_logits() ? uncapped * (1 - (y / args.softcap).square()) : uncapped;
}

// grad_loss, shaped to meet the logits and divided for the mean.
at::Tensor upstream_of(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  at::Tensor upstream = grad.grad_loss.to(accumulator_type(grad.grad_loss.scalar_type()));
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
  const int64_t dim = args.class_dim();
  const Coefficients coefficients(args, type);
  const bool has_ignored = coefficients.ignored.defined();
  const at::Tensor y = transformed(args, args.logits);
  const at::Tensor counted = has_ignored ? y.masked_fill(coefficients.ignored, 0) : y;
  const at::Tensor target = args.target.to(args.has_probabilities() ? type : at::kLong);
  const auto weight =
      args.has_weight() ? std::make_optional(args.weight->to(type).flatten()) : std::nullopt;
  at::Tensor loss =
      at::cross_entropy_loss_symint(counted, target, weight, static_cast<int64_t>(args.reduction),
                                    args.ignore_index, args.label_smoothing);
  const at::Tensor total_weight = coefficients.row_weight.sum(at::kDouble);
  if (args.z_loss != 0) {
    at::Tensor z = args.z_loss * counted.logsumexp({dim}, /*keepdim=*/true).square();
    z = (has_ignored ? z.masked_fill(coefficients.ignored, 0) : z).squeeze(dim);
    z = args.reduction == Reduction::kNone ? z : z.sum();
    loss = loss + (args.reduction == Reduction::kMean ? z / total_weight.to(type) : z);
  }
  const at::Tensor lse = args.return_lse ? y.logsumexp({dim}) : at::empty({0}, y.options());
  const at::Tensor logits = (args.return_lse ? y : counted).detach();
  // Of no classes there is none.
  const bool has_none = logits.sym_size(dim).sym_eq(0).guard_or_false(__FILE__, __LINE__);
  at::Tensor max =
      has_none ? logits.sum({dim}, /*keepdim=*/true) : logits.amax({dim}, /*keepdim=*/true);
  max = max.masked_fill(max.eq(-INFINITY), 0);
  std::vector<at::Tensor> state = {max.reshape({-1}),
                                   (logits - max).exp().sum({dim}).reshape({-1})};
  if (args.has_probabilities()) {
    state.push_back(coefficients.per_class.detach().sum({dim}).reshape({-1}));
  }
  return {loss.to(args.result_type()), lse, at::stack(state), total_weight};
}

at::Tensor cross_entropy_backward_composite(const CrossEntropyArgs& args,
                                            const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const int64_t dim = args.class_dim();
  const Coefficients coefficients(args, accumulator_type(args.result_type()));
  const at::Tensor& a = coefficients.per_class;
  // Nothing of an ignored row is in second derivatives either, unless lse is asked for.
  const bool is_masked = coefficients.ignored.defined() && !grad.has_grad_lse();
  const at::Tensor y =
      transformed(args, is_masked ? args.logits.masked_fill(coefficients.ignored, 0) : args.logits);
  const at::Tensor softmax = y.softmax(dim);
  at::Tensor on_softmax = a.sum({dim}, /*keepdim=*/true);
  if (args.z_loss != 0) {
    on_softmax = on_softmax + 2 * args.z_loss * y.logsumexp({dim}, /*keepdim=*/true);
  }
  at::Tensor grad_y = upstream_of(args, grad) * (softmax * on_softmax - a);
  if (coefficients.ignored.defined()) {
    grad_y = grad_y.masked_fill(coefficients.ignored, 0);
  }
  if (grad.has_grad_lse()) {
    grad_y = grad_y + grad.grad_lse->unsqueeze(dim) * softmax;
  }
  return (grad_y * slope_of(args, y)).to(args.logits.scalar_type());
}

at::Tensor cross_entropy_grad_target_composite(const CrossEntropyArgs& args,
                                               const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  const at::Tensor y = transformed(args, args.logits);
  at::Tensor scale = upstream_of(args, grad) * (args.label_smoothing - 1);
  if (args.has_weight()) {
    scale = scale * along_classes(args.weight->to(y.scalar_type()), args);
  }
  return (scale * y.log_softmax(args.class_dim())).to(args.target.scalar_type());
}

}  // namespace softreg
