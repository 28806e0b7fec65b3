// The loss of a linear layer's output on any device, without all of its logits at a time.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "linear_args.h"

namespace softreg {

// Bytes of logits that are there at a time, and of their gradient, in the same place; of a large
// layer as many more as save time.
int64_t chunk_bytes(const at::Tensor& input);
// Up to which the two ops apart are as good: on a CPU one chunk gains by the place of its gradient.
int64_t few_bytes(const at::Tensor& input);
// For tests, which would be slow with chunks of full size; 0: as before. Returns what was set.
int64_t set_chunk_bytes(int64_t bytes);

// For what the backward pass computes: autocast has had its say in the forward pass.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

}  // namespace softreg
