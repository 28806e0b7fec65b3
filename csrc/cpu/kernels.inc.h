// The kernels of one instruction set, compiled by the kernels_*.cpp beside this file: for a dtype
// at a time, SOFTREG_DTYPE, so that compilers run side by side, or else for all. No STL with code
// of its own, no static initialisers: see kernels_vec.h.

#include "cpu/kernels_vec_exp.h"
// after the vectors, whose overloads the formulas call
#include "cpu/kernels.h"
#include "cpu/kernels_along_row.h"
#include "cpu/kernels_along_rows_together.h"
#include "cpu/kernels_rows_in_lanes.h"

namespace softreg {
namespace {

// Vectors go along a row where its classes are adjacent. Rows of a tile of classes, or fewer, are
// brought side by side all the same, for vectors across rows have no lanes to fold.
template <typename T, typename A>
bool goes_along_row(const CrossEntropyRows<T, A>& args) {
  return args.classes > kTileClasses && args.classes_adjacent();
}

// Along many rows together, then.
template <typename T, typename A>
bool goes_together(const CrossEntropyRows<T, A>& args) {
  return goes_along_row(args) && args.classes <= kMostTogether<T>;
}

template <typename T>
ForwardTotals forward(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  if constexpr (kMostTogether<T> > 0) {
    if (goes_together(args)) {
      return forward_together(args, begin, end);
    }
  }
  return goes_along_row(args) ? forward_along_row(args, begin, end)
                              : forward_rows_in_lanes(args, begin, end);
}

template <typename T>
int64_t backward(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end,
                 Columns columns) {
  if (!goes_along_row(args) || !args.grad.classes_adjacent()) {
    return backward_rows_in_lanes(args, begin, end);
  }
  if constexpr (kMostTogether<T> > 0) {
    if (goes_together(args)) {
      return backward_together(args, begin, end);
    }
  }
  return backward_along_row(args, begin, end, columns);
}

// In one where the forward pass takes the same way alone, for its results are to have the same
// bits.
template <typename T>
ForwardTotals forward_with_gradient(const ForwardArgs<T, Accumulator<T>>& forward_args,
                                    const BackwardArgs<T, Accumulator<T>>& backward_args,
                                    int64_t begin, int64_t end, Accumulator<T>* tanhs) {
  const int64_t classes = forward_args.classes;
  const auto& grad = backward_args.grad;
  if (classes <= kTileClasses && forward_args.logits.inner == grad.inner) {
    return forward_with_gradient_in_lanes(forward_args, backward_args, begin, end);
  }
  if (goes_along_row(forward_args) && grad.classes_adjacent()) {
    if constexpr (kMostTogether<T> > 0) {
      if (goes_together(forward_args)) {
        return forward_with_gradient_together(forward_args, backward_args, begin, end);
      }
    }
    return classes <= kChunk
               ? forward_with_gradient_along_row(forward_args, backward_args, begin, end)
               : forward_with_gradient_of_long_rows(forward_args, backward_args, begin, end, tanhs);
  }
  const ForwardTotals totals = forward<T>(forward_args, begin, end);
  backward<T>(backward_args, begin, end, all_columns(backward_args));
  return totals;
}

template <typename T>
int64_t grad_target(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end,
                    Columns columns) {
  return goes_along_row(args) && args.grad.classes_adjacent()
             ? grad_target_along_row(args, begin, end, columns)
             : grad_target_rows_in_lanes(args, begin, end);
}

}  // namespace

template <InstructionSet kSet, typename T>
const CrossEntropyKernels<T>& kernels_of() {
  static constexpr CrossEntropyKernels<T> kernels = {
      forward<T>,          forward_with_gradient<T>, backward<T>,    grad_target<T>,
      state_of_columns<T>, forward_of_states<T>,     total_weight<T>};
  return kernels;
}

#ifdef SOFTREG_DTYPE
template const CrossEntropyKernels<SOFTREG_DTYPE>&
kernels_of<SOFTREG_INSTRUCTION_SET, SOFTREG_DTYPE>();
#else
template const CrossEntropyKernels<float>& kernels_of<SOFTREG_INSTRUCTION_SET, float>();
template const CrossEntropyKernels<double>& kernels_of<SOFTREG_INSTRUCTION_SET, double>();
template const CrossEntropyKernels<c10::BFloat16>&
kernels_of<SOFTREG_INSTRUCTION_SET, c10::BFloat16>();
template const CrossEntropyKernels<c10::Half>& kernels_of<SOFTREG_INSTRUCTION_SET, c10::Half>();
#endif

}  // namespace softreg
