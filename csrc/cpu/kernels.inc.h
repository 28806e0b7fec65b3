// The kernels of one instruction set, compiled by the kernels_*.cpp beside this file: for a dtype
// at a time, SOFTREG_DTYPE, so that compilers run side by side, or else for all. No STL with code
// of its own, no static initialisers: see kernels_vec.h.

#include "cpu/kernels_vec_exp.h"
// after the vectors, whose overloads the formulas call
#include "cpu/kernels.h"
#include "cpu/kernels_along_row.h"
#include "cpu/kernels_rows_in_lanes.h"

namespace softreg {
namespace {

// The most classes for which rows that are apart in memory are brought side by side. To bring them
// there costs as much as to fold the lanes of that many vectors; a gradient, which has nothing to
// fold, would have to be brought back besides. 16 lanes cost more to fold than 8.
constexpr int64_t kMostBackward = kTileClasses;
template <typename T>
constexpr int64_t kMostForward = kTransposes<T> && Vec<float>::size() == 16 ? 128 : kTileClasses;

template <typename T, typename A>
bool goes_along_row(const CrossEntropyRows<T, A>& args, int64_t most_side_by_side) {
  return args.classes > most_side_by_side && args.classes_adjacent();
}

template <typename T>
ForwardTotals forward(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return goes_along_row(args, kMostForward<T>) ? forward_along_row(args, begin, end)
                                               : forward_rows_in_lanes(args, begin, end);
}

template <typename T>
int64_t backward(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end,
                 Columns columns) {
  return goes_along_row(args, kMostBackward) && args.grad.classes_adjacent()
             ? backward_along_row(args, begin, end, columns)
             : backward_rows_in_lanes(args, begin, end);
}

// In one where the forward pass takes the same way alone, for its results are to have the same
// bits.
template <typename T>
ForwardTotals forward_with_gradient(const ForwardArgs<T, Accumulator<T>>& forward_args,
                                    const BackwardArgs<T, Accumulator<T>>& backward_args,
                                    int64_t begin, int64_t end) {
  const int64_t classes = forward_args.classes;
  const auto& grad = backward_args.grad;
  if (classes <= kTileClasses && forward_args.logits.inner == grad.inner) {
    return forward_with_gradient_in_lanes(forward_args, backward_args, begin, end);
  }
  if (goes_along_row(forward_args, kMostForward<T>) && grad.classes_adjacent() &&
      classes <= kChunk && forward_args.transform.is_identity) {
    return forward_with_gradient_along_row(forward_args, backward_args, begin, end);
  }
  const ForwardTotals totals = forward<T>(forward_args, begin, end);
  backward<T>(backward_args, begin, end, all_columns(backward_args));
  return totals;
}

template <typename T>
int64_t grad_target(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end,
                    Columns columns) {
  return goes_along_row(args, kMostBackward) && args.grad.classes_adjacent()
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
