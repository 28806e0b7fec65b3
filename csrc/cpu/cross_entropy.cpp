// CPU: tensors to pointers, the dtype switch, threads.
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "args.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/large_results.h"
#include "kernel_inputs.h"

namespace softreg {
namespace {

// Logits worth a block of rows, and worth a thread of its own.
constexpr int64_t kBlockLogits = 4096;
constexpr int64_t kThreadLogits = 32768;
// A multiple of every vector's lanes, for rows that fill them.
constexpr int64_t kLanes = 16;

// Calls body(block, begin, end) for blocks of rows, in parallel. The blocks depend on the shape
// alone, so that what is summed block by block has the same bits whatever the number of threads.
struct RowBlocks {
  int64_t rows;
  int64_t rows_per_block;
  int64_t count;

  RowBlocks(int64_t rows, int64_t classes, bool rows_adjacent)
      : rows(rows),
        rows_per_block(std::max<int64_t>(1, kBlockLogits / std::max<int64_t>(1, classes))) {
    if (rows_adjacent || rows_per_block > kLanes) {
      rows_per_block = (rows_per_block + kLanes - 1) / kLanes * kLanes;
    }
    count = (rows + rows_per_block - 1) / rows_per_block;
  }

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

at::Tensor weight_sum_cpu(const at::Tensor& weight) {
  const at::Tensor sum = at::empty({}, weight.options());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "weight_sum_cpu", [&] {
    const scalar_t* of_class = weight.const_data_ptr<scalar_t>();
    const double total = std::accumulate(of_class, of_class + weight.numel(), 0.0);
    *sum.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(total);
  });
  return sum;
}

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  const KernelInputs<T> inputs(args, weight_sum_cpu);
  const ForwardArgs<T, Accumulator<T>> kernel_args = forward_args(args, inputs, outputs);
  const int64_t rows = kernel_args.rows, classes = kernel_args.classes;

  const RowBlocks blocks(rows, classes, kernel_args.logits.inner > 1);
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
    throw_bad_label(args, all.bad_row, kernel_args.labels[all.bad_row]);
  }
  const double sum = all.loss.total(), divisor = all.weight.total();
  if (args.reduction != Reduction::kNone) {
    *outputs.loss.mutable_data_ptr<T>() =
        static_cast<T>(args.reduction == Reduction::kMean ? sum / divisor : sum);
  }
  *outputs.total_weight.mutable_data_ptr<double>() = divisor;
}

// Fills `result`, which is shaped like the logits, by the kernel.
template <typename T>
void gradient_typed(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                    GradientKernel<T>* kernel, const at::Tensor& result) {
  const GradientTensors<T> tensors(args, grad, result, weight_sum_cpu);
  BackwardArgs<T, Accumulator<T>> kernel_args = tensors.kernel_args();
  if (tensors.is_reduced()) {  // divided once, not once a row
    const double divisor = kernel_args.total_weight ? *kernel_args.total_weight : 1;
    kernel_args.grad_reduced =
        static_cast<Accumulator<T>>(static_cast<double>(*kernel_args.grad_loss) / divisor);
    kernel_args.grad_loss = nullptr;
  }

  std::atomic<int64_t> bad_row{kNoBadRow};
  const RowBlocks blocks(kernel_args.rows, kernel_args.classes, kernel_args.logits.inner > 1);
  blocks.parallel_for_each(kernel_args.classes, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t bad = kernel(kernel_args, begin, end);
    for (int64_t first = bad_row; bad < first && !bad_row.compare_exchange_weak(first, bad);) {
    }
  });
  if (bad_row != kNoBadRow) {
    throw_bad_label(args, bad_row, kernel_args.labels[bad_row]);
  }
  tensors.copy_to_result();
}

ForwardOutputs cross_entropy_forward_cpu(const CrossEntropyArgs& args) {
  check(args);
  const ForwardOutputs outputs = empty_forward_outputs(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_forward_cpu",
                          [&] { forward_typed<scalar_t>(args, outputs); });
  return outputs;
}

at::Tensor cross_entropy_backward_cpu(const CrossEntropyArgs& args,
                                      const CrossEntropyGradArgs& grad) {
  check(args, grad);
  const at::Tensor grad_logits = on_kept_memory(empty_grad_logits(args));
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_cpu", [&] {
    gradient_typed<scalar_t>(args, grad, active_kernels().of<scalar_t>().backward, grad_logits);
  });
  return grad_logits;
}

at::Tensor cross_entropy_grad_target_cpu(const CrossEntropyArgs& args,
                                         const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  const at::Tensor grad_target = on_kept_memory(empty_grad_target(args));
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_grad_target_cpu", [&] {
    gradient_typed<scalar_t>(args, grad, active_kernels().of<scalar_t>().grad_target, grad_target);
  });
  return grad_target;
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CPU, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cpu>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cpu>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_cpu>);
}

}  // namespace softreg
