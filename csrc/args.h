// The op's arguments as one value. The schemas (ops.cpp) spell the list out for the dispatcher; it
// is packed here, on entry, and everything behind the entry passes it on whole.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <limits>
#include <optional>
#include <tuple>
#include <utility>

namespace softreg {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// A soft cap that changes nothing. None in the schemas, for JSON, in which programs are packaged,
// has no infinity.
constexpr double kNoCap = std::numeric_limits<double>::infinity();

// What the schemas list after the tensors.
struct CrossEntropyOptions {
  Reduction reduction;
  c10::SymInt ignore_index;
  double label_smoothing;
  double z_loss;
  double logit_scale;
  double softcap;

  bool caps_logits() const { return softcap != kNoCap; }
  std::optional<double> optional_softcap() const {
    return caps_logits() ? std::make_optional(softcap) : std::nullopt;
  }
};

inline CrossEntropyOptions packed_options(int64_t reduction, c10::SymInt ignore_index,
                                          double label_smoothing, double z_loss, double logit_scale,
                                          std::optional<double> softcap) {
  return {static_cast<Reduction>(reduction), ignore_index, label_smoothing, z_loss, logit_scale,
          softcap.value_or(kNoCap)};
}

struct CrossEntropyArgs : CrossEntropyOptions {
  const at::Tensor& logits;  // (C), (N, C) or (N, C, d1, ..., dK)
  // class indices, shaped like the logits without C, or class probabilities, shaped like the logits
  const at::Tensor& target;
  const std::optional<at::Tensor>& weight;  // (C)
  bool return_lse = false;

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

struct ForwardOutputs {
  at::Tensor loss;  // shaped like the labels, or ()
  at::Tensor lse;   // shaped like the labels, or (0) where it is not asked for
  // A column for each row of N d1 ... dK: the maximum and sum_c exp(x_c - maximum), and with
  // probabilities the sum of their coefficients.
  at::Tensor state;
  at::Tensor total_weight;  // (), what the mean divides by
};

struct ForwardWithGradientOutputs : ForwardOutputs {
  at::Tensor grad_logits;
};

// What the backward pass is given besides.
struct CrossEntropyGradArgs {
  const at::Tensor& grad_loss;                // shaped like the loss
  const std::optional<at::Tensor>& grad_lse;  // shaped like lse
  const at::Tensor& state;                    // (2, rows), or (3, rows) with probabilities
  const at::Tensor& total_weight;             // ()

  bool has_grad_lse() const { return grad_lse.has_value() && grad_lse->defined(); }
};

using ForwardImplementation = ForwardOutputs(const CrossEntropyArgs&);
// The loss, and its gradient for an upstream gradient whose elements are all `grad_loss`.
using ForwardWithGradientImplementation = ForwardWithGradientOutputs(const CrossEntropyArgs&,
                                                                     double grad_loss);
using BackwardImplementation = at::Tensor(const CrossEntropyArgs&, const CrossEntropyGradArgs&);
// The backward pass with the gradient in the logits' place.
using InPlaceImplementation = void(const CrossEntropyArgs&, const CrossEntropyGradArgs&);
// Makes of grad_logits, the gradient for an upstream gradient whose elements are all `guess`, what
// the backward pass is to return. All elements of grad_loss are one in memory. `report`, two
// doubles on the host where the device can write to them: the first is set to that element if the
// guess was wrong, the second if it was right, when the device gets there.
using CorrectionImplementation = void(const CrossEntropyArgs&, const CrossEntropyGradArgs&,
                                      const at::Tensor& grad_logits, double guess,
                                      const at::Tensor& report);

inline auto results(ForwardOutputs out) {
  return std::make_tuple(std::move(out.loss), std::move(out.lse), std::move(out.state),
                         std::move(out.total_weight));
}

inline auto results(const ForwardWithGradientOutputs& out) {
  return std::make_tuple(out.loss, out.lse, out.state, out.total_weight, out.grad_logits);
}

// What is registered for the forward ops, whose lists of arguments end with `more`, and for the
// backward ones.
template <auto* implementation, typename... More>
auto forward_entry(const at::Tensor& logits, const at::Tensor& target,
                   const std::optional<at::Tensor>& weight, int64_t reduction,
                   c10::SymInt ignore_index, double label_smoothing, double z_loss,
                   double logit_scale, std::optional<double> softcap, bool return_lse,
                   More... more) {
  const CrossEntropyOptions options =
      packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap);
  return results(implementation({options, logits, target, weight, return_lse}, more...));
}

template <auto* implementation, typename... More>
auto backward_entry(const at::Tensor& grad_loss, const std::optional<at::Tensor>& grad_lse,
                    const at::Tensor& logits, const at::Tensor& target, const at::Tensor& state,
                    const at::Tensor& total_weight, const std::optional<at::Tensor>& weight,
                    int64_t reduction, c10::SymInt ignore_index, double label_smoothing,
                    double z_loss, double logit_scale, std::optional<double> softcap,
                    More... more) {
  const CrossEntropyOptions options =
      packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap);
  return implementation({options, logits, target, weight},
                        {grad_loss, grad_lse, state, total_weight}, more...);
}

template <ForwardWithGradientImplementation implementation>
constexpr auto* forward_with_gradient_entry = &forward_entry<implementation, double>;
template <CorrectionImplementation implementation>
constexpr auto* correction_entry =
    &backward_entry<implementation, const at::Tensor&, double, const at::Tensor&>;

c10::SymDimVector loss_shape(const CrossEntropyArgs& args);
c10::SymDimVector row_shape(const CrossEntropyArgs& args);  // a value for each row
c10::SymDimVector state_shape(const CrossEntropyArgs& args);

// Uninitialised results of the right shape, dtype and device, real or meta.
ForwardOutputs empty_forward_outputs(const CrossEntropyArgs& args);
at::Tensor empty_grad_logits(const CrossEntropyArgs& args);
at::Tensor empty_grad_target(const CrossEntropyArgs& args);

}  // namespace softreg
