// The gradients: each logit once, on its own, from the row's maximum and sum.
#pragma once

#include "cuda/cross_entropy_kernel.h"
#include "cuda/launch_plan.h"
#include "cuda/slot_coefficients.cuh"
#include "cuda/team.cuh"

namespace softreg {
namespace {

// The gradient of a row's logits, a slot at a time.
template <typename T, bool kPlain>
struct LogitGradients {
  using A = Accumulator<T>;
  static constexpr int kWidth = Pack<T>::kItems;

  const BackwardArgs<T, A>& args;
  int64_t row;
  int head;
  bool flows;  // else the row's gradient is 0, and its logits are not read
  int64_t label = -1;
  RowGradient<A> gradient;
  A max = 0;

  __device__ LogitGradients(const BackwardArgs<T, A>& args, int64_t row, int head)
      : args(args), row(row), head(head) {
    int64_t bad_row = kNoBadRow;
    const RowTarget target(args, row, bad_row);
    assert_labels_in_range(bad_row);
    flows = is_read(args, target);
    if (flows) {
      label = target.counts ? target.label : -1;
      gradient = row_gradient(args, row, target);
      max = args.row_max[row];
    }
  }

  __device__ __forceinline__ SlotItems<T, kWidth> of(int64_t first,
                                                     SlotItems<T, kWidth> raw) const {
    const bool weighted = !kPlain && args.all_classes_count();
    SlotItems<A, kWidth> of_class;
    if (weighted) {
      of_class = coefficients(args, row, first, head);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const A elsewhere = weighted ? gradient.weight_scale * of_class[i] : gradient.weight_scale;
      const A at = first + i == label ? gradient.target_offset : elsewhere;
      const A x = static_cast<A>(raw[i]);
      if (kPlain || args.transform.is_identity) {
        raw[i] = static_cast<T>(
            logit_gradient(vexp(x - max), gradient.softmax_scale, at, gradient.upstream));
      } else {
        const TransformedLogit<A> y = transform_logit(args.transform, x);
        raw[i] = static_cast<T>(
            logit_gradient(vexp(y.value - max), gradient.softmax_scale, at, gradient.upstream) *
            y.slope);
      }
    }
    return raw;
  }
};

// The gradient of a row's target of probabilities.
template <typename T, bool kPlain>
struct TargetGradients {
  using A = Accumulator<T>;
  static constexpr int kWidth = Pack<T>::kItems;

  const BackwardArgs<T, A>& args;
  int head;
  A max, log_sum, on, upstream;
  bool flows = true;

  __device__ TargetGradients(const BackwardArgs<T, A>& args, int64_t row, int head)
      : args(args),
        head(head),
        max(args.row_max[row]),
        log_sum(vlog(args.sum[row])),
        on(on_target(args)),
        upstream(upstream_gradient(args, row)) {}

  __device__ __forceinline__ SlotItems<T, kWidth> of(int64_t first,
                                                     SlotItems<T, kWidth> raw) const {
    SlotItems<A, kWidth> weight = class_weights(args, first, head);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      A x = static_cast<A>(raw[i]);
      if (!kPlain && !args.transform.is_identity) {
        x = transform_logit(args.transform, x).value;
      }
      raw[i] = static_cast<T>(
          probability_gradient(weight[i], on, negative_log_likelihood(log_sum, x - max), upstream));
    }
    return raw;
  }
};

template <template <typename, bool> class Gradients, typename T, bool kPlain>
__global__ void __launch_bounds__(512, 1)
    cross_entropy_gradient_kernel(const __grid_constant__ BackwardArgs<T, Accumulator<T>> args,
                                  int threads_of_row) {
  constexpr int kWidth = Pack<T>::kItems;
  const Team team{threads_of_row};
  const int64_t rows_at_once = team.per_block();
  const int64_t step = static_cast<int64_t>(team.size) * kGradientSlots<T> * gridDim.y;
  for (int64_t row = blockIdx.x * rows_at_once + team.index(); row < args.rows;
       row += gridDim.x * rows_at_once) {
    const RowSlots<T> slots(args.grad.row(row), args.grad.classes_adjacent(), args.classes);
    const RowItems<T> grad = items_of(args.grad, row, args.classes, slots.head);
    const RowItems<const T> logits = items_of(args.logits, row, args.classes, slots.head);
    const Gradients<T, kPlain> gradients(args, row, slots.head);
    for (int64_t begin =
             static_cast<int64_t>(blockIdx.y) * team.size * kGradientSlots<T> + team.lane();
         begin < slots.count; begin += step) {
      SlotItems<T, kWidth> items[kGradientSlots<T>];
      int64_t first[kGradientSlots<T>];
#pragma unroll
      for (int s = 0; s < kGradientSlots<T>; ++s) {
        const int64_t slot = begin + static_cast<int64_t>(s) * team.size;
        first[s] = slot < slots.count ? slots.first(slot) : args.classes;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          items[s][i] = T(0);
        }
        if (gradients.flows) {
          items[s] = logits.template load<kWidth>(first[s], T(0));
        }
      }
#pragma unroll
      for (int s = 0; s < kGradientSlots<T>; ++s) {
        grad.template store<kWidth>(first[s],
                                    gradients.flows ? gradients.of(first[s], items[s]) : items[s]);
      }
    }
  }
}

template <template <typename, bool> class Gradients, typename T>
cudaError_t launch_gradient(const BackwardArgs<T, Accumulator<T>>& args, cudaStream_t stream) {
  const LaunchPlan plan = plan_gradient(
      {args.rows, args.classes, args.grad.classes_adjacent(), Pack<T>::kItems, kGradientSlots<T>});
  const auto kernel = args.is_plain() ? cross_entropy_gradient_kernel<Gradients, T, true>
                                      : cross_entropy_gradient_kernel<Gradients, T, false>;
  return launch(kernel, dim3(plan.blocks, plan.columns), plan.threads, stream, args, plan.team);
}

}  // namespace

template <typename T>
cudaError_t launch_backward(const BackwardArgs<T, Accumulator<T>>& args, cudaStream_t stream) {
  return launch_gradient<LogitGradients>(args, stream);
}

template <typename T>
cudaError_t launch_grad_target(const BackwardArgs<T, Accumulator<T>>& args, cudaStream_t stream) {
  return launch_gradient<TargetGradients>(args, stream);
}

}  // namespace softreg
