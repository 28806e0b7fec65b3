// The sets of CPU kernels that were compiled, and how the host picks one.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "cpu/kernels.h"

namespace softreg {

struct KernelSet {
  const char* name;
  const char* capability;  // of the processors it is for, as at::get_cpu_capability has it
  const CrossEntropyKernels<float>& float32;
  const CrossEntropyKernels<double>& float64;
  const CrossEntropyKernels<c10::BFloat16>& bfloat16;
  const CrossEntropyKernels<c10::Half>& float16;

  template <typename T>
  const CrossEntropyKernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return float32;
    } else if constexpr (std::is_same_v<T, double>) {
      return float64;
    } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
      return bfloat16;
    } else {
      return float16;
    }
  }
};

// The generic one, which runs anywhere, first.
c10::ArrayRef<KernelSet> compiled_kernels();

// The set for this machine, chosen once; ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides.
const KernelSet& active_kernels();

}  // namespace softreg
