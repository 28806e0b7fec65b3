// CPU: tensors to pointers, the dtype switch, threads.
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "args.h"
#include "checks.h"
#include "cpu/active_kernels.h"
#include "cpu/large_results.h"
#include "kernel_inputs.h"
#include "parts.h"

namespace softreg {
namespace {

// Logits worth a block of rows, and worth a thread of its own.
constexpr int64_t kBlockLogits = 4096;
constexpr int64_t kThreadLogits = 32768;
// Rows so few that threads share each of them, where it is long enough for two.
constexpr int64_t kFewRows = 32;
// A multiple of every vector's lanes, for rows that fill them.
constexpr int64_t kLanes = 32;

// Calls body(block, begin, end, columns) for blocks of rows, in parallel; of few long rows for some
// columns of a row at a time. The blocks depend on the shape alone, so that what is summed block
// by block has the same bits whatever the number of threads.
struct RowBlocks {
  int64_t rows;
  int64_t classes;
  int64_t rows_per_block;
  int64_t columns_per_block;
  int64_t columns_of_row = 1;  // blocks of them

  // `splits`: whether the kernel takes columns of a row by themselves.
  template <typename T, typename A>
  RowBlocks(const CrossEntropyRows<T, A>& args, bool splits)
      : rows(args.rows),
        classes(args.classes),
        rows_per_block(std::max<int64_t>(1, kBlockLogits / std::max<int64_t>(1, classes))),
        columns_per_block(classes) {
    const bool rows_adjacent = args.logits.inner > 1;
    if (rows_adjacent || rows_per_block > kLanes) {
      rows_per_block = rounded_up(rows_per_block, kLanes);
    }
    if (splits && rows < kFewRows && classes >= 2 * kThreadLogits) {
      const int64_t parts = parts_of(classes, kThreadLogits);
      columns_per_block = rounded_up(parts_of(classes, parts), kLanes);
      columns_of_row = parts_of(classes, columns_per_block);
    }
  }

  int64_t count() const { return parts_of(rows, rows_per_block) * columns_of_row; }

  Columns columns(int64_t index) const {
    const int64_t first = index * columns_per_block;
    return {first, std::min(columns_per_block, classes - first)};
  }

  RowBlocks of_whole_rows() const {
    RowBlocks blocks = *this;
    blocks.columns_per_block = classes;
    blocks.columns_of_row = 1;
    return blocks;
  }

  template <typename Body>
  void parallel_for_each(const Body& body) const {
    const int64_t block_logits = std::max<int64_t>(1, rows_per_block * columns_per_block);
    const int64_t grain = std::max<int64_t>(1, kThreadLogits / block_logits);
    at::parallel_for(0, count(), grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block / columns_of_row * rows_per_block;
        body(block, begin, std::min(rows, begin + rows_per_block), columns(block % columns_of_row));
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

// Writes the results that are of all rows; returns what the mean divides by.
template <typename T, typename A>
double finish_forward(const CrossEntropyArgs& args, const ForwardArgs<T, A>& kernel_args,
                      const ForwardOutputs& outputs, const ForwardTotals& totals) {
  if (totals.bad_row != kNoBadRow) {
    throw_bad_label(args, totals.bad_row, kernel_args.labels[totals.bad_row]);
  }
  const double sum = totals.loss.total(), divisor = totals.weight.total();
  if (args.reduction != Reduction::kNone) {
    *outputs.loss.mutable_data_ptr<T>() =
        static_cast<T>(args.reduction == Reduction::kMean ? sum / divisor : sum);
  }
  *outputs.total_weight.mutable_data_ptr<double>() = divisor;
  return divisor;
}

// kernel(begin, end) returns the totals of these rows.
template <typename Kernel>
ForwardTotals run_forward(const RowBlocks& blocks, const Kernel& kernel) {
  c10::SmallVector<ForwardTotals, 32> totals(blocks.count());
  blocks.parallel_for_each([&](int64_t block, int64_t begin, int64_t end, Columns) {
    totals[block] = kernel(begin, end);
  });
  ForwardTotals all;
  for (const ForwardTotals& block : totals) {
    all.loss.add(block.loss);
    all.weight.add(block.weight);
    all.bad_row = std::min(all.bad_row, block.bad_row);
  }
  return all;
}

template <typename T, typename A>
ForwardTotals run_forward(const ForwardArgs<T, A>& args) {
  const auto& kernels = active_kernels().of<T>();
  const RowBlocks blocks(args, args.classes_adjacent());
  if (blocks.columns_of_row == 1) {
    return run_forward(
        blocks, [&](int64_t begin, int64_t end) { return kernels.forward(args, begin, end); });
  }
  c10::SmallVector<RowState<A>, 32> states(blocks.count());
  blocks.parallel_for_each([&](int64_t block, int64_t row, int64_t, Columns columns) {
    states[block] = kernels.state_of_columns(args, row, columns);
  });
  const int64_t of_row = blocks.columns_of_row;
  return run_forward(blocks.of_whole_rows(), [&](int64_t begin, int64_t end) {
    return kernels.forward_of_states(args, begin, end, states.data() + begin * of_row, of_row);
  });
}

// The same bits, by one thread.
template <typename T, typename A>
ForwardTotals forward_of_long_row(const ForwardArgs<T, A>& args, const RowBlocks& blocks,
                                  int64_t row) {
  const auto& kernels = active_kernels().of<T>();
  c10::SmallVector<RowState<A>, 32> states(blocks.columns_of_row);
  for (int64_t i = 0; i < blocks.columns_of_row; ++i) {
    states[i] = kernels.state_of_columns(args, row, blocks.columns(i));
  }
  return kernels.forward_of_states(args, row, row + 1, states.data(), blocks.columns_of_row);
}

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  const KernelInputs<T> inputs(args, weight_sum_cpu);
  const auto kernel_args = forward_args(args, inputs, outputs);
  finish_forward(args, kernel_args, outputs, run_forward(kernel_args));
}

// Returns the first bad row.
template <typename T, typename A>
int64_t run_gradient(GradientKernel<T>* kernel, const BackwardArgs<T, A>& args) {
  std::atomic<int64_t> bad_row{kNoBadRow};
  const RowBlocks blocks(args, args.classes_adjacent() && args.grad.classes_adjacent());
  blocks.parallel_for_each([&](int64_t, int64_t begin, int64_t end, Columns columns) {
    const int64_t bad = kernel(args, begin, end, columns);
    for (int64_t first = bad_row; bad < first && !bad_row.compare_exchange_weak(first, bad);) {
    }
  });
  return bad_row;
}

// Of the rows [begin, end), from their labels alone.
template <typename T, typename A>
double total_weight_of(const ForwardArgs<T, A>& args, int64_t begin, int64_t end) {
  const Labels& labels = args.labels;
  if (args.weight || labels.bytes != 8 || labels.stride != 1) {
    return active_kernels().of<T>().total_weight(args, begin, end);
  }
  const int64_t* of_rows = static_cast<const int64_t*>(labels.data);
  const auto ignored = std::count(of_rows + begin, of_rows + end, labels.ignore_index);
  return static_cast<double>(end - begin - ignored);
}

// What the mean will divide by: but for the last bits, where weights are summed in another order.
template <typename T, typename A>
double expected_total_weight(const ForwardArgs<T, A>& args) {
  constexpr int64_t kThreadLabels = 65536;
  if (args.has_probabilities()) {
    return static_cast<double>(args.rows);
  }
  const int64_t parts = parts_of(args.rows, kThreadLabels);
  c10::SmallVector<double, 32> totals(parts);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * kThreadLabels;
      totals[part] = total_weight_of(args, begin, std::min(args.rows, begin + kThreadLabels));
    }
  });
  return std::accumulate(totals.begin(), totals.end(), 0.0);
}

// A row's tanhs for each thread, where the passes share them.
template <typename A>
class KeptTanhs {
 public:
  template <typename T>
  explicit KeptTanhs(const CrossEntropyRows<T, A>& args) {
    if (args.transform.is_capped() && args.classes > kChunk) {
      tanhs_ = at::empty({at::get_num_threads(), rounded_up(args.classes, kLanes)},
                         c10::CppTypeToScalarType<A>::value);
    }
  }

  A* of_this_thread() const {
    return tanhs_.defined() ? tanhs_.mutable_data_ptr<A>() + at::get_thread_num() * tanhs_.size(1)
                            : nullptr;
  }

 private:
  at::Tensor tanhs_;
};

template <typename T>
void forward_with_gradient_typed(const CrossEntropyArgs& args, double grad_loss,
                                 const ForwardWithGradientOutputs& outputs) {
  using A = Accumulator<T>;
  const KernelInputs<T> inputs(args, weight_sum_cpu);
  const ForwardArgs<T, A> kernel_args = forward_args(args, inputs, outputs);
  const WrittenGradient<T> written(outputs.grad_logits);
  const bool is_mean = args.reduction == Reduction::kMean;
  const auto gradient_by = [&](double divisor) {
    return backward_args<T>(kernel_args, static_cast<A>(grad_loss / divisor), written.matrix());
  };
  const auto& kernels = active_kernels().of<T>();
  const RowBlocks blocks(kernel_args, kernel_args.classes_adjacent());
  const bool shares_rows = blocks.columns_of_row > 1;
  if (shares_rows && kernel_args.rows < at::get_num_threads()) {
    const ForwardTotals totals = run_forward(kernel_args);
    const double divisor = finish_forward(args, kernel_args, outputs, totals);
    run_gradient<T>(kernels.backward, gradient_by(is_mean ? divisor : 1));
  } else {
    const double expected = is_mean ? expected_total_weight(kernel_args) : 1;
    const BackwardArgs<T, A> gradient_args = gradient_by(expected);
    const KeptTanhs<A> tanhs(kernel_args);
    const auto forward_with_gradient = [&](int64_t begin, int64_t end) {
      if (!shares_rows) {
        return kernels.forward_with_gradient(kernel_args, gradient_args, begin, end,
                                             tanhs.of_this_thread());
      }
      const ForwardTotals totals = forward_of_long_row(kernel_args, blocks, begin);
      kernels.backward(gradient_args, begin, end, {0, kernel_args.classes});
      return totals;
    };
    const ForwardTotals totals = run_forward(blocks.of_whole_rows(), forward_with_gradient);
    const double divisor = finish_forward(args, kernel_args, outputs, totals);
    if (is_mean && divisor != expected) {
      run_gradient<T>(kernels.backward, gradient_by(divisor));
    }
  }
  written.copy_to_result();
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
    kernel_args.total_weight = nullptr;
  }

  const int64_t bad_row = run_gradient<T>(kernel, kernel_args);
  if (bad_row != kNoBadRow) {
    throw_bad_label(args, bad_row, kernel_args.labels[bad_row]);
  }
  tensors.copy_to_result();
}

ForwardOutputs kept_forward_outputs(const CrossEntropyArgs& args) {
  ForwardOutputs outputs = empty_forward_outputs(args);
  for (at::Tensor* of_rows : {&outputs.loss, &outputs.lse, &outputs.state}) {
    *of_rows = on_kept_memory(*of_rows);
  }
  return outputs;
}

ForwardOutputs cross_entropy_forward_cpu(const CrossEntropyArgs& args) {
  check(args);
  const ForwardOutputs outputs = kept_forward_outputs(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_forward_cpu",
                          [&] { forward_typed<scalar_t>(args, outputs); });
  return outputs;
}

ForwardWithGradientOutputs cross_entropy_forward_with_gradient_cpu(const CrossEntropyArgs& args,
                                                                   double grad_loss) {
  check(args);
  const ForwardWithGradientOutputs outputs{kept_forward_outputs(args),
                                           on_kept_memory(empty_grad_logits(args))};
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_forward_with_gradient_cpu",
                          [&] { forward_with_gradient_typed<scalar_t>(args, grad_loss, outputs); });
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

void cross_entropy_backward_in_place_cpu(const CrossEntropyArgs& args,
                                         const CrossEntropyGradArgs& grad) {
  check_in_place(args, grad);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_in_place_cpu", [&] {
    gradient_typed<scalar_t>(args, grad, active_kernels().of<scalar_t>().backward, args.logits);
  });
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

void cross_entropy_correction_cpu(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                                  const at::Tensor& grad_logits, double guess,
                                  const at::Tensor& report) {
  check_correction(args, grad, grad_logits, report);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_correction_cpu", [&] {
    const auto upstream = static_cast<double>(*grad.grad_loss.const_data_ptr<scalar_t>());
    const bool right = upstream == guess;
    __atomic_store(report.mutable_data_ptr<double>() + right, &upstream, __ATOMIC_RELAXED);
    if (!right) {
      gradient_typed<scalar_t>(args, grad, active_kernels().of<scalar_t>().backward, grad_logits);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(softreg_ext, CPU, m) {
  m.impl("cross_entropy_forward", &forward_entry<cross_entropy_forward_cpu>);
  m.impl("cross_entropy_forward_with_gradient",
         forward_with_gradient_entry<cross_entropy_forward_with_gradient_cpu>);
  m.impl("cross_entropy_backward", &backward_entry<cross_entropy_backward_cpu>);
  m.impl("cross_entropy_backward_", &backward_entry<cross_entropy_backward_in_place_cpu>);
  m.impl("cross_entropy_grad_target", &backward_entry<cross_entropy_grad_target_cpu>);
  m.impl("cross_entropy_correction", correction_entry<cross_entropy_correction_cpu>);
}

}  // namespace softreg
