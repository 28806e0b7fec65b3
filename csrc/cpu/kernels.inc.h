// The table of one kernel set, compiled once per instruction set by the kernels_*.cpp beside this
// file. No STL with code of its own, no static initialisers: see kernels_vec.h.

#include "cpu/kernels_vec.h"
// after the vectors, whose overloads the formulas call
#include "cpu/kernels.h"
#include "cpu/kernels_along_row.h"
#include "cpu/kernels_rows_in_lanes.h"

namespace softreg {
namespace {

template <typename T, typename A>
bool goes_along_row(const CrossEntropyRows<T, A>& args) {
  return args.classes > kTileClasses && args.logits.classes_adjacent() &&
         (!args.has_probabilities() || args.probabilities.classes_adjacent());
}

template <typename T>
ForwardTotals forward(const ForwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return goes_along_row(args) ? forward_along_row(args, begin, end)
                              : forward_rows_in_lanes(args, begin, end);
}

template <typename T>
int64_t backward(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return goes_along_row(args) && args.grad.classes_adjacent()
             ? backward_along_row(args, begin, end)
             : backward_rows_in_lanes(args, begin, end);
}

template <typename T>
int64_t grad_target(const BackwardArgs<T, Accumulator<T>>& args, int64_t begin, int64_t end) {
  return goes_along_row(args) && args.grad.classes_adjacent()
             ? grad_target_along_row(args, begin, end)
             : grad_target_rows_in_lanes(args, begin, end);
}

template <typename T>
constexpr CrossEntropyKernels<T> kKernels = {forward<T>, backward<T>, grad_target<T>};

}  // namespace

const KernelSet SOFTREG_KERNEL_SET = {
    SOFTREG_KERNEL_SET_NAME, kKernels<float>,     kKernels<double>,
    kKernels<c10::BFloat16>, kKernels<c10::Half>,
};

}  // namespace softreg
