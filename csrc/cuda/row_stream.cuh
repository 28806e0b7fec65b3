// Logits on their way into shared memory, while those before them are in use. Included by the
// kernels alone.
#pragma once

#include "cuda/row_target.cuh"

namespace softreg {
namespace {

// The rounds of a team's rows, in order: each row's from the first on, then, where they are needed
// twice, all but the last ones, for which there are places, once more. First in, first out: each
// place is filled again as soon as its round is done with. A thread reads what it has copied
// itself, so that nothing but its own copies has to be waited for. `sources` is 2 where a target's
// probabilities come with the logits.
template <typename Args, bool kPlain, bool kTwice>
class RowStream {
  using T = typename Args::Logit;
  static constexpr int kWidth = Pack<T>::kItems;

 public:
  // Rows from `row` on, `stride` apart.
  __device__ RowStream(const Args& args, Team team, Share share, int64_t row, int stride,
                       int sources, int places)
      : args_(args),
        team_(team),
        share_(share),
        stride_(stride),
        sources_(kPlain ? 1 : sources),
        places_(kTwice ? places : kPlacesOfStream),
        row_(row),
        is_read_(row < args.rows),  // whatever the target: to wait for it would cost a round trip
        next_label_(label_of(args, row + stride)) {
    if (is_read_) {
      rounds_.move_to(args, row, team, share);
    }
    for (int i = 0; i < places_; ++i) {
      fetch(i);
    }
  }

  // Until the round that came `ahead` rounds after the oldest is here.
  __device__ __forceinline__ void wait(int ahead) const {
    wait_for_copies(kTwice ? places_ - 1 - ahead : kPlacesOfStream - 1);
  }

  __device__ __forceinline__ Pack<T> logits(int s, int ahead) const { return slot(s, ahead, 0); }
  __device__ __forceinline__ Pack<T> probabilities(int s, int ahead) const {
    return sources_ == 2 ? slot(s, ahead, 1) : Pack<T>{};
  }

  // Puts -inf where the slots of a round reach beyond the row.
  __device__ __forceinline__ void pad(const RowRounds<T>& rounds, int round, int ahead) const {
    Pack<T> nothing;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      nothing.items[i] = static_cast<T>(-static_cast<Accumulator<T>>(INFINITY));
    }
    const int classes = static_cast<int>(args_.classes);
#pragma unroll 1
    for (int s = 0; s < kSlotsOfRound; ++s) {
      const int slot = rounds.slot(team_, round, s);
      Pack<T>* const to = at(place(ahead), s, 0);
      if (slot >= rounds.end) {
        *to = nothing;
        continue;
      }
      const int first = rounds.first(slot);
      if (first < 0 || first + kWidth > classes) {
#pragma unroll 1
        for (int i = 0; i < kWidth; ++i) {
          if (first + i < 0 || first + i >= classes) {
            to->items[i] = nothing.items[0];
          }
        }
      }
    }
  }

  // The oldest round makes room for another.
  __device__ __forceinline__ void next() {
    fetch(oldest_);
    oldest_ = oldest_ + 1 < places_ ? oldest_ + 1 : 0;
  }

  // How many of a row's rounds are still here once the last one has come.
  __device__ __forceinline__ int kept(const RowRounds<T>& rounds) const {
    return !kTwice ? 0 : places_ < rounds.count ? places_ : rounds.count;
  }

 private:
  __device__ __forceinline__ Pack<T>* at(int place, int s, int source) const {
    const int slot = (place * sources_ + source) * kSlotsOfRound + s;
    return block_memory<Pack<T>>() + slot * blockDim.x + threadIdx.x;
  }

  __device__ __forceinline__ int place(int ahead) const {
    const int place = oldest_ + ahead;
    return place < places_ ? place : place - places_;
  }

  __device__ __forceinline__ Pack<T> slot(int s, int ahead, int source) const {
    return load_pack(at(place(ahead), s, source));
  }

  __device__ __forceinline__ void fetch(int place) {
    if (is_read_) {
      const int round = !kTwice || round_ < rounds_.count ? round_ : round_ - rounds_.count;
      copy_round(args_.logits, rounds_.row, round, place, 0);
      if (sources_ == 2) {
        copy_round(args_.probabilities, args_.probabilities.row(row_), round, place, 1);
      }
    }
    end_of_copies();
    const int again = kTwice ? rounds_.count - kept(rounds_) : 0;
    if (++round_ == rounds_.count + again) {
      begin_row(row_ + stride_);
    }
  }

  __device__ __forceinline__ void begin_row(int64_t row) {
    round_ = 0;
    row_ = row;
    is_read_ = false;
    if (row < args_.rows) {
      rounds_.move_to(args_, row, team_, share_);
      is_read_ = is_read(args_, RowTarget(args_, next_label_));
      next_label_ = label_of(args_, row + stride_);
    }
  }

  __device__ __forceinline__ void copy_round(const RowMatrix<const T>& matrix, const T* row,
                                             int round, int place, int source) const {
    const RowItems<const T> items(row, matrix.class_stride, args_.classes, rounds_.head);
    if (items.in_packs && rounds_.is_full(team_, round, args_.classes)) {
      const T* from = row + rounds_.first(rounds_.slot(team_, round, 0));
#pragma unroll
      for (int s = 0; s < kSlotsOfRound; ++s) {
        copy_pack(at(place, s, source), from + s * team_.size * kWidth);
      }
      return;
    }
    // Where no gap is between the rows, a slot may reach into the rows beside its own.
    const bool dense = matrix.classes_adjacent() && matrix.outer_stride == args_.classes;
    const int64_t before = dense ? row_ * args_.classes : 0;
    const int64_t after = dense ? (args_.rows - row_) * args_.classes : args_.classes;
#pragma unroll 1
    for (int s = 0; s < kSlotsOfRound && rounds_.slot(team_, round, s) < rounds_.end; ++s) {
      const int first = rounds_.first(rounds_.slot(team_, round, s));
      if (items.in_packs && first >= -before && first + kWidth <= after) {
        copy_pack(at(place, s, source), row + first);
      } else {
        copy_items(items, first, at(place, s, source));
      }
    }
  }

  // What lies outside of the row is left as it was.
  __device__ __forceinline__ static void copy_items(const RowItems<const T>& items, int first,
                                                    Pack<T>* to) {
    if constexpr (sizeof(T) < 4) {  // too small to be copied on its own
      *to = items.template load_items<kWidth>(first, T(0)).packs[0];
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (items.holds(first + i)) {
          copy_item(&to->items[i], items.data + (first + i) * items.stride);
        }
      }
    }
  }

  const Args& args_;
  Team team_;
  Share share_;
  int stride_, sources_, places_;
  int oldest_ = 0;  // place
  // What is fetched next.
  int64_t row_;
  int round_ = 0;
  RowRounds<T> rounds_;
  bool is_read_;
  int64_t next_label_;  // of the row after that, so that nothing waits for it
};

}  // namespace
}  // namespace softreg
