// The checks of the op's arguments, the same for every device and for meta tensors. Exception types
// are those of torch.nn.functional.cross_entropy. Labels are checked by the kernels, as they are
// read.
#pragma once

#include "args.h"
#include "linear_args.h"

namespace softreg {

void check(const CrossEntropyArgs& args);
void check(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad);
void check_in_place(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad);
void check_grad_target(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad);
void check_correction(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                      const at::Tensor& grad_logits, const at::Tensor& report);

void check_layer(const LinearCrossEntropyArgs& args);  // without the loss's own arguments
void check_chunks(const LinearCrossEntropyArgs& args);
void check_chunks(const LinearCrossEntropyArgs& args, const CrossEntropyGradArgs& grad);

// The IndexError for a label out of range.
[[noreturn]] void throw_bad_label(const CrossEntropyArgs& args, int64_t row, int64_t label);

}  // namespace softreg
