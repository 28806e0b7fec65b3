// The table of CPU kernels, one per instruction set, and how the host picks one.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "kernel_args.h"

namespace softreg {

// Each works on the rows [begin, end).
template <typename T>
using ForwardKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&, int64_t begin,
                                    int64_t end);
// Returns the first bad row, or kNoBadRow.
template <typename T>
using GradientKernel = int64_t(const BackwardArgs<T, Accumulator<T>>&, int64_t begin, int64_t end);

// The backward pass follows the forward pass, whose state it is given, while rows are at hand.
template <typename T>
using ForwardWithGradientKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&,
                                                const BackwardArgs<T, Accumulator<T>>&,
                                                int64_t begin, int64_t end);

template <typename T>
struct CrossEntropyKernels {
  ForwardKernel<T>* forward;
  ForwardWithGradientKernel<T>* forward_with_gradient;
  GradientKernel<T>* backward;
  GradientKernel<T>* grad_target;
};

struct KernelSet {
  const char* name;
  CrossEntropyKernels<float> float32;
  CrossEntropyKernels<double> float64;
  CrossEntropyKernels<c10::BFloat16> bfloat16;
  CrossEntropyKernels<c10::Half> float16;

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

extern const KernelSet kernels_generic;
extern const KernelSet kernels_avx2;    // defined where SOFTREG_KERNELS_AVX2 is
extern const KernelSet kernels_avx512;  // defined where SOFTREG_KERNELS_AVX512 is

// The set for this machine, chosen once; ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides.
const KernelSet& active_kernels();

}  // namespace softreg
