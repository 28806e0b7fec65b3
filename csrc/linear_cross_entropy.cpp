// The logits of some rows at a time: ATen's matrix products around the ops of cross_entropy.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "cpu/large_results.h"
#include "layer_products.h"
#include "layer_rows.h"
#include "linear_args.h"
#include "no_autocast.h"
#include "ops.h"

namespace softreg {
namespace {

// A tensor whose memory, on a CPU, may have been another's.
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return on_kept_memory(at::empty(sizes, options));
}

// A row of the input for each in the first dimension; the state has a column for each of the loss.
at::Tensor by_rows(const at::Tensor& state, int64_t rows) {
  const int64_t positions = state.size(1) / std::max<int64_t>(1, rows);
  return state.unflatten(1, at::IntArrayRef{rows, positions}).transpose(0, 1);
}

class Layer {
 public:
  explicit Layer(const LinearCrossEntropyArgs& args, bool has_lse, int64_t sum_bytes = 0)
      : args_(args),
        weight_(args.linear_weight.flatten(0, -2)),
        bias_(args.has_bias() ? args.linear_bias->flatten() : at::Tensor()),
        rows_(args, has_lse, sum_bytes),
        buffer_(empty_large({rows_.in_chunk(), outputs()},
                            args.input.options().dtype(args.logits_type()))) {}

  const at::Tensor& weight() const { return weight_; }
  int64_t outputs() const { return weight_.size(0); }
  const LayerRows& rows() const { return rows_; }

  // (count, C, d1, ..., dK), where the last chunk's were.
  at::Tensor logits(const at::Tensor& input) const {
    at::Tensor result = buffer_.narrow(0, 0, input.size(0));
    layer_output(result, input, weight_, bias_);
    std::vector<int64_t> shape = args_.linear_weight.sizes().vec();
    shape.pop_back();
    shape.insert(shape.begin(), input.size(0));
    return result.view(shape);
  }

 private:
  const LinearCrossEntropyArgs& args_;
  at::Tensor weight_;  // (C d1 ... dK, features)
  at::Tensor bias_;    // (C d1 ... dK), or undefined
  LayerRows rows_;
  at::Tensor buffer_;
};

struct ChunkArgs {
  const Chunk& chunk;
  at::Tensor input, logits, target;
  CrossEntropyArgs args;

  ChunkArgs(const LinearCrossEntropyArgs& all, const Layer& layer, const Chunk& chunk)
      : chunk(chunk),
        input(chunk.of(all.input)),
        logits(layer.logits(input)),
        target(chunk.of(all.target)),
        args{all, logits, target, all.weight, all.return_lse} {}
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
    const auto sum_type = layer.rows().are_one_chunk() ? type : accumulator_type(type);
    const auto allocated = [&](bool is_wanted, at::IntArrayRef sizes, at::ScalarType dtype) {
      return empty_large(is_wanted ? sizes : at::IntArrayRef{0}, args.input.options().dtype(dtype));
    };
    of_input_ = allocated(wanted[0], args.input.sizes(), type);
    of_weight_ = allocated(wanted[1], layer.weight().sizes(), sum_type);
    of_bias_ = allocated(wanted[2], {layer.outputs()}, accumulator_type(type)).zero_();
    if (!layer.rows().are_all()) {
      of_input_.zero_();
    }
    if (layer.rows().are_none()) {  // else the first product overwrites it
      of_weight_.zero_();
    }
  }

  // The gradient of a chunk's logits takes their place.
  void add(const ChunkArgs& of_chunk, const CrossEntropyGradArgs& grad) {
    const Chunk& chunk = of_chunk.chunk;
    cross_entropy_backward_in_place(of_chunk.args, grad);
    const at::Tensor grad_logits =
        layer_factor(of_chunk.logits.view({chunk.count, layer_.outputs()}), layer_.weight());
    if (wanted_[0]) {
      chunk.fill(of_input_,
                 [&](at::Tensor& rows) { layer_grad_input(rows, grad_logits, layer_.weight()); });
    }
    if (wanted_[1]) {
      layer_grad_weight(of_weight_, grad_logits, of_chunk.input, chunk.first == 0);
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
  if (!layer.rows().are_all()) {
    all.state.zero_();
    all.loss.zero_();
  }
  const at::Tensor state = by_rows(all.state, args.input.size(0));
  at::Tensor sum = at::zeros_like(all.total_weight);
  layer.rows().for_each_chunk([&](const Chunk& chunk) {
    ChunkArgs of_chunk(args, layer, chunk);
    of_chunk.args.reduction = reduction_in_chunk(args);
    const ForwardOutputs rows = cross_entropy_forward(of_chunk.args);
    chunk.put(state, by_rows(rows.state, chunk.count));
    if (args.return_lse) {
      chunk.put(all.lse, rows.lse);
    }
    if (args.reduction == Reduction::kNone) {
      chunk.put(all.loss, rows.loss);
    } else {
      sum.add_(sum_of(of_chunk.args, rows));
    }
    if (sums) {
      of_chunk.args.reduction = args.reduction;
      const std::optional<at::Tensor> no_grad_lse;
      sums->add(of_chunk, {grad_loss, no_grad_lse, rows.state, all.total_weight});
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
  return run_forward(args, Layer(args, args.return_lse), at::Tensor(), nullptr);
}

LayerGradients linear_cross_entropy_backward_in_chunks(const LinearCrossEntropyArgs& args,
                                                       const CrossEntropyGradArgs& grad,
                                                       Wanted wanted) {
  check_chunks(args, grad);
  const NoAutocast no_autocast;
  const Layer layer(args, grad.has_grad_lse(), GradientSums::bytes(args, wanted));
  const at::Tensor state = by_rows(grad.state, args.input.size(0));
  GradientSums sums(args, layer, wanted);
  layer.rows().for_each_chunk([&](const Chunk& chunk) {
    const ChunkArgs of_chunk(args, layer, chunk);
    const bool has_row_losses = args.reduction == Reduction::kNone;
    const at::Tensor grad_loss = has_row_losses ? chunk.of(grad.grad_loss) : grad.grad_loss;
    const auto grad_lse =
        grad.has_grad_lse() ? std::make_optional(chunk.of(*grad.grad_lse)) : std::nullopt;
    const at::Tensor its_state = chunk.of(state).transpose(0, 1).flatten(1).contiguous();
    sums.add(of_chunk, {grad_loss, grad_lse, its_state, grad.total_weight});
  });
  return sums.results();
}

LinearForwardWithGradientOutputs linear_cross_entropy_forward_with_gradient_in_chunks(
    const LinearCrossEntropyArgs& args, double grad_loss, Wanted wanted) {
  check_chunks(args);
  check_labels_of_all_rows(args);
  const NoAutocast no_autocast;
  const Layer layer(args, args.return_lse, GradientSums::bytes(args, wanted));
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
