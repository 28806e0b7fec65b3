// A linear layer and its loss run below autocast.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace softreg {

// For what the backward pass computes: autocast has had its say in the forward pass.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

}  // namespace softreg
