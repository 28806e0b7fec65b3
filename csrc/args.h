// The op's arguments as one value. The schemas (ops.cpp) spell the list out for the dispatcher; it
// is packed here, on entry, and everything behind the entry passes it on whole.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <tuple>

namespace softreg {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct CrossEntropyArgs {
  const at::Tensor& logits;  // (C), (N, C) or (N, C, d1, ..., dK)
  // class indices, shaped like the logits without C, or class probabilities, shaped like the logits
  const at::Tensor& target;
  const std::optional<at::Tensor>& weight;  // (C)
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;

  bool has_weight() const { return weight.has_value() && weight->defined(); }
  bool has_probabilities() const { return at::isFloatingType(target.scalar_type()); }
  int64_t class_dim() const { return logits.dim() > 1 ? 1 : 0; }
  bool has_row_losses() const { return reduction == Reduction::kNone && logits.dim() > 1; }

  // The dtype of the loss. Labels leave it to the logits, probabilities take part.
  at::ScalarType result_type() const;
};

// In what dtype losses and gradients of dtype `type` are computed.
inline at::ScalarType accumulator_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

// loss: shaped like the labels, or (). lse, a column for each row of N d1 ... dK: the maximum and
// sum_c exp(x_c - maximum), and with probabilities the sum of their coefficients. total_weight: (),
// what the mean divides by.
using ForwardOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// What the backward pass is given besides.
struct CrossEntropyGradArgs {
  const at::Tensor& grad_output;   // shaped like the loss
  const at::Tensor& lse;           // (2, rows), or (3, rows) with probabilities
  const at::Tensor& total_weight;  // ()
};

using ForwardImplementation = ForwardOutputs(const CrossEntropyArgs&);
using BackwardImplementation = at::Tensor(const CrossEntropyArgs&, const CrossEntropyGradArgs&);

// What is registered for cross_entropy_forward and cross_entropy_backward.
template <ForwardImplementation implementation>
ForwardOutputs forward_entry(const at::Tensor& logits, const at::Tensor& target,
                             const std::optional<at::Tensor>& weight, int64_t reduction,
                             int64_t ignore_index, double label_smoothing) {
  return implementation(
      {logits, target, weight, static_cast<Reduction>(reduction), ignore_index, label_smoothing});
}

template <BackwardImplementation implementation>
at::Tensor backward_entry(const at::Tensor& grad_output, const at::Tensor& logits,
                          const at::Tensor& target, const at::Tensor& lse,
                          const at::Tensor& total_weight, const std::optional<at::Tensor>& weight,
                          int64_t reduction, int64_t ignore_index, double label_smoothing) {
  return implementation(
      {logits, target, weight, static_cast<Reduction>(reduction), ignore_index, label_smoothing},
      {grad_output, lse, total_weight});
}

c10::SymDimVector loss_shape(const CrossEntropyArgs& args);
c10::SymDimVector lse_shape(const CrossEntropyArgs& args);

// Uninitialised results of the right shape, dtype and device, real or meta.
ForwardOutputs empty_forward_outputs(const CrossEntropyArgs& args);
at::Tensor empty_grad_logits(const CrossEntropyArgs& args);

}  // namespace softreg
