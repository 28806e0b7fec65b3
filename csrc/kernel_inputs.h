// From tensors to what the kernels are given, for the hosts of every device.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "args.h"
#include "row_matrix.h"

#define SOFTREG_DISPATCH_LOGITS(dtype, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dtype, name, __VA_ARGS__)

namespace softreg {

// The sum of the class weights, a scalar of their dtype and where they are, taken in double: how it
// costs least is each device's own.
using WeightSum = at::Tensor(const at::Tensor& weight);

// The tensors behind the pointers of CrossEntropyRows, made fit for the kernels where they are not.
template <typename T>
class KernelInputs {
 public:
  using A = Accumulator<T>;

  KernelInputs(const CrossEntropyArgs& args, WeightSum* weight_sum) {
    rows_.rows = row_count(args.logits).expect_int();
    rows_.classes = args.logits.size(args.class_dim());
    rows_.on_target = static_cast<A>(1 - args.label_smoothing);
    rows_.per_class = static_cast<A>(args.label_smoothing / rows_.classes);
    rows_.z_loss = static_cast<A>(args.z_loss);
    rows_.transform = {static_cast<A>(args.logit_scale), static_cast<A>(args.softcap)};
    rows_.logits = fit(args.logits, logits_);
    rows_.labels = {nullptr, 0, 0, args.ignore_index.expect_int()};
    rows_.is_distribution = args.has_probabilities();
    if (args.has_probabilities()) {
      rows_.probabilities = fit(args.target, target_);
    } else {
      target_ = args.target.dim() > 1 ? args.target.contiguous() : args.target;
      TORCH_CHECK(target_.unsafeGetTensorImpl()->storage_initialized(),
                  "cross_entropy: target has elements, but its data is not allocated");
      rows_.labels.data = target_.const_data_ptr();
      rows_.labels.stride = item_stride(target_);
      rows_.labels.bytes = target_.element_size();
    }
    rows_.weight = nullptr;
    rows_.weight_sum = nullptr;
    if (args.has_weight()) {
      const auto accumulated = c10::CppTypeToScalarType<A>::value;
      weight_ = args.weight->to(accumulated).contiguous();
      rows_.weight = weight_.const_data_ptr<A>();
      if (args.label_smoothing > 0) {
        weight_sum_ = weight_sum(weight_);
        rows_.weight_sum = weight_sum_.const_data_ptr<A>();
      }
    }
  }

  const CrossEntropyRows<T, A>& rows() const { return rows_; }

 private:
  static RowMatrix<const T> fit(const at::Tensor& given, at::Tensor& used) {
    used = given.to(c10::CppTypeToScalarType<T>::value);
    if (!row_strides(used)) {
      used = used.contiguous();
    }
    return row_matrix(*row_strides(used), used.const_data_ptr<T>());
  }

  at::Tensor logits_, target_, weight_, weight_sum_;
  CrossEntropyRows<T, A> rows_;
};

// The pointers of the forward pass, all but those to the totals.
template <typename T>
ForwardArgs<T, Accumulator<T>> forward_args(const CrossEntropyArgs& args,
                                            const KernelInputs<T>& inputs,
                                            const ForwardOutputs& outputs) {
  using A = Accumulator<T>;
  const int64_t rows = inputs.rows().rows;
  A* state = outputs.state.mutable_data_ptr<A>();
  return {inputs.rows(),
          state,
          state + rows,
          args.has_probabilities() ? state + 2 * rows : nullptr,
          args.return_lse ? outputs.lse.mutable_data_ptr<A>() : nullptr,
          args.reduction == Reduction::kNone ? outputs.loss.mutable_data_ptr<T>() : nullptr};
}

// The pointers for a gradient with one upstream gradient for all rows, and with the state that the
// forward pass leaves.
template <typename T, typename A = Accumulator<T>>
BackwardArgs<T, A> backward_args(const ForwardArgs<T, A>& forward, A grad_reduced,
                                 RowMatrix<T> grad) {
  return {forward,      forward.row_max, forward.sum, forward.coefficient_sum, nullptr, 0, nullptr,
          grad_reduced, nullptr,         grad};
}

// A tensor that the kernels can write a gradient to: `result`, or where its layout or dtype is not
// one of theirs, another that is copied there at last.
template <typename T>
class WrittenGradient {
 public:
  explicit WrittenGradient(const at::Tensor& result) : result_(result) {
    const auto type = c10::CppTypeToScalarType<T>::value;
    const bool direct = result.scalar_type() == type && row_strides(result).has_value();
    written_ = direct ? result : at::empty(result.sizes(), result.options().dtype(type));
  }

  RowMatrix<T> matrix() const {
    return row_matrix(*row_strides(written_), written_.mutable_data_ptr<T>());
  }

  void copy_to_result() const {
    if (!written_.is_same(result_)) {
      result_.copy_(written_);
    }
  }

 private:
  const at::Tensor& result_;
  at::Tensor written_;
};

// The tensors behind the pointers of BackwardArgs, for a gradient that goes into `result`.
template <typename T>
class GradientTensors {
 public:
  using A = Accumulator<T>;

  GradientTensors(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                  const at::Tensor& result, WeightSum* weight_sum)
      : inputs_(args, weight_sum), grad_loss_(grad.grad_loss), written_(result) {
    // One stride for all rows: loss.sum() sends an expanded scalar, others may need a copy.
    if (grad_loss_.dim() > 1 && !is_expanded_scalar(grad_loss_)) {
      grad_loss_ = grad_loss_.contiguous();
    }
    if (grad.has_grad_lse()) {
      grad_lse_ = grad.grad_lse->contiguous();
    }
    const int64_t rows = inputs_.rows().rows;
    const A* state = grad.state.const_data_ptr<A>();
    const bool is_mean = args.reduction == Reduction::kMean;
    kernel_args_ = {inputs_.rows(),
                    state,
                    state + rows,
                    args.has_probabilities() ? state + 2 * rows : nullptr,
                    grad_loss_.const_data_ptr<T>(),
                    item_stride(grad_loss_),
                    is_mean ? grad.total_weight.const_data_ptr<double>() : nullptr,
                    A(0),
                    grad_lse_.defined() ? grad_lse_.const_data_ptr<A>() : nullptr,
                    written_.matrix()};
  }

  const BackwardArgs<T, A>& kernel_args() const { return kernel_args_; }
  bool is_reduced() const { return grad_loss_.dim() == 0; }

  void copy_to_result() const { written_.copy_to_result(); }

 private:
  KernelInputs<T> inputs_;
  at::Tensor grad_loss_, grad_lse_;
  WrittenGradient<T> written_;
  BackwardArgs<T, A> kernel_args_;
};

}  // namespace softreg
