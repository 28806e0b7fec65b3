// The gradients of a linear layer and its loss, computed by the forward pass while the logits are
// there, which the backward pass would have to multiply again: for an upstream gradient of 1, or
// the one that is expected. On a CPU the host sees whether that one came, and computes them anew if
// not: their bits are the same either way. On a GPU and in graphs they are multiplied by the one
// that came.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "linear_args.h"

namespace softreg {

// What upstream gradient they are to be computed for. None where they are not: they would be sums
// over rows of unlike factors, they are not all there is to a call (lse, subclasses, modes, hooks),
// wait already that nobody came for, would lose more than the last bit when multiplied (float16,
// whose range is narrow), or the last guesses were wrong.
std::optional<double> expected_upstream(const LinearCrossEntropyArgs& args);

// To wait for the backward pass. `upstream`: what they were computed for.
void save_early(torch::autograd::AutogradContext* ctx, const LayerGradients& gradients,
                double upstream);

// What the backward pass is to return, once: whoever gets them may add to them in place. None where
// none waited, or they are of no use. To be told of every backward pass.
std::optional<LayerGradients> take_early(torch::autograd::AutogradContext* ctx,
                                         const at::Tensor& grad_loss);

}  // namespace softreg
