#include <ATen/Version.h>

#include <string>

#include "cpu/kernels.h"

namespace softreg {

namespace {

template <InstructionSet kSet>
KernelSet kernel_set(const char* name) {
  return {name, kernels_of<kSet, float>(), kernels_of<kSet, double>(),
          kernels_of<kSet, c10::BFloat16>(), kernels_of<kSet, c10::Half>()};
}

}  // namespace

const KernelSet kernels_generic = kernel_set<InstructionSet::kGeneric>("generic");
#ifdef SOFTREG_KERNELS_AVX2
const KernelSet kernels_avx2 = kernel_set<InstructionSet::kAvx2>("avx2");
#endif
#ifdef SOFTREG_KERNELS_AVX512
const KernelSet kernels_avx512 = kernel_set<InstructionSet::kAvx512>("avx512");
#endif

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
