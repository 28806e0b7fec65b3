// The gradient with respect to the logits, computed by the forward pass while they and their
// exponentials are at hand, for the upstream gradient that the last backward passes had: 1, as a
// rule. Should another one come, it is computed as ever; its bits are the same either way.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "args.h"

namespace softreg {

// What the upstream gradient of a loss that is recorded now is expected to be. None where nothing
// is: the last two differed, early gradients wait that nobody came for, or these are arguments that
// would gain nothing, or are not all there is to a call (subclasses, modes, hooks).
std::optional<double> expected_upstream(const CrossEntropyArgs& args);

// To be told of each gradient that was computed early.
void note_waiting(const at::Tensor& early_gradient);

// To be told of each backward pass, and of the early gradient that waited for it, if one did:
// returns `grad_loss` as a number, and remembers it, where it could have been expected.
std::optional<double> upstream_that_came(const CrossEntropyArgs& args, const at::Tensor& grad_loss,
                                         const at::Tensor& early_gradient);

}  // namespace softreg
