// The table of CPU kernels, one per instruction set, and how the host picks one.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "core/row_state.h"
#include "kernel_args.h"

namespace softreg {

// The classes [first, first + count): all of them, but where threads share rows whose classes are
// adjacent.
struct Columns {
  int64_t first, count;
};

// Each works on the rows [begin, end).
template <typename T>
using ForwardKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&, int64_t begin,
                                    int64_t end);
// Returns the first bad row, or kNoBadRow.
template <typename T>
using GradientKernel = int64_t(const BackwardArgs<T, Accumulator<T>>&, int64_t begin, int64_t end,
                               Columns);

// The backward pass follows the forward pass, whose state it is given, while rows are at hand.
template <typename T>
using ForwardWithGradientKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&,
                                                const BackwardArgs<T, Accumulator<T>>&,
                                                int64_t begin, int64_t end);

// What some columns of a row add to it, and the forward pass of rows from that: `states` holds
// those of row after row, columns_of_row each.
template <typename T>
using ColumnsKernel = RowState<Accumulator<T>>(const ForwardArgs<T, Accumulator<T>>&, int64_t row,
                                               Columns);
template <typename T>
using ForwardOfStatesKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&, int64_t begin,
                                            int64_t end, const RowState<Accumulator<T>>* states,
                                            int64_t columns_of_row);

// What the rows' labels add to total_weight, from the labels alone.
template <typename T>
using TotalWeightKernel = double(const ForwardArgs<T, Accumulator<T>>&, int64_t begin, int64_t end);

template <typename T>
struct CrossEntropyKernels {
  ForwardKernel<T>* forward;
  ForwardWithGradientKernel<T>* forward_with_gradient;
  GradientKernel<T>* backward;
  GradientKernel<T>* grad_target;
  ColumnsKernel<T>* state_of_columns;
  ForwardOfStatesKernel<T>* forward_of_states;
  TotalWeightKernel<T>* total_weight;
};

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

// Defined where they are compiled, by kernels.inc.h.
template <InstructionSet kSet, typename T>
const CrossEntropyKernels<T>& kernels_of();

struct KernelSet {
  const char* name;
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

extern const KernelSet kernels_generic;
extern const KernelSet kernels_avx2;    // defined where SOFTREG_KERNELS_AVX2 is
extern const KernelSet kernels_avx512;  // defined where SOFTREG_KERNELS_AVX512 is

// The set for this machine, chosen once; ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides.
const KernelSet& active_kernels();

}  // namespace softreg
