#include <ATen/Version.h>

#include <string>

#include "cpu/kernels.h"

namespace softreg {

const KernelSet& active_kernels() {
  static const KernelSet& chosen = []() -> const KernelSet& {
    const std::string capability = at::get_cpu_capability();
#ifdef SOFTREG_KERNELS_AVX512
    if (capability == "AVX512") {
      return kernels_avx512;
    }
#endif
#ifdef SOFTREG_KERNELS_AVX2
    if (capability == "AVX2") {
      return kernels_avx2;
    }
#endif
    return kernels_generic;
  }();
  return chosen;
}

}  // namespace softreg
