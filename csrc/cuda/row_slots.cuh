// A row cut into slots, what a thread loads or stores at a time. Included by the kernels alone.
#pragma once

#include "cuda/device.cuh"
#include "cuda/team.cuh"

namespace softreg {
namespace {

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
  using Item = std::remove_const_t<X>;
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
  __device__ __forceinline__ SlotItems<Item, kWidth> load_items(int first, Item padding) const {
    SlotItems<Item, kWidth> items;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      items[i] = holds(first + i) ? data[(first + i) * stride] : padding;
    }
    return items;
  }

  template <int kWidth>
  __device__ __forceinline__ SlotItems<Item, kWidth> load(int first, Item padding) const {
    if (!is_whole(first, kWidth)) {
      return load_items<kWidth>(first, padding);
    }
    SlotItems<Item, kWidth> items;
    const auto* from = reinterpret_cast<const Pack<Item>*>(data + first);
#pragma unroll
    for (int p = 0; p < items.kPacks; ++p) {
      items.packs[p] = from[p];
    }
    return items;
  }

  __device__ __forceinline__ void store(int first, const Pack<X>& pack) const {
    if (is_whole(first, Pack<X>::kItems)) {
      store_pack(reinterpret_cast<Pack<X>*>(data + first), pack);
      return;
    }
#pragma unroll
    for (int i = 0; i < Pack<X>::kItems; ++i) {
      if (holds(first + i)) {
        data[(first + i) * stride] = pack.items[i];
      }
    }
  }
};

template <typename X>
__device__ __forceinline__ RowItems<X> items_of(const RowMatrix<X>& matrix, int64_t row,
                                                int64_t classes, int head) {
  return {matrix.row(row), matrix.class_stride, classes, head};
}

// Items of the first slot that lie before the row: slots are as wide as 16 bytes of T and aligned
// in memory, whatever the row's own alignment.
template <typename T>
__device__ __forceinline__ int head_of(const T* row, bool classes_adjacent) {
  return classes_adjacent ? reinterpret_cast<uintptr_t>(row) % sizeof(Pack<T>) / sizeof(T) : 0;
}

// What a thread has of a row's logits: rounds of slots, adjacent slots to the threads of the team.
template <typename T>
struct RowRounds {
  static constexpr int kWidth = Pack<T>::kItems;
  const T* row = nullptr;
  int head = -1;
  int begin, end;  // slots
  int count;       // of rounds, at least one

  template <typename Rows>
  __device__ __forceinline__ void move_to(const Rows& args, int64_t r, Team team, Share share) {
    row = args.logits.row(r);
    const int new_head = head_of(row, args.logits.classes_adjacent());
    if (new_head != head) {  // for most shapes, with the first row alone
      head = new_head;
      cut(static_cast<int>(args.classes), team, share);
    }
  }

  __device__ __forceinline__ int slot(Team team, int round, int s) const {
    return begin + (round * kSlotsOfRound + s) * team.size;
  }
  // The class of a slot's first item.
  __device__ __forceinline__ int first(int slot) const { return slot * kWidth - head; }
  // Whether all of the round's slots lie within the row.
  __device__ __forceinline__ bool is_full(Team team, int round, int64_t classes) const {
    const int last = slot(team, round, kSlotsOfRound - 1);
    return last < end && first(slot(team, round, 0)) >= 0 &&
           first(last) + kWidth <= static_cast<int>(classes);
  }

 private:
  __device__ __forceinline__ void cut(int classes, Team team, Share share) {
    const int slots = (head + classes + kWidth - 1) / kWidth;
    const int in_share = share.count == 1 ? slots : (slots + share.count - 1) / share.count;
    const int from = share.index * in_share;
    end = from + in_share < slots ? from + in_share : slots;
    begin = from + team.lane();
    const int at_once = kSlotsOfRound * team.size;
    count = end - from > at_once
                ? static_cast<unsigned>(end - from + at_once - 1) / kSlotsOfRound >> team.log2_size
                : 1;
  }
};

template <typename T, typename Rows>
LaunchShape launch_shape(const Rows& args, bool reads_probabilities) {
  return {args.rows,
          args.classes,
          args.logits.classes_adjacent(),
          Pack<T>::kItems,
          kResidentThreads<T>,
          args.has_probabilities() && reads_probabilities ? 2 : 1};
}

}  // namespace
}  // namespace softreg
