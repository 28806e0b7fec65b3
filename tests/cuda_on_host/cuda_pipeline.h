// Copies that are made as late as they may be, when a thread waits for them.
#pragma once

#include <cuda_runtime.h>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  cuda_on_host::copy_later({to, from, bytes});
}
inline void __pipeline_commit() { cuda_on_host::end_group_of_copies(); }
inline void __pipeline_wait_prior(size_t but) { cuda_on_host::wait_for_copies(but); }
