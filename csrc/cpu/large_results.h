// Memory for large results, kept for the next one, the largest in huge pages: to fault it in costs
// more than to fill it.
#pragma once

#include <ATen/core/Tensor.h>

namespace softreg {

// `fresh`, a tensor that nothing was written to, on memory that may have been a result before;
// unchanged on other devices.
// What is kept of the largest is the system's to take back at any time (madvise's MADV_FREE). Where
// systems have no such call nothing is kept, and small tensors stay as they are everywhere.
at::Tensor on_kept_memory(at::Tensor fresh);

// Gives back what is kept; returns the bytes.
int64_t release_memory();

}  // namespace softreg
