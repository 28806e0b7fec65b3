#include "checks.h"

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <cmath>

#include "row_matrix.h"

namespace softreg {
namespace {

void check_input_type(at::ScalarType dtype) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      "cross_entropy: input must be float32, float64, bfloat16 or float16, but got ", dtype);
}

void check_logits(const at::Tensor& logits) {
  check_input_type(logits.scalar_type());
  TORCH_CHECK(logits.dim() > 0, "cross_entropy: input must have a class dimension, but got shape ",
              logits.sym_sizes());
}

// Sizes that are known only when a graph runs are taken to be equal, which is checked then.
bool equal(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

bool surely_equal(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).guard_or_false(__FILE__, __LINE__);
}

template <typename Equal>
bool all_equal(c10::SymIntArrayRef a, c10::SymIntArrayRef b, const Equal& equal) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
}

bool has_shape(const at::Tensor& x, c10::SymIntArrayRef shape) {
  return all_equal(x.sym_sizes(), shape, equal);
}

// F.cross_entropy takes a target of the logits' shape for probabilities, any other for labels.
bool has_shape_of_probabilities(const CrossEntropyArgs& args) {
  return all_equal(args.target.sym_sizes(), args.logits.sym_sizes(),
                   args.has_probabilities() ? equal : surely_equal);
}

void check_probabilities(const CrossEntropyArgs& args) {
  TORCH_CHECK(args.has_probabilities(), "cross_entropy: target has input's shape ",
              args.target.sym_sizes(),
              ", so it must hold class probabilities of a floating point type, but got ",
              args.target.scalar_type());
  TORCH_SYM_CHECK(args.ignore_index.sym_lt(0),
                  "cross_entropy: ignore_index must be negative where target holds ",
                  "class probabilities, but got ", args.ignore_index);
}

void check_labels(const at::Tensor& logits, const at::Tensor& target) {
  if (logits.dim() > 1) {
    TORCH_CHECK_VALUE(target.dim() > 0 && equal(target.sym_size(0), logits.sym_size(0)),
                      "cross_entropy: input has batch size ", logits.sym_size(0),
                      ", but target has shape ", target.sym_sizes());
  }
  const auto dtype = target.scalar_type();
  TORCH_CHECK(
      dtype == at::kLong || dtype == at::kInt || dtype == at::kShort || dtype == at::kByte,
      "cross_entropy: target of class indices must be int64, int32, int16 or uint8, but got ",
      dtype);
  if (logits.dim() == 1) {
    TORCH_CHECK(target.dim() <= 1, "cross_entropy: target must be 0D or 1D for input of shape ",
                logits.sym_sizes(), ", but got shape ", target.sym_sizes());
    TORCH_CHECK_VALUE(equal(target.sym_numel(), 1), "cross_entropy: input of shape ",
                      logits.sym_sizes(), " takes one label, but target has shape ",
                      target.sym_sizes());
    return;
  }
  c10::SymDimVector shape(logits.sym_sizes());
  shape.erase(shape.begin() + 1);
  TORCH_CHECK(has_shape(target, shape), "cross_entropy: target must have shape ",
              c10::SymIntArrayRef(shape), " for input of shape ", logits.sym_sizes(),
              ", but got shape ", target.sym_sizes());
}

void check_target(const CrossEntropyArgs& args) {
  TORCH_CHECK(args.target.device() == args.logits.device(), "cross_entropy: target is on ",
              args.target.device(), ", but input is on ", args.logits.device());
  if (has_shape_of_probabilities(args)) {
    check_probabilities(args);
  } else {
    check_labels(args.logits, args.target);
  }
}

void check_weight(const CrossEntropyArgs& args, const at::Tensor& weight) {
  const at::Tensor& logits = args.logits;
  const c10::SymInt classes = logits.sym_size(args.class_dim());
  TORCH_CHECK(weight.device() == logits.device(), "cross_entropy: weight is on ", weight.device(),
              ", but input is on ", logits.device());
  TORCH_CHECK(args.has_probabilities() || weight.scalar_type() == logits.scalar_type(),
              "cross_entropy: weight must have input's dtype ", logits.scalar_type(), ", but got ",
              weight.scalar_type());
  // Of K-dimensional logits' labels F.cross_entropy takes (1, C), (C, 1) and the like besides.
  const bool takes_any_shape =
      logits.dim() > 2 && !args.has_probabilities() && args.label_smoothing == 0;
  TORCH_CHECK((weight.dim() == 1 || takes_any_shape) && equal(weight.sym_numel(), classes),
              "cross_entropy: weight must have one entry for each of the ", classes,
              " classes, but got shape ", weight.sym_sizes());
}

void check_factors(const CrossEntropyOptions& options) {
  TORCH_CHECK(options.label_smoothing >= 0 && options.label_smoothing <= 1,
              "cross_entropy: label_smoothing must be between 0 and 1, but got ",
              options.label_smoothing);
  TORCH_CHECK(options.z_loss >= 0 && std::isfinite(options.z_loss),
              "cross_entropy: z_loss must be 0 or positive and finite, but got ", options.z_loss);
  TORCH_CHECK(std::isfinite(options.logit_scale),
              "cross_entropy: logit_scale must be finite, but got ", options.logit_scale);
  TORCH_CHECK(options.softcap > 0, "cross_entropy: softcap must be positive, but got ",
              options.softcap);
}

void check_tensor(const at::Tensor& tensor, const char* name, const CrossEntropyArgs& args,
                  c10::SymIntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK(has_shape(tensor, shape) && tensor.scalar_type() == dtype &&
                  tensor.device() == args.logits.device(),
              "cross_entropy: ", name, " must be ", dtype, " of shape ", shape, " on ",
              args.logits.device(), ", but got ", tensor.scalar_type(), " of shape ",
              tensor.sym_sizes(), " on ", tensor.device());
}

}  // namespace

void check_layer(const LinearCrossEntropyArgs& args) {
  const at::Tensor &input = args.input, &weight = args.linear_weight;
  check_input_type(input.scalar_type());
  TORCH_CHECK(input.dim() == 1 || input.dim() == 2,
              "linear_cross_entropy: input must have shape (N, features) or (features), but got ",
              input.sym_sizes());
  TORCH_CHECK(weight.dim() >= 2,
              "linear_cross_entropy: linear_weight must have shape (classes, ..., features), "
              "but got ",
              weight.sym_sizes());
  TORCH_CHECK(equal(input.sym_size(-1), weight.sym_size(-1)), "linear_cross_entropy: input has ",
              input.sym_size(-1), " features, but linear_weight takes ", weight.sym_size(-1));
  TORCH_CHECK(input.dim() == 2 || weight.dim() == 2,
              "linear_cross_entropy: linear_weight of shape ", weight.sym_sizes(),
              " takes input of shape (N, features), but got ", input.sym_sizes());
  if (args.has_bias()) {
    const at::Tensor& bias = *args.linear_bias;
    const auto shape = weight.sym_sizes().slice(0, weight.dim() - 1);
    TORCH_CHECK(has_shape(bias, shape), "linear_cross_entropy: linear_bias must have shape ", shape,
                ", but got ", bias.sym_sizes());
  }
  const auto check_like_input = [&](const at::Tensor& x, const char* name) {
    TORCH_CHECK(x.scalar_type() == input.scalar_type(), "linear_cross_entropy: ", name,
                " must have input's dtype ", input.scalar_type(), ", but got ", x.scalar_type());
    TORCH_CHECK(x.device() == input.device(), "linear_cross_entropy: ", name, " is on ", x.device(),
                ", but input is on ", input.device());
  };
  check_like_input(args.linear_weight, "linear_weight");
  if (args.has_bias()) {
    check_like_input(*args.linear_bias, "linear_bias");
  }
}

void check_chunks(const LinearCrossEntropyArgs& args) {
  check_layer(args);
  check(args.with_logits(placeholder_logits(args)));
  TORCH_CHECK(args.input.dim() == 2,
              "linear_cross_entropy: only input of shape (N, features) comes in chunks, but got ",
              args.input.sym_sizes());
}

void check_chunks(const LinearCrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  check_chunks(args);
  check(args.with_logits(placeholder_logits(args)), grad);
}

void check(const CrossEntropyArgs& args) {
  check_logits(args.logits);
  check_target(args);
  if (args.has_weight()) {
    check_weight(args, *args.weight);
  }
  const auto reduction = static_cast<int64_t>(args.reduction);
  TORCH_CHECK_VALUE(reduction >= 0 && reduction <= 2,
                    "cross_entropy: reduction must be 0 (none), 1 (mean) or 2 (sum), but got ",
                    reduction);
  check_factors(args);
}

void check(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  check(args);
  const at::ScalarType type = args.result_type();
  check_tensor(grad.grad_loss, "grad_loss", args, loss_shape(args), type);
  if (grad.has_grad_lse()) {
    check_tensor(*grad.grad_lse, "grad_lse", args, row_shape(args), accumulator_type(type));
  }
  check_tensor(grad.state, "state", args, state_shape(args), accumulator_type(type));
  check_tensor(grad.total_weight, "total_weight", args, {}, at::kDouble);
  TORCH_CHECK(grad.state.is_contiguous(),
              "cross_entropy: state must be contiguous, but has strides ",
              grad.state.sym_strides());
}

void check_in_place(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  check(args, grad);
  at::assert_no_internal_overlap(args.logits);
}

void check_grad_target(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  check(args, grad);
  TORCH_CHECK(args.has_probabilities(), "cross_entropy: target of ", args.target.scalar_type(),
              " class indices has no gradient");
}

void check_correction(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                      const at::Tensor& grad_logits, const at::Tensor& report) {
  check(args, grad);
  check_tensor(grad_logits, "grad_input", args, args.logits.sym_sizes(), args.logits.scalar_type());
  TORCH_CHECK(is_expanded_scalar(grad.grad_loss) && grad.grad_loss.sym_numel() > 0,
              "cross_entropy: grad_loss must be one number for all rows, but has strides ",
              grad.grad_loss.sym_strides());
  TORCH_CHECK(report.is_contiguous() && report.sym_numel() == 2 &&
                  report.scalar_type() == at::kDouble && (report.is_cpu() || report.is_meta()),
              "cross_entropy: report must be two Doubles on the host, but got ",
              report.scalar_type(), " of shape ", report.sym_sizes(), " on ", report.device());
}

void throw_bad_label(const CrossEntropyArgs& args, int64_t row, int64_t label) {
  TORCH_CHECK_INDEX(false, "cross_entropy: target ", label, " at row ", row,
                    " is out of bounds for ", args.logits.size(args.class_dim()),
                    " classes (ignore_index is ", args.ignore_index, ")");
}

}  // namespace softreg
