// The arguments of linear_cross_entropy, as one value: a linear layer, and the loss of its output.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "args.h"

namespace softreg {

struct LinearCrossEntropyArgs : CrossEntropyOptions {
  const at::Tensor& input;                       // (N, features)
  const at::Tensor& linear_weight;               // (C, features) or (C, d1, ..., dK, features)
  const std::optional<at::Tensor>& linear_bias;  // shaped like linear_weight without features
  const at::Tensor& target;                      // as for logits (N, C, d1, ..., dK)
  const std::optional<at::Tensor>& weight;       // (C)
  bool return_lse = false;
  // The product is rounded to the layer's dtype, the loss computed in float32: as under autocast.
  bool float_logits = false;

  bool has_bias() const { return linear_bias.has_value() && linear_bias->defined(); }
  bool has_weight() const { return weight.has_value() && weight->defined(); }
  bool has_probabilities() const { return at::isFloatingType(target.scalar_type()); }

  template <typename Predicate>
  bool any_tensor(const Predicate& predicate) const {
    return predicate(input) || predicate(linear_weight) ||
           (has_bias() && predicate(*linear_bias)) || predicate(target) ||
           (has_weight() && predicate(*weight));
  }

  c10::SymDimVector logits_shape() const {
    c10::SymDimVector shape(input.sym_sizes());
    shape.pop_back();
    shape.append(linear_weight.sym_sizes().begin(), linear_weight.sym_sizes().end() - 1);
    return shape;
  }

  at::ScalarType logits_type() const {
    const at::ScalarType type = input.scalar_type();
    return float_logits ? accumulator_type(type) : type;
  }

  // The loss's arguments for logits that are there.
  CrossEntropyArgs with_logits(const at::Tensor& logits) const {
    return {*this, logits, target, weight, return_lse};
  }
};

// The gradients of input, linear_weight and linear_bias; which of them are wanted.
using LayerGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Wanted = std::array<bool, 3>;

struct LinearForwardWithGradientOutputs : ForwardOutputs {
  LayerGradients gradients;
};

inline auto results(LinearForwardWithGradientOutputs out) {
  LayerGradients gradients = std::move(out.gradients);
  return std::tuple_cat(results(static_cast<ForwardOutputs&&>(out)), std::move(gradients));
}

using LinearForwardImplementation = ForwardOutputs(const LinearCrossEntropyArgs&);
// Gradients that are not wanted have no elements. The first: with the logits computed once, for the
// upstream gradient `grad_loss` of a reduced loss.
using LinearForwardWithGradientImplementation =
    LinearForwardWithGradientOutputs(const LinearCrossEntropyArgs&, double grad_loss, Wanted);
using LinearBackwardImplementation = LayerGradients(const LinearCrossEntropyArgs&,
                                                    const CrossEntropyGradArgs&, Wanted);

// What is registered for the ops; `told`: float_logits and what follows it, of those that are.
template <auto* implementation, typename... Told>
auto linear_forward_entry(const at::Tensor& input, const at::Tensor& linear_weight,
                          const std::optional<at::Tensor>& linear_bias, const at::Tensor& target,
                          const std::optional<at::Tensor>& weight, int64_t reduction,
                          c10::SymInt ignore_index, double label_smoothing, double z_loss,
                          double logit_scale, std::optional<double> softcap, bool return_lse,
                          Told... told) {
  const CrossEntropyOptions options =
      packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap);
  const auto run = [&](bool float_logits = false, auto... more) {
    return results(implementation(
        {options, input, linear_weight, linear_bias, target, weight, return_lse, float_logits},
        more...));
  };
  return run(told...);
}

template <LinearForwardImplementation implementation>
constexpr auto* linear_chunks_entry = &linear_forward_entry<implementation, bool>;
template <LinearForwardWithGradientImplementation implementation>
constexpr auto* linear_with_gradient_entry =
    &linear_forward_entry<implementation, bool, double, Wanted>;

template <auto* implementation>
auto linear_backward_entry(const at::Tensor& grad_loss, const std::optional<at::Tensor>& grad_lse,
                           const at::Tensor& input, const at::Tensor& linear_weight,
                           const std::optional<at::Tensor>& linear_bias, const at::Tensor& target,
                           const at::Tensor& state, const at::Tensor& total_weight,
                           const std::optional<at::Tensor>& weight, int64_t reduction,
                           c10::SymInt ignore_index, double label_smoothing, double z_loss,
                           double logit_scale, std::optional<double> softcap, bool float_logits,
                           Wanted wanted) {
  const CrossEntropyOptions options =
      packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap);
  LinearCrossEntropyArgs args{options, input, linear_weight, linear_bias, target, weight};
  args.float_logits = float_logits;
  return implementation(args, {grad_loss, grad_lse, state, total_weight}, wanted);
}

// Logits in shape and dtype only: one element, expanded.
at::Tensor placeholder_logits(const LinearCrossEntropyArgs& args);
at::ScalarType loss_type(const LinearCrossEntropyArgs& args);

}  // namespace softreg
