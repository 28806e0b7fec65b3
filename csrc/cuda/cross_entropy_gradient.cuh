// The gradients of a row: each logit once, on its own, from the row's maximum and sum.
#pragma once

#include "cuda/launch_plan.h"
#include "cuda/row_target.cuh"
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
  int label;
  A max = 0;
  RowGradient<A> gradient;

  // saved(): what the forward pass has left of the row.
  template <typename Saved>
  __device__ LogitGradients(const BackwardArgs<T, A>& args, int64_t row, int head, RowTarget target,
                            const Saved& saved)
      : args(args),
        row(row),
        head(head),
        flows(is_read(args, target)),
        label(target.counts ? static_cast<int>(target.label) : -1) {
    if (flows) {
      const SavedRow<A> of_row = saved();
      max = of_row.max;
      gradient = row_gradient(args, row, target, of_row);
    }
  }

  __device__ LogitGradients(const BackwardArgs<T, A>& args, int64_t row, int head)
      : LogitGradients(args, row, head, checked_target(args, row),
                       [&] { return saved_row(args, row); }) {}

  __device__ __forceinline__ SlotItems<T, kWidth> of(int first, SlotItems<T, kWidth> raw) const {
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
        raw[i] = static_cast<T>(logit_gradient(exp_beside_logits<T>(x - max),
                                               gradient.softmax_scale, at, gradient.upstream));
      } else {
        const TransformedLogit<A> y = transform_logit(args.transform, x);
        raw[i] = static_cast<T>(logit_gradient(exp_beside_logits<T>(y.value - max),
                                               gradient.softmax_scale, at, gradient.upstream) *
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
        on(args.on_target),
        upstream(upstream_gradient(args, row)) {}

  __device__ __forceinline__ SlotItems<T, kWidth> of(int first, SlotItems<T, kWidth> raw) const {
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

// gradients_of(head): the row's Gradients, once its first slot is known.
template <int kSlots, typename T, typename A, typename GradientsOf>
__device__ __forceinline__ void write_gradient_row(const BackwardArgs<T, A>& args, int64_t row,
                                                   Team team, Share share,
                                                   const GradientsOf& gradients_of) {
  constexpr int kWidth = Pack<T>::kItems;
  const RowSlots<T> slots(args.grad.row(row), args.grad.classes_adjacent(), args.classes);
  const RowItems<T> grad = items_of(args.grad, row, args.classes, slots.head);
  const RowItems<const T> logits = items_of(args.logits, row, args.classes, slots.head);
  const auto gradients = gradients_of(slots.head);
  const int at_once = team.size * kSlots;
  for (int begin = share.index * at_once + team.lane(); begin < slots.count;
       begin += share.count * at_once) {
    SlotItems<T, kWidth> items[kSlots];
    int first[kSlots];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int slot = begin + s * team.size;
      first[s] = slot < slots.count ? slots.first(slot) : grad.classes;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        items[s][i] = T(0);
      }
      if (gradients.flows) {
        items[s] = logits.template load<kWidth>(first[s], T(0));
      }
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      grad.template store<kWidth>(first[s],
                                  gradients.flows ? gradients.of(first[s], items[s]) : items[s]);
    }
  }
}

}  // namespace
}  // namespace softreg
