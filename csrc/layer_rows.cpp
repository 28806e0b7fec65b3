#include "layer_rows.h"

#include <atomic>

#include "layer_products.h"
#include "parts.h"

namespace softreg {
namespace {

std::atomic<int64_t> chosen_chunk_bytes{0};

// Matrix products take rows by so many at a time, as a rule.
constexpr int64_t kRows = 16;

// Rows that are worth more bytes to a chunk. Products of fewer are slower by up to a fifth: up to a
// quarter of what the layer takes.
constexpr int64_t kRowsToMultiply = 256;
// Float32 sums of half types are read and written for each chunk, in a tenth of the time that the
// products of so many take: up to what those sums take.
constexpr int64_t kRowsToAdd = 2048;

// Each row that is left out saves the products of all its outputs. Each of the others is copied,
// and its gradient, which takes as long as the products of so many outputs.
constexpr int64_t kOutputsToCopy = 64;

// How many rows are in a chunk: one at least, whatever its bytes.
int64_t most_rows(int64_t bytes, int64_t row_bytes) {
  const int64_t rows = std::max<int64_t>(1, bytes / std::max<int64_t>(1, row_bytes));
  return rows < kRows ? rows : rows / kRows * kRows;
}

int64_t outputs(const LinearCrossEntropyArgs& args) {
  return c10::multiply_integers(args.linear_weight.sizes().slice(0, args.linear_weight.dim() - 1));
}

// Those with a label that counts, where leaving out the others saves time, else undefined.
at::Tensor counted_rows(const LinearCrossEntropyArgs& args) {
  const int64_t rows = args.input.size(0);
  if (rows == 0 || !args.input.is_cpu() || args.has_probabilities()) {
    return {};
  }
  const at::Tensor labels = args.target.to(at::kLong).reshape({rows, -1});
  const at::Tensor is_counted = labels.ne(args.ignore_index).any(1);
  const auto counted = is_counted.sum().item<int64_t>();
  const bool saves_time = (rows - counted) * outputs(args) > counted * kOutputsToCopy;
  return saves_time ? is_counted.nonzero().flatten() : at::Tensor();
}

int64_t rows_of_chunk(const LinearCrossEntropyArgs& args, int64_t rows, int64_t sum_bytes) {
  const at::Tensor weight = args.linear_weight.flatten(0, -2);
  int64_t row_bytes = weight.size(0) * c10::elementSize(args.logits_type()) +
                      product_row_bytes(args.input, weight, args.float_logits);
  if (rows != args.input.size(0)) {  // copies, and of the gradient
    row_bytes += 2 * weight.size(1) * args.input.element_size();
  }
  const int64_t bytes = chunk_bytes(args.input);
  if (rows * row_bytes <= bytes + sum_bytes) {  // no more memory than in several
    return rows;
  }
  const auto layer_bytes = static_cast<int64_t>(weight.nbytes());
  const int64_t to_multiply = std::min(layer_bytes / 4, kRowsToMultiply * row_bytes);
  const int64_t to_add = std::min(sum_bytes, kRowsToAdd * row_bytes);
  const int64_t most = most_rows(std::max({bytes, to_multiply, to_add}), row_bytes);
  const int64_t even = parts_of(rows, std::max<int64_t>(1, parts_of(rows, most)));
  return std::min({most, rounded_up(even, kRows), rows});
}

}  // namespace

int64_t chunk_bytes(const at::Tensor& input) {
  const int64_t chosen = chosen_chunk_bytes;
  return chosen > 0 ? chosen : int64_t(input.is_cpu() ? 60 : 256) << 20;
}

int64_t few_bytes(const at::Tensor& input) {
  const int64_t in_a_chunk = chunk_bytes(input);
  return input.is_cpu() ? std::min(in_a_chunk, int64_t(4) << 20) : in_a_chunk;
}

int64_t set_chunk_bytes(int64_t bytes) { return chosen_chunk_bytes.exchange(bytes); }

at::Tensor Chunk::of(const at::Tensor& x) const {
  return indices.defined() ? x.index_select(0, indices) : x.narrow(0, first, count);
}

void Chunk::put(const at::Tensor& x, const at::Tensor& rows) const {
  if (indices.defined()) {
    x.index_copy_(0, indices, rows);
  } else {
    x.narrow(0, first, count).copy_(rows);
  }
}

LayerRows::LayerRows(const LinearCrossEntropyArgs& args, bool has_lse, int64_t sum_bytes)
    : indices_(has_lse ? at::Tensor() : counted_rows(args)),
      count_(are_all() ? args.input.size(0) : indices_.size(0)),
      in_chunk_(rows_of_chunk(args, count_, sum_bytes)) {}

}  // namespace softreg
