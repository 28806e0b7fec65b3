#include "autograd/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

namespace softreg {
namespace {

at::Tensor accumulated(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
}

// What the targets say, a value per row (unbatched: scalars), and the class weights, (C).
struct TargetTerms {
  at::Tensor ignored;
  at::Tensor label;   // 0 where ignored
  at::Tensor weight;  // of the label's class, 0 where ignored
  at::Tensor class_weight;

  TargetTerms(const CrossEntropyArgs& args, const at::Tensor& logits) {
    at::Tensor target = args.target.to(at::kLong);
    if (logits.dim() == 1) {
      target = target.reshape({});
    }
    ignored = target.eq(args.ignore_index);
    label = target.masked_fill(ignored, 0);
    class_weight = args.has_weight() ? args.weight->to(logits.scalar_type())
                                     : at::ones_symint({logits.sym_size(-1)}, logits.options());
    weight = class_weight.index_select(0, label.reshape({-1})).reshape_symint(label.sym_sizes());
    weight = weight.masked_fill(ignored, 0);
  }
};

}  // namespace

ForwardOutputs cross_entropy_forward_composite(const CrossEntropyArgs& args) {
  const at::Tensor loss = at::cross_entropy_loss_symint(
      args.logits, args.target.to(at::kLong), args.weight, static_cast<int64_t>(args.reduction),
      args.ignore_index, args.label_smoothing);
  const at::Tensor logits = accumulated(args.logits.detach());
  at::Tensor max = logits.amax({-1}, /*keepdim=*/true);
  max = max.masked_fill(max.eq(-INFINITY), 0);
  const at::Tensor log_sum = (logits - max).logsumexp({-1}, /*keepdim=*/true);
  const at::Tensor lse = at::stack({max.reshape({-1}), log_sum.reshape({-1})});
  return {loss, lse, TargetTerms(args, logits).weight.sum(at::kDouble)};
}

at::Tensor cross_entropy_backward_composite(const CrossEntropyArgs& args,
                                            const CrossEntropyGradArgs& grad) {
  const at::Tensor logits = accumulated(args.logits);
  const TargetTerms terms(args, logits);
  const at::Tensor softmax = logits.softmax(-1);
  const at::Tensor classes =
      at::arange(logits.sym_size(-1), args.target.options().dtype(at::kLong));
  const at::Tensor one_hot = terms.label.unsqueeze(-1).eq(classes).to(logits.scalar_type());
  at::Tensor upstream = accumulated(grad.grad_output);
  if (args.reduction == Reduction::kMean) {
    upstream = upstream / grad.total_weight.to(upstream.scalar_type());
  }
  // The formula of core/cross_entropy.h, with its terms grouped for a tensor at a time.
  const double per_class = args.label_smoothing / logits.sym_size(-1).guard_int(__FILE__, __LINE__);
  const at::Tensor hard =
      (1 - args.label_smoothing) * terms.weight.unsqueeze(-1) * (softmax - one_hot);
  const at::Tensor smooth = per_class * (terms.class_weight.sum() * softmax - terms.class_weight);
  const at::Tensor grad_logits = upstream.unsqueeze(-1) * (hard + smooth);
  return grad_logits.masked_fill(terms.ignored.unsqueeze(-1), 0).to(args.logits.scalar_type());
}

}  // namespace softreg
