// What a row's target says: its label, and the coefficients of a slot's classes. Included by the
// kernels alone.
#pragma once

#include "cuda/row_slots.cuh"
#include "row_target.h"

namespace softreg {
namespace {

template <typename T, typename A>
__device__ __forceinline__ RowTarget checked_target(const CrossEntropyRows<T, A>& args,
                                                    int64_t row) {
  int64_t bad_row = kNoBadRow;
  const RowTarget target(args, row, bad_row);
  CUDA_KERNEL_ASSERT_MSG(bad_row == kNoBadRow,
                         "cross_entropy: target is neither in [0, classes) nor ignore_index");
  return target;
}

// -1 where there is none.
template <typename T, typename A>
__device__ __forceinline__ int64_t label_of(const CrossEntropyRows<T, A>& args, int64_t row) {
  return row < args.rows && !args.has_probabilities() ? args.labels[row] : -1;
}

// w_c of the slot that begins with the class `first`; 1 without weights.
template <typename T, typename A>
__device__ __forceinline__ SlotItems<A, Pack<T>::kItems> class_weights(
    const CrossEntropyRows<T, A>& args, int first, int head) {
  constexpr int kWidth = Pack<T>::kItems;
  if (args.weight) {
    return RowItems<const A>(args.weight, 1, args.classes, head).template load<kWidth>(first, A(0));
  }
  SlotItems<A, kWidth> ones;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    ones[i] = A(1);
  }
  return ones;
}

// a_c for a target of probabilities, w_c for labels.
template <typename T, typename A>
__device__ __forceinline__ SlotItems<A, Pack<T>::kItems> coefficients(
    const CrossEntropyRows<T, A>& args, int first, int head, const Pack<T>& probabilities) {
  SlotItems<A, Pack<T>::kItems> of_class = class_weights(args, first, head);
  if (args.has_probabilities()) {
    const WidePack<T> probability(probabilities);
#pragma unroll
    for (int i = 0; i < Pack<T>::kItems; ++i) {
      of_class[i] = probability_coefficient(of_class[i], probability.items[i], args.on_target,
                                            args.per_class);
    }
  }
  return of_class;
}

}  // namespace
}  // namespace softreg
