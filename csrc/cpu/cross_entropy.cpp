// CPU: tensors to pointers, the dtype switch, threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "args.h"
#include "checks.h"
#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "row_matrix.h"

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

// The tensors behind the pointers of CrossEntropyRows, made fit for the kernels where they are not.
template <typename T>
class KernelInputs {
 public:
  using A = Accumulator<T>;

  explicit KernelInputs(const CrossEntropyArgs& args) {
    rows_.rows = row_count(args.logits).expect_int();
    rows_.classes = args.logits.size(args.class_dim());
    rows_.label_smoothing = args.label_smoothing;
    rows_.z_loss = static_cast<A>(args.z_loss);
    rows_.transform = {static_cast<A>(args.logit_scale), static_cast<A>(args.softcap),
                       !args.transforms_logits()};
    rows_.logits = fit(args.logits, logits_);
    rows_.labels = {nullptr, 0, 0, args.ignore_index};
    if (args.has_probabilities()) {
      rows_.probabilities = fit(args.target, target_);
    } else {
      target_ = args.target.dim() > 1 ? args.target.contiguous() : args.target;
      TORCH_CHECK(target_.unsafeGetTensorImpl()->storage_initialized(),
                  "cross_entropy: target has elements, but its data is not allocated");
      rows_.labels.data = target_.const_data_ptr();
      rows_.labels.stride = target_.dim() > 0 ? target_.stride(target_.dim() - 1) : 0;
      rows_.labels.bytes = target_.element_size();
    }
    rows_.weight = nullptr;
    double weight_sum = static_cast<double>(rows_.classes);
    if (args.has_weight()) {
      weight_ = args.weight->to(c10::CppTypeToScalarType<A>::value).contiguous();
      rows_.weight = weight_.const_data_ptr<A>();
    }
    if (args.has_weight() && args.label_smoothing > 0) {
      weight_sum = std::accumulate(rows_.weight, rows_.weight + rows_.classes, 0.0);
    }
    rows_.weight_sum = args.label_smoothing > 0 ? static_cast<A>(weight_sum) : A(0);
  }

  const CrossEntropyRows<T, A>& rows() const { return rows_; }

 private:
  static RowMatrix<const T> fit(const at::Tensor& given, at::Tensor& used) {
    used = given.to(c10::CppTypeToScalarType<T>::value);
    if (!row_strides(used)) {
      used = used.contiguous();
    }
    return row_matrix(*row_strides(used), used.const_data_ptr<T>());
  }

  at::Tensor logits_, target_, weight_;
  CrossEntropyRows<T, A> rows_;
};

template <typename T>
void forward_typed(const CrossEntropyArgs& args, const ForwardOutputs& outputs) {
  using A = Accumulator<T>;
  const KernelInputs<T> inputs(args);
  A* state = outputs.state.mutable_data_ptr<A>();
  T* loss = outputs.loss.mutable_data_ptr<T>();
  const bool per_row = args.reduction == Reduction::kNone;
  const int64_t rows = inputs.rows().rows, classes = inputs.rows().classes;
  const ForwardArgs<T, A> kernel_args{inputs.rows(),
                                      state,
                                      state + rows,
                                      args.has_probabilities() ? state + 2 * rows : nullptr,
                                      args.return_lse ? outputs.lse.mutable_data_ptr<A>() : nullptr,
                                      per_row ? loss : nullptr};

  const RowBlocks blocks(rows, classes, inputs.rows().logits.inner > 1);
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
  if (!per_row) {
    *loss = static_cast<T>(args.reduction == Reduction::kMean ? sum / divisor : sum);
  }
  *outputs.total_weight.mutable_data_ptr<double>() = divisor;
}

bool is_expanded_scalar(const at::Tensor& tensor) {
  const auto strides = tensor.strides();
  return std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; });
}

// Fills `result`, which is shaped like the logits, by the kernel.
template <typename T>
void gradient_typed(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                    GradientKernel<T>* kernel, const at::Tensor& result) {
  using A = Accumulator<T>;
  const KernelInputs<T> inputs(args);
  const A* state = grad.state.const_data_ptr<A>();
  const int64_t rows = inputs.rows().rows, classes = inputs.rows().classes;
  const bool per_row = grad.grad_loss.dim() > 0;
  // One stride for all rows: loss.sum() sends an expanded scalar, others may need a copy.
  const at::Tensor upstream = grad.grad_loss.dim() > 1 && !is_expanded_scalar(grad.grad_loss)
                                  ? grad.grad_loss.contiguous()
                                  : grad.grad_loss;
  const T* grad_loss = upstream.const_data_ptr<T>();
  const at::Tensor grad_lse = grad.has_grad_lse() ? grad.grad_lse->contiguous() : at::Tensor();
  // Divided in double: one rounding, not three.
  const double divisor =
      args.reduction == Reduction::kMean ? *grad.total_weight.const_data_ptr<double>() : 1;
  // Not every layout that a tensor can have is one the kernels can write.
  const auto type = c10::CppTypeToScalarType<T>::value;
  const bool direct = result.scalar_type() == type && row_strides(result).has_value();
  const at::Tensor written =
      direct ? result : at::empty(result.sizes(), result.options().dtype(type));
  prefer_huge_pages(written.mutable_data_ptr<T>(), written.nbytes());
  const BackwardArgs<T, A> kernel_args{
      inputs.rows(),
      state,
      state + rows,
      args.has_probabilities() ? state + 2 * rows : nullptr,
      per_row ? grad_loss : nullptr,
      per_row ? upstream.stride(upstream.dim() - 1) : 0,
      per_row ? A(0) : static_cast<A>(static_cast<double>(*grad_loss) / divisor),
      grad_lse.defined() ? grad_lse.const_data_ptr<A>() : nullptr,
      row_matrix(*row_strides(written), written.mutable_data_ptr<T>())};

  std::atomic<int64_t> bad_row{kNoBadRow};
  const RowBlocks blocks(rows, classes, inputs.rows().logits.inner > 1);
  blocks.parallel_for_each(classes, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t bad = kernel(kernel_args, begin, end);
    for (int64_t first = bad_row; bad < first && !bad_row.compare_exchange_weak(first, bad);) {
    }
  });
  if (bad_row != kNoBadRow) {
    throw_bad_label(args, bad_row, kernel_args.labels[bad_row]);
  }
  if (!direct) {
    result.copy_(written);
  }
}

#define SOFTREG_DISPATCH_LOGITS(dtype, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dtype, name, __VA_ARGS__)

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
  const at::Tensor grad_logits = empty_grad_logits(args);
  SOFTREG_DISPATCH_LOGITS(args.result_type(), "cross_entropy_backward_cpu", [&] {
    gradient_typed<scalar_t>(args, grad, active_kernels().of<scalar_t>().backward, grad_logits);
  });
  return grad_logits;
}

at::Tensor cross_entropy_grad_target_cpu(const CrossEntropyArgs& args,
                                         const CrossEntropyGradArgs& grad) {
  check_grad_target(args, grad);
  const at::Tensor grad_target = empty_grad_target(args);
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
