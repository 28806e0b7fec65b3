#include "args.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "linear_args.h"
#include "row_matrix.h"

namespace softreg {

at::ScalarType CrossEntropyArgs::result_type() const {
  at::ScalarType type = logits.scalar_type();
  if (has_probabilities()) {
    type = c10::promoteTypes(type, target.scalar_type());
    type = has_weight() ? c10::promoteTypes(type, weight->scalar_type()) : type;
  }
  return type;
}

c10::SymDimVector row_shape(const CrossEntropyArgs& args) {
  c10::SymDimVector shape(args.logits.sym_sizes());
  shape.erase(shape.begin() + args.class_dim());
  return shape;
}

c10::SymDimVector loss_shape(const CrossEntropyArgs& args) {
  return args.has_row_losses() ? row_shape(args) : c10::SymDimVector();
}

c10::SymDimVector state_shape(const CrossEntropyArgs& args) {
  return {c10::SymInt(args.has_probabilities() ? 3 : 2), row_count(args.logits)};
}

ForwardOutputs empty_forward_outputs(const CrossEntropyArgs& args) {
  const auto options = args.logits.options().dtype(args.result_type());
  const auto accumulated = options.dtype(accumulator_type(args.result_type()));
  return {at::empty_symint(loss_shape(args), options),
          args.return_lse ? at::empty_symint(row_shape(args), accumulated)
                          : at::empty({0}, accumulated),
          at::empty_symint(state_shape(args), accumulated),
          at::empty({}, options.dtype(at::kDouble))};
}

at::Tensor empty_grad_logits(const CrossEntropyArgs& args) { return at::empty_like(args.logits); }

at::Tensor placeholder_logits(const LinearCrossEntropyArgs& args) {
  return at::empty({}, args.input.options().dtype(args.logits_type()))
      .expand_symint(args.logits_shape());
}

at::ScalarType loss_type(const LinearCrossEntropyArgs& args) {
  return args.with_logits(placeholder_logits(args)).result_type();
}

at::Tensor empty_grad_target(const CrossEntropyArgs& args) { return at::empty_like(args.target); }

}  // namespace softreg
