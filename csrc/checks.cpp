#include "checks.h"

namespace softreg {
namespace {

void check_logits(const at::Tensor& logits) {
  const auto dtype = logits.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      "cross_entropy: input must be float32, float64, bfloat16 or float16, but got ", dtype);
  TORCH_CHECK(logits.dim() > 0, "cross_entropy: input must have a class dimension, but got shape ",
              logits.sym_sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(
      logits.dim() <= 2,
      "cross_entropy: K-dimensional input (N, C, d1, ..., dK) is not covered yet, ",
      "only (N, C) and (C), but got shape ", logits.sym_sizes());
}

void check_target(const at::Tensor& logits, const at::Tensor& target) {
  TORCH_CHECK(target.device() == logits.device(), "cross_entropy: target is on ", target.device(),
              ", but input is on ", logits.device());
  const auto dtype = target.scalar_type();
  if (target.dim() == logits.dim() && target.sym_sizes() == logits.sym_sizes()) {
    // Shaped like the logits, so probabilities: F.cross_entropy tells the two kinds apart this way.
    TORCH_CHECK(at::isFloatingType(dtype), "cross_entropy: target has input's shape ",
                target.sym_sizes(),
                ", so holds class probabilities of a floating point type, but got ", dtype);
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "cross_entropy: class probabilities as target are not covered yet, only class indices");
  }
  TORCH_CHECK(dtype == at::kLong || dtype == at::kByte,
              "cross_entropy: target of class indices must be int64 or uint8, but got ", dtype);
  TORCH_CHECK(target.dim() <= 1, "cross_entropy: target must be 0D or 1D for input of shape ",
              logits.sym_sizes(), ", but got shape ", target.sym_sizes());
  if (logits.dim() == 1) {
    TORCH_CHECK_VALUE(target.sym_numel() == 1, "cross_entropy: input of shape ", logits.sym_sizes(),
                      " takes one label, but target has shape ", target.sym_sizes());
  } else {
    TORCH_CHECK_VALUE(target.dim() == 1 && target.sym_size(0) == logits.sym_size(0),
                      "cross_entropy: input has batch size ", logits.sym_size(0),
                      ", but target has shape ", target.sym_sizes());
  }
}

void check_weight(const at::Tensor& logits, const at::Tensor& weight) {
  TORCH_CHECK(weight.device() == logits.device(), "cross_entropy: weight is on ", weight.device(),
              ", but input is on ", logits.device());
  TORCH_CHECK(weight.scalar_type() == logits.scalar_type(),
              "cross_entropy: weight must have input's dtype ", logits.scalar_type(), ", but got ",
              weight.scalar_type());
  TORCH_CHECK(weight.dim() == 1 && weight.sym_numel() == logits.sym_size(-1),
              "cross_entropy: weight must have one entry for each of the ", logits.sym_size(-1),
              " classes, but got shape ", weight.sym_sizes());
}

}  // namespace

void check(const CrossEntropyArgs& args) {
  check_logits(args.logits);
  check_target(args.logits, args.target);
  if (args.has_weight()) {
    check_weight(args.logits, *args.weight);
  }
  const auto reduction = static_cast<int64_t>(args.reduction);
  TORCH_CHECK_VALUE(reduction >= 0 && reduction <= 2,
                    "cross_entropy: reduction must be 0 (none), 1 (mean) or 2 (sum), but got ",
                    reduction);
  TORCH_CHECK(args.label_smoothing >= 0 && args.label_smoothing <= 1,
              "cross_entropy: label_smoothing must be between 0 and 1, but got ",
              args.label_smoothing);
}

void check(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
  check(args);
  const bool batched = args.logits.dim() > 1;
  const bool per_row = args.reduction == Reduction::kNone && batched;
  const c10::SymInt rows = batched ? args.logits.sym_size(0) : c10::SymInt(1);
  TORCH_CHECK(
      grad.grad_output.dim() == (per_row ? 1 : 0) &&
          (!per_row || grad.grad_output.sym_size(0) == rows) &&
          grad.grad_output.scalar_type() == args.logits.scalar_type(),
      "cross_entropy: grad_output must be shaped like the loss and have its dtype, but got ",
      grad.grad_output.scalar_type(), " of shape ", grad.grad_output.sym_sizes());
  const auto accumulator = args.logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(grad.lse.dim() == 2 && grad.lse.sym_size(0) == 2 && grad.lse.sym_size(1) == rows &&
                  grad.lse.scalar_type() == accumulator && grad.lse.is_contiguous(),
              "cross_entropy: lse must be the contiguous (2, ", rows,
              ") tensor of the forward pass, ", "but got ", grad.lse.scalar_type(), " of shape ",
              grad.lse.sym_sizes());
  TORCH_CHECK(
      grad.total_weight.dim() == 0 && grad.total_weight.scalar_type() == at::kDouble,
      "cross_entropy: total_weight must be the float64 scalar of the forward pass, but got ",
      grad.total_weight.scalar_type(), " of shape ", grad.total_weight.sym_sizes());
  for (const at::Tensor* tensor : {&grad.grad_output, &grad.lse, &grad.total_weight}) {
    TORCH_CHECK(tensor->device() == args.logits.device(), "cross_entropy: grad_output, lse and ",
                "total_weight must be on ", args.logits.device(), ", but got ", tensor->device());
  }
}

void throw_bad_label(const CrossEntropyArgs& args, int64_t row, int64_t label) {
  TORCH_CHECK_INDEX(false, "cross_entropy: target ", label, " at row ", row,
                    " is out of bounds for ", args.logits.size(-1), " classes (ignore_index is ",
                    args.ignore_index, ")");
}

}  // namespace softreg
