#include "cpu/active_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace softreg {

namespace {

template <InstructionSet kSet>
KernelSet kernel_set(const char* name, const char* capability) {
  return {name,
          capability,
          kernels_of<kSet, float>(),
          kernels_of<kSet, double>(),
          kernels_of<kSet, c10::BFloat16>(),
          kernels_of<kSet, c10::Half>()};
}

}  // namespace

c10::ArrayRef<KernelSet> compiled_kernels() {
  static const KernelSet compiled[] = {
      kernel_set<InstructionSet::kGeneric>("generic", "DEFAULT"),
#ifdef SOFTREG_KERNELS_AVX2
      kernel_set<InstructionSet::kAvx2>("avx2", "AVX2"),
#endif
#ifdef SOFTREG_KERNELS_AVX512
      kernel_set<InstructionSet::kAvx512>("avx512", "AVX512"),
#endif
  };
  return compiled;
}

const KernelSet& active_kernels() {
  static const KernelSet& chosen = []() -> const KernelSet& {
    const std::string capability = at::get_cpu_capability();
    for (const KernelSet& kernels : compiled_kernels()) {
      if (capability == kernels.capability) {
        return kernels;
      }
    }
    return compiled_kernels().front();
  }();
  return chosen;
}

}  // namespace softreg
