// The ops as compositions of ATen's, which know every transform: vmap, forward-mode AD, grad of
// grad. Slower by far, and used only where such a transform asks.
#pragma once

#include "args.h"

namespace softreg {

ForwardImplementation cross_entropy_forward_composite;
BackwardImplementation cross_entropy_backward_composite;
BackwardImplementation cross_entropy_grad_target_composite;

}  // namespace softreg
