// Which rows of a linear layer's input are multiplied, and how many at a time.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "linear_args.h"

namespace softreg {

// Bytes of logits that are there at a time, and of their gradient, in the same place; of a large
// layer as many more as save time.
int64_t chunk_bytes(const at::Tensor& input);
// Up to which the two ops apart are as good: on a CPU one chunk gains by the place of its gradient.
int64_t few_bytes(const at::Tensor& input);
// For tests, which would be slow with chunks of full size; 0: as before. Returns what was set.
int64_t set_chunk_bytes(int64_t bytes);

// Some of the rows that are multiplied. Its functions take tensors that have a row for each row of
// the input.
struct Chunk {
  int64_t first;  // among those that are multiplied
  int64_t count;
  at::Tensor indices;  // of the input's rows; undefined: from `first` on

  at::Tensor of(const at::Tensor& x) const;
  void put(const at::Tensor& x, const at::Tensor& rows) const;

  // Has fill(rows) write the chunk's rows: in x itself, or in a copy where they are not side by
  // side.
  template <typename Fill>
  void fill(const at::Tensor& x, const Fill& fill) const {
    if (!indices.defined()) {
      at::Tensor rows = of(x);
      fill(rows);
      return;
    }
    at::Tensor rows = at::empty({count, x.size(1)}, x.options());
    fill(rows);
    put(x, rows);
  }
};

// All rows, or on a CPU those with a label that counts, where leaving out the others saves time. A
// GPU would have to tell the host which they are.
class LayerRows {
 public:
  // `has_lse`: lse is asked for, of every row, or a gradient flows into it. `sum_bytes`: what the
  // gradients' sums take where they are not in one chunk.
  LayerRows(const LinearCrossEntropyArgs& args, bool has_lse, int64_t sum_bytes);

  bool are_all() const { return !indices_.defined(); }
  bool are_none() const { return count_ == 0; }
  bool are_one_chunk() const { return in_chunk_ == count_; }
  int64_t in_chunk() const { return in_chunk_; }

  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for (int64_t first = 0; first < count_; first += in_chunk_) {
      body(chunk(first, std::min(in_chunk_, count_ - first)));
    }
  }

 private:
  Chunk chunk(int64_t first, int64_t count) const {
    return {first, count, are_all() ? indices_ : indices_.narrow(0, first, count)};
  }

  at::Tensor indices_;  // undefined: all
  int64_t count_;
  int64_t in_chunk_;
};

}  // namespace softreg
