// A row cut into slots, what a thread loads or stores at a time. Included by the kernels alone.
#pragma once

#include "cuda/device.cuh"

namespace softreg {
namespace {

// Slots are as wide as 16 bytes of T and aligned in memory, whatever the row's own alignment: the
// first and the last one may reach beyond it.
template <typename T>
struct RowSlots {
  static constexpr int kWidth = Pack<T>::kItems;
  int head;  // items of the first slot that lie before the row
  int count;

  __device__ RowSlots(const T* row, bool classes_adjacent, int64_t classes)
      : head(classes_adjacent ? reinterpret_cast<uintptr_t>(row) % sizeof(Pack<T>) / sizeof(T) : 0),
        count(static_cast<int>((head + classes + kWidth - 1) / kWidth)) {}

  // The class of a slot's first item.
  __device__ __forceinline__ int first(int slot) const { return slot * kWidth - head; }
};

// The blocks that share a row, and which of them this is.
struct Share {
  int index, count;
};

__device__ inline Share share_of_block() {
  return {static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y)};
}

// The items of a slot, in registers. Indices are known at compile time, once loops are unrolled.
template <typename X, int kWidth>
struct SlotItems {
  static constexpr int kPacks = kWidth / Pack<X>::kItems;
  Pack<X> packs[kPacks];

  __device__ __forceinline__ X& operator[](int i) {
    return packs[i / Pack<X>::kItems].items[i % Pack<X>::kItems];
  }
};

// Something with an item for each class of a row: logits, probabilities, weights, a gradient.
template <typename X>
struct RowItems {
  X* data;
  int64_t stride;
  int classes;
  bool in_packs;  // whether slots lie on 16-byte boundaries here too

  __device__ RowItems(X* data, int64_t stride, int64_t classes, int head)
      : data(data),
        stride(stride),
        classes(static_cast<int>(classes)),
        in_packs(stride == 1 &&
                 (reinterpret_cast<uintptr_t>(data) - head * sizeof(X)) % sizeof(Pack<X>) == 0) {}

  __device__ __forceinline__ bool holds(int c) const { return c >= 0 && c < classes; }

  __device__ __forceinline__ bool is_whole(int first, int width) const {
    return in_packs && first >= 0 && first + width <= classes;
  }

  // `padding` for what lies outside of the row, which is not read.
  template <int kWidth>
  __device__ __forceinline__ SlotItems<std::remove_const_t<X>, kWidth> load(
      int first, std::remove_const_t<X> padding) const {
    using Item = std::remove_const_t<X>;
    SlotItems<Item, kWidth> items;
    if (is_whole(first, kWidth)) {
      const auto* from = reinterpret_cast<const Pack<Item>*>(data + first);
#pragma unroll
      for (int p = 0; p < items.kPacks; ++p) {
        items.packs[p] = from[p];
      }
      return items;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      items[i] = holds(first + i) ? data[(first + i) * stride] : padding;
    }
    return items;
  }

  template <int kWidth>
  __device__ __forceinline__ void store(int first, SlotItems<X, kWidth> items) const {
    if (is_whole(first, kWidth)) {
      auto* to = reinterpret_cast<Pack<X>*>(data + first);
#pragma unroll
      for (int p = 0; p < items.kPacks; ++p) {
        store_pack(to + p, items.packs[p]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (holds(first + i)) {
        data[(first + i) * stride] = items[i];
      }
    }
  }
};

template <typename X>
__device__ __forceinline__ RowItems<X> items_of(const RowMatrix<X>& matrix, int64_t row,
                                                int64_t classes, int head) {
  return {matrix.row(row), matrix.class_stride, classes, head};
}

}  // namespace
}  // namespace softreg
