// Large results in large pages: faulting in 4 KB at a time costs more than filling them.
#pragma once

#include <cstddef>

namespace softreg {

// Asks for huge pages behind [data, data + bytes), which is about to be overwritten as a whole.
// Advice: where the system has none to give, nothing happens.
void prefer_huge_pages(void* data, size_t bytes);

}  // namespace softreg
