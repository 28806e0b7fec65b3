// The ops as C++ functions: each call goes through the dispatcher.
#pragma once

#include "args.h"
#include "linear_args.h"

namespace softreg {

ForwardImplementation cross_entropy_forward;
ForwardWithGradientImplementation cross_entropy_forward_with_gradient;
BackwardImplementation cross_entropy_backward;
// Writes over the logits, below autograd alone.
InPlaceImplementation cross_entropy_backward_in_place;
// The gradient with respect to a target of class probabilities.
BackwardImplementation cross_entropy_grad_target;
CorrectionImplementation cross_entropy_correction;
LinearForwardImplementation linear_cross_entropy;  // whole or in chunks
LinearForwardImplementation linear_cross_entropy_forward;
LinearForwardWithGradientImplementation linear_cross_entropy_forward_with_gradient;
LinearBackwardImplementation linear_cross_entropy_backward;

}  // namespace softreg
