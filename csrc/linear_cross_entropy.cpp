// The logits of some rows at a time: ATen's matrix products around the ops of cross_entropy.
#include "linear_cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "checks.h"
#include "cpu/large_results.h"
#include "layer_products.h"
#include "ops.h"
#include "parts.h"

namespace softreg {

namespace {

std::atomic<int64_t> chosen_chunk_bytes{0};

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

namespace {

// Matrix products take rows by so many at a time, as a rule.
constexpr int64_t kRows = 16;

// Rows that are worth more bytes to a chunk. Products of fewer are slower by up to a fifth: up to a
// quarter of what the layer takes.
constexpr int64_t kRowsToMultiply = 256;
// Float32 sums of half types are read and written for each chunk, in a tenth of the time that the
// products of so many take: up to what those sums take.
constexpr int64_t kRowsToAdd = 2048;

// How many rows are in a chunk: one at least, whatever its bytes.
int64_t most_rows(int64_t bytes, int64_t row_bytes) {
  const int64_t rows = std::max<int64_t>(1, bytes / std::max<int64_t>(1, row_bytes));
  return rows < kRows ? rows : rows / kRows * kRows;
}

struct Chunk {  // of rows of the input
  int64_t first;
  int64_t count;

  at::Tensor of(const at::Tensor& x) const { return x.narrow(0, first, count); }
};

// A tensor whose memory, on a CPU, may have been another's.
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return on_kept_memory(at::empty(sizes, options));
}

class Layer {
 public:
  // `sum_bytes`: what the gradients' sums take where they are not in one chunk.
  explicit Layer(const LinearCrossEntropyArgs& args, int64_t sum_bytes = 0)
      : args_(args),
        weight_(args.linear_weight.flatten(0, -2)),
        bias_(args.has_bias() ? args.linear_bias->flatten() : at::Tensor()),
        rows_(args.input.size(0)) {
    const int64_t row_bytes = outputs() * c10::elementSize(args.logits_type()) +
                              product_row_bytes(args.input, weight_, args.float_logits);
    rows_in_chunk_ = rows_of_chunk(chunk_bytes(args.input), row_bytes, sum_bytes);
    buffer_ =
        empty_large({rows_in_chunk_, outputs()}, args.input.options().dtype(args.logits_type()));
  }

  const at::Tensor& weight() const { return weight_; }
  int64_t outputs() const { return weight_.size(0); }
  bool is_one_chunk() const { return rows_in_chunk_ == rows_; }

  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for (int64_t first = 0; first < rows_; first += rows_in_chunk_) {
      body(Chunk{first, std::min(rows_in_chunk_, rows_ - first)});
    }
  }

  // (count, C, d1, ..., dK), where the last chunk's were.
  at::Tensor logits(const Chunk& chunk) const {
    at::Tensor result = buffer_.narrow(0, 0, chunk.count);
    layer_output(result, chunk.of(args_.input), weight_, bias_);
    std::vector<int64_t> shape = args_.linear_weight.sizes().vec();
    shape.pop_back();
    shape.insert(shape.begin(), chunk.count);
    return result.view(shape);
  }

  // The rows of the loss, in the order of the state's columns.
  at::Tensor state_of(const Chunk& chunk, const at::Tensor& state) const {
    const int64_t positions = state.size(1) / std::max<int64_t>(1, rows_);
    return state.narrow(1, chunk.first * positions, chunk.count * positions);
  }

 private:
  int64_t rows_of_chunk(int64_t bytes, int64_t row_bytes, int64_t sum_bytes) const {
    if (rows_ * row_bytes <= bytes + sum_bytes) {  // no more memory than in several
      return rows_;
    }
    const auto layer_bytes = static_cast<int64_t>(args_.linear_weight.nbytes());
    const int64_t to_multiply = std::min(layer_bytes / 4, kRowsToMultiply * row_bytes);
    const int64_t to_add = std::min(sum_bytes, kRowsToAdd * row_bytes);
    const int64_t most = most_rows(std::max({bytes, to_multiply, to_add}), row_bytes);
    const int64_t even = parts_of(rows_, std::max<int64_t>(1, parts_of(rows_, most)));
    return std::min({most, rounded_up(even, kRows), rows_});
  }

  const LinearCrossEntropyArgs& args_;
  at::Tensor weight_;  // (C d1 ... dK, features)
  at::Tensor bias_;    // (C d1 ... dK), or undefined
  int64_t rows_;
  int64_t rows_in_chunk_;
  at::Tensor buffer_;
};

// The layer's gradients: sums over the chunks, of half types in float32, to be rounded once.
class GradientSums {
 public:
  static int64_t bytes(const LinearCrossEntropyArgs& args, Wanted wanted) {
    const at::ScalarType type = args.input.scalar_type();
    const bool are_sums = wanted[1] && accumulator_type(type) != type;
    return are_sums ? args.linear_weight.numel() * c10::elementSize(accumulator_type(type)) : 0;
  }

  GradientSums(const LinearCrossEntropyArgs& args, const Layer& layer, Wanted wanted)
      : args_(args), layer_(layer), wanted_(wanted) {
    const at::ScalarType type = args.input.scalar_type();
    const auto sum_type = layer.is_one_chunk() ? type : accumulator_type(type);
    const auto allocated = [&](bool is_wanted, at::IntArrayRef sizes, at::ScalarType dtype) {
      return empty_large(is_wanted ? sizes : at::IntArrayRef{0}, args.input.options().dtype(dtype));
    };
    of_input_ = allocated(wanted[0], args.input.sizes(), type);
    of_weight_ = allocated(wanted[1], layer.weight().sizes(), sum_type);
    of_bias_ = allocated(wanted[2], {layer.outputs()}, accumulator_type(type)).zero_();
    if (args.input.size(0) == 0) {  // else the first product overwrites it
      of_weight_.zero_();
    }
  }

  // The gradient of a chunk's logits takes their place.
  void add(const Chunk& chunk, const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad) {
    cross_entropy_backward_in_place(args, grad);
    const at::Tensor grad_logits =
        layer_factor(args.logits.view({chunk.count, layer_.outputs()}), layer_.weight());
    if (wanted_[0]) {
      at::Tensor rows = chunk.of(of_input_);
      layer_grad_input(rows, grad_logits, layer_.weight());
    }
    if (wanted_[1]) {
      layer_grad_weight(of_weight_, grad_logits, chunk.of(args_.input), chunk.first == 0);
    }
    if (wanted_[2]) {
      of_bias_.add_(grad_logits.sum(at::IntArrayRef{0}, /*keepdim=*/false, of_bias_.scalar_type()));
    }
  }

  LayerGradients results() const {
    const at::ScalarType type = args_.input.scalar_type();
    const auto finished = [&](const at::Tensor& sum, at::IntArrayRef sizes) {
      const at::Tensor shaped = sum.view(sizes);
      return shaped.scalar_type() == type
                 ? shaped
                 : empty_large(sizes, shaped.options().dtype(type)).copy_(shaped);
    };
    return {of_input_, wanted_[1] ? finished(of_weight_, args_.linear_weight.sizes()) : of_weight_,
            wanted_[2] ? finished(of_bias_, args_.linear_bias->sizes()) : of_bias_};
  }

 private:
  const LinearCrossEntropyArgs& args_;
  const Layer& layer_;
  Wanted wanted_;
  at::Tensor of_input_, of_weight_, of_bias_;
};

// Labels are checked by the kernels, which call a row by its number in a chunk: on a CPU they are
// looked through first.
void check_labels_of_all_rows(const LinearCrossEntropyArgs& args) {
  if (!args.target.is_cpu() || args.has_probabilities()) {
    return;
  }
  const at::Tensor labels = args.target.flatten().to(at::kLong);
  const at::Tensor bad = (labels.lt(0) | labels.ge(args.linear_weight.size(0)))
                             .logical_and_(labels.ne(args.ignore_index));
  if (bad.any().item<bool>()) {
    const auto row = bad.nonzero()[0].item<int64_t>();
    throw_bad_label(args.with_logits(placeholder_logits(args)), row, labels[row].item<int64_t>());
  }
}

// What the mean divides by, known before there are logits.
at::Tensor total_weight_of(const LinearCrossEntropyArgs& args, int64_t rows) {
  if (args.has_probabilities()) {
    return at::full({}, rows, args.input.options().dtype(at::kDouble));
  }
  const at::Tensor labels = args.target.flatten().to(at::kLong);
  const at::Tensor ignored = labels.eq(args.ignore_index);
  if (!args.has_weight()) {
    return ignored.logical_not().sum(at::kDouble);
  }
  const at::Tensor names = labels.clamp(0, args.linear_weight.size(0) - 1);
  return args.weight->to(at::kDouble)
      .flatten()
      .index_select(0, names)
      .masked_fill_(ignored, 0)
      .sum();
}

struct ChunkArgs {
  at::Tensor logits, target;
  CrossEntropyArgs args;

  ChunkArgs(const LinearCrossEntropyArgs& all, const Layer& layer, const Chunk& chunk)
      : logits(layer.logits(chunk)),
        target(chunk.of(all.target)),
        args{all, logits, target, all.weight, all.return_lse} {}
};

// The sum of a chunk's losses. Of a mean's: from their mean or from each, which half types may hold
// where they do not hold the sum.
at::Tensor sum_of(const CrossEntropyArgs& args, const ForwardOutputs& rows) {
  return args.reduction == Reduction::kMean ? (rows.loss.to(at::kDouble) * rows.total_weight)
                                                  .masked_fill_(rows.total_weight.eq(0), 0)
                                            : rows.loss.sum(at::kDouble);
}

// The mean says nothing of rows that weigh nothing and have a loss.
Reduction reduction_in_chunk(const LinearCrossEntropyArgs& args) {
  const bool weightless_rows_add =
      args.has_weight() && (args.label_smoothing > 0 || args.z_loss > 0);
  const bool is_mean = args.reduction == Reduction::kMean;
  return is_mean && weightless_rows_add ? Reduction::kNone : args.reduction;
}

// The loss, and what the backward pass is to be given. `sums`, where there are any, take each
// chunk's gradient for the upstream gradient grad_loss of the reduced loss.
ForwardOutputs run_forward(const LinearCrossEntropyArgs& args, const Layer& layer,
                           const at::Tensor& grad_loss, GradientSums* sums) {
  const at::Tensor placeholder = placeholder_logits(args);
  ForwardOutputs all = empty_forward_outputs(args.with_logits(placeholder));
  all.total_weight = total_weight_of(args, all.state.size(1));
  at::Tensor sum = at::zeros_like(all.total_weight);
  layer.for_each_chunk([&](const Chunk& chunk) {
    ChunkArgs of_chunk(args, layer, chunk);
    of_chunk.args.reduction = reduction_in_chunk(args);
    const ForwardOutputs rows = cross_entropy_forward(of_chunk.args);
    layer.state_of(chunk, all.state).copy_(rows.state);
    if (args.return_lse) {
      chunk.of(all.lse).copy_(rows.lse);
    }
    if (args.reduction == Reduction::kNone) {
      chunk.of(all.loss).copy_(rows.loss);
    } else {
      sum.add_(sum_of(of_chunk.args, rows));
    }
    if (sums) {
      of_chunk.args.reduction = args.reduction;
      const std::optional<at::Tensor> no_grad_lse;
      sums->add(chunk, of_chunk.args, {grad_loss, no_grad_lse, rows.state, all.total_weight});
    }
  });
  if (args.reduction != Reduction::kNone) {
    all.loss.copy_(args.reduction == Reduction::kMean ? sum / all.total_weight : sum);
  }
  return all;
}

ForwardOutputs linear_cross_entropy_forward_in_chunks(const LinearCrossEntropyArgs& args) {
  check_chunks(args);
  check_labels_of_all_rows(args);
  const NoAutocast no_autocast;
  return run_forward(args, Layer(args), at::Tensor(), nullptr);
}

LayerGradients linear_cross_entropy_backward_in_chunks(const LinearCrossEntropyArgs& args,
                                                       const CrossEntropyGradArgs& grad,
                                                       Wanted wanted) {
  check_chunks(args, grad);
  const NoAutocast no_autocast;
  const Layer layer(args, GradientSums::bytes(args, wanted));
  GradientSums sums(args, layer, wanted);
  layer.for_each_chunk([&](const Chunk& chunk) {
    const ChunkArgs of_chunk(args, layer, chunk);
    const bool has_row_losses = args.reduction == Reduction::kNone;
    const at::Tensor grad_loss = has_row_losses ? chunk.of(grad.grad_loss) : grad.grad_loss;
    const auto grad_lse =
        grad.has_grad_lse() ? std::make_optional(chunk.of(*grad.grad_lse)) : std::nullopt;
    const at::Tensor state = layer.state_of(chunk, grad.state).contiguous();
    sums.add(chunk, of_chunk.args, {grad_loss, grad_lse, state, grad.total_weight});
  });
  return sums.results();
}

LinearForwardWithGradientOutputs linear_cross_entropy_forward_with_gradient_in_chunks(
    const LinearCrossEntropyArgs& args, double grad_loss, Wanted wanted) {
  check_chunks(args);
  check_labels_of_all_rows(args);
  const NoAutocast no_autocast;
  const Layer layer(args, GradientSums::bytes(args, wanted));
  GradientSums sums(args, layer, wanted);
  const at::Tensor upstream =
      at::scalar_tensor(grad_loss, args.input.options().dtype(loss_type(args)));
  ForwardOutputs out = run_forward(args, layer, upstream, &sums);
  return {std::move(out), sums.results()};
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy_forward",
         linear_chunks_entry<linear_cross_entropy_forward_in_chunks>);
  m.impl("linear_cross_entropy_forward_with_gradient",
         linear_with_gradient_entry<linear_cross_entropy_forward_with_gradient_in_chunks>);
  m.impl("linear_cross_entropy_backward",
         &linear_backward_entry<linear_cross_entropy_backward_in_chunks>);
}

}  // namespace softreg
