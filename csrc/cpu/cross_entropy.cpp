// CPU: tensors to pointers, the dtype switch, threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "args.h"
#include "checks.h"
#include "cpu/kernels.h"

namespace softreg {
namespace {

// Logits worth a block of rows, and worth a thread of its own.
constexpr int64_t kBlockLogits = 4096;
constexpr int64_t kThreadLogits = 32768;

// Calls body(block, begin, end) for blocks of rows, in parallel. The blocks depend on the shape
// alone, so that what is summed block by block has the same bits whatever the number of threads.
struct RowBlocks {
  int64_t rows;
  int64_t rows_per_block;
  int64_t count;

  RowBlocks(int64_t rows, int64_t classes)
      : rows(rows),
        // a multiple of every vector's lanes where rows fill them
        rows_per_block(classes > kBlockLogits / 16
                           ? std::max<int64_t>(1, kBlockLogits / classes)
                           : kBlockLogits / std::max<int64_t>(1, classes) / 16 * 16),
        count((rows + rows_per_block - 1) / rows_per_block) {}

  template <typename Body>
  void parallel_for_each(int64_t classes, const Body& body) const {
    const int64_t block_logits = std::max<int64_t>(1, rows_per_block * classes);
    const int64_t grain = std::max<int64_t>(1, kThreadLogits / block_logits);
    at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * rows_per_block;
        body(block, begin, std::min(rows, begin + rows_per_block));
      }
    });
  }
};

// The tensors behind the pointers of CrossEntropyRows, made fit for the kernels where they are not.
template <typename T>
class KernelInputs {
 public:
  using A = Accumulator<T>;

  explicit KernelInputs(const CrossEntropyArgs& args)
      : logits_(args.logits.size(-1) > 1 && args.logits.stride(-1) != 1 ? args.logits.contiguous()
                                                                        : args.logits) {
    const bool batched = logits_.dim() > 1;
    rows_.logits = logits_.const_data_ptr<T>();
    rows_.rows = batched ? logits_.size(0) : 1;
    rows_.row_stride = batched ? logits_.stride(0) : 0;
    rows_.classes = logits_.size(-1);
    rows_.target = {args.target.const_data_ptr(), args.target.dim() > 0 ? args.target.stride(0) : 0,
                    args.target.scalar_type() == at::kByte, args.ignore_index};
    rows_.label_smoothing = args.label_smoothing;
    rows_.weight = nullptr;
    rows_.weight_sum = static_cast<A>(rows_.classes);
    if (args.has_weight()) {
      weight_ = args.weight->to(c10::CppTypeToScalarType<A>::value).contiguous();
      rows_.weight = weight_.const_data_ptr<A>();
      rows_.weight_sum = 0;
      for (int64_t c = 0; c < rows_.classes; ++c) {
        rows_.weight_sum += rows_.weight[c];
      }
    }
  }

  const CrossEntropyRows<T, A>& rows() const { return rows_; }

 private:
  at::Tensor logits_, weight_;
  CrossEntropyRows<T, A> rows_;
};

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  using A = Accumulator<T>;
  const KernelInputs<T> inputs(args);
  const auto& [loss, lse, total_weight] = outputs;
  A* lse_data = lse.mutable_data_ptr<A>();
  T* loss_data = loss.mutable_data_ptr<T>();
  const bool per_row = args.reduction == Reduction::kNone;
  const int64_t rows = inputs.rows().rows, classes = inputs.rows().classes;
  const ForwardArgs<T, A> kernel_args{inputs.rows(), lse_data, lse_data + rows,
                                      per_row ? loss_data : nullptr};

  const RowBlocks blocks(rows, classes);
  c10::SmallVector<ForwardTotals, 32> totals(blocks.count);
  const auto kernel = active_kernels().of<T>().forward;
  blocks.parallel_for_each(classes, [&](int64_t block, int64_t begin, int64_t end) {
    totals[block] = kernel(kernel_args, begin, end);
  });

  ForwardTotals all;
  for (const ForwardTotals& block : totals) {
    all.loss.add(block.loss);
    all.weight.add(block.weight);
    all.bad_row = std::min(all.bad_row, block.bad_row);
  }
  if (all.bad_row != kNoBadRow) {
    throw_bad_label(args, all.bad_row, kernel_args.target[all.bad_row]);
  }
  const double sum = all.loss.total(), divisor = all.weight.total();
  if (!per_row) {
    *loss_data = static_cast<T>(args.reduction == Reduction::kMean ? sum / divisor : sum);
  }
  *total_weight.mutable_data_ptr<double>() = divisor;
}

template <typename T>
void backward_typed(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                    const at::Tensor& grad_logits) {
  using A = Accumulator<T>;
  const KernelInputs<T> inputs(args);
  const A* lse_data = grad.lse.const_data_ptr<A>();
  const int64_t rows = inputs.rows().rows, classes = inputs.rows().classes;
  const T* grad_output = grad.grad_output.const_data_ptr<T>();
  const bool per_row = grad.grad_output.dim() > 0;
  // Divided in double: one rounding, not three.
  const double divisor =
      args.reduction == Reduction::kMean ? *grad.total_weight.const_data_ptr<double>() : 1;
  const BackwardArgs<T, A> kernel_args{
      inputs.rows(),
      lse_data,
      lse_data + rows,
      per_row ? grad_output : nullptr,
      per_row ? grad.grad_output.stride(0) : 0,
      per_row ? A(0) : static_cast<A>(static_cast<double>(*grad_output) / divisor),
      grad_logits.mutable_data_ptr<T>()};

  std::atomic<int64_t> bad_row{kNoBadRow};
  const auto kernel = active_kernels().of<T>().backward;
  const RowBlocks blocks(rows, classes);
  blocks.parallel_for_each(classes, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t bad = kernel(kernel_args, begin, end);
    for (int64_t first = bad_row; bad < first && !bad_row.compare_exchange_weak(first, bad);) {
    }
  });
  if (bad_row != kNoBadRow) {
    throw_bad_label(args, bad_row, kernel_args.target[bad_row]);
  }
}

#define SOFTREG_DISPATCH_LOGITS(dtype, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dtype, name, __VA_ARGS__)

ForwardOutputs cross_entropy_forward_cpu(const CrossEntropyArgs& args) {
  check(args);
  const ForwardOutputs outputs = empty_forward_outputs(args);
  SOFTREG_DISPATCH_LOGITS(args.logits.scalar_type(), "cross_entropy_forward_cpu",
                          [&] { forward_typed<scalar_t>(args, outputs); });
  return outputs;
}

at::Tensor cross_entropy_backward_cpu(const CrossEntropyArgs& args,
                                      const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const at::Tensor grad_logits = empty_grad_logits(args);
  SOFTREG_DISPATCH_LOGITS(args.logits.scalar_type(), "cross_entropy_backward_cpu",
                          [&] { backward_typed<scalar_t>(args, grad, grad_logits); });
  return grad_logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CPU, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cpu>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cpu>);
}

}  // namespace softreg
