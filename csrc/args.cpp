#include "args.h"

#include <ATen/ops/empty.h>

namespace softreg {

ForwardOutputs empty_forward_outputs(const CrossEntropyArgs& args) {
  const bool batched = args.logits.dim() > 1;
  const c10::SymInt rows = batched ? args.logits.sym_size(0) : c10::SymInt(1);
  const auto options = args.logits.options();
  const auto accumulator =
      options.dtype(args.logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const bool per_row = args.reduction == Reduction::kNone && batched;
  return {at::empty_symint(per_row ? c10::SymDimVector{rows} : c10::SymDimVector{}, options),
          at::empty_symint({c10::SymInt(2), rows}, accumulator),
          at::empty({}, options.dtype(at::kDouble))};
}

at::Tensor empty_grad_logits(const CrossEntropyArgs& args) {
  return at::empty_symint(args.logits.sym_sizes(), args.logits.options());
}

}  // namespace softreg
