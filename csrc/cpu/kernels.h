// The kernels of a dtype, which each instruction set has.
#pragma once

#include "core/row_state.h"
#include "kernel_args.h"

namespace softreg {

// The classes [first, first + count): all of them, but where threads share rows whose classes are
// adjacent.
struct Columns {
  int64_t first, count;
};

// Logits that stay in the first-level cache while they are staged.
constexpr int64_t kChunk = 2048;

// Each works on the rows [begin, end).
template <typename T>
using ForwardKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&, int64_t begin,
                                    int64_t end);
// Returns the first bad row, or kNoBadRow.
template <typename T>
using GradientKernel = int64_t(const BackwardArgs<T, Accumulator<T>>&, int64_t begin, int64_t end,
                               Columns);

// The backward pass follows the forward pass, whose state it is given, while rows are at hand.
// `tanhs`: room for those of a row of more than kChunk classes, up to the end of a vector, where
// soft caps take them; null: they are taken twice.
template <typename T>
using ForwardWithGradientKernel = ForwardTotals(const ForwardArgs<T, Accumulator<T>>&,
                                                const BackwardArgs<T, Accumulator<T>>&,
                                                int64_t begin, int64_t end, Accumulator<T>* tanhs);

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

}  // namespace softreg
