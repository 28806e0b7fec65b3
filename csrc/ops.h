// The two ops as C++ functions: each call goes through the dispatcher.
#pragma once

#include "args.h"

namespace softreg {

ForwardImplementation cross_entropy_forward;
BackwardImplementation cross_entropy_backward;

}  // namespace softreg
