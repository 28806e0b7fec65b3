// The gradient with respect to the logits, computed by the forward pass while they are at hand, for
// the upstream gradient that is expected: 1, as a rule. Should another one come, the backward pass
// computes it anew; its bits are the same either way. A CUDA graph keeps the guess of its capture.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "args.h"

namespace softreg {

// What the upstream gradient of a loss that is recorded now is expected to be. None where nothing
// is: the last guesses were wrong, early gradients wait that nobody came for, or these are
// arguments that would gain nothing, or are not all there is to a call (subclasses, modes, hooks).
std::optional<double> expected_upstream(const CrossEntropyArgs& args);

// To be told of each gradient that was computed early.
void note_waiting(const CrossEntropyArgs& args, const at::Tensor& early_gradient);

// Makes what is asked for of the early gradient that waited for this backward pass, if one did;
// false where there is none, or it cannot be. To be told of every backward pass. `upstream`: what
// the early gradient was computed for.
bool correct(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
             const at::Tensor& early_gradient, double upstream);

}  // namespace softreg
