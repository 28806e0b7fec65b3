// The forward pass of a row: one walk over it, whatever the loss asks for.
#pragma once

#include "cuda/launch_plan.h"
#include "cuda/row_target.cuh"
#include "cuda/team.cuh"
#include "cuda/totals.cuh"

namespace softreg {
namespace {

// What kForwardSlots<T> slots of a row hold, from `slot` on, `step` apart. Past `end` there is
// nothing.
template <bool kPlain, typename T>
__device__ __forceinline__ RowState<Accumulator<T>> state_of_slots(
    const CrossEntropyRows<T, Accumulator<T>>& args, int64_t row, const RowItems<const T>& logits,
    const RowSlots<const T>& slots, int slot, int end, int step) {
  using A = Accumulator<T>;
  constexpr int kWidth = Pack<T>::kItems;
  const A nothing = -static_cast<A>(INFINITY);
  int first[kForwardSlots<T>];
  SlotItems<T, kWidth> raw[kForwardSlots<T>];
#pragma unroll
  for (int s = 0; s < kForwardSlots<T>; ++s) {
    first[s] = slot + s * step < end ? slots.first(slot + s * step) : logits.classes;
    raw[s] = logits.template load<kWidth>(first[s], static_cast<T>(nothing));
  }
  A x[kForwardSlots<T>][kWidth];
  A max = nothing;
#pragma unroll
  for (int s = 0; s < kForwardSlots<T>; ++s) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[s][i] = static_cast<A>(raw[s][i]);
      if (!kPlain && !args.transform.is_identity) {
        const A y = transform_logit(args.transform, x[s][i]).value;
        x[s][i] = logits.holds(first[s] + i) ? y : nothing;
      }
      max = vmax(max, x[s][i]);
    }
  }
  const A common = shift(max);
  RowState<A> state = RowState<A>::empty();
  state.exp.max = max;
#pragma unroll
  for (int s = 0; s < kForwardSlots<T>; ++s) {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum += exp_beside_logits<T>(x[s][i] - common);
    }
    state.exp.sum += sum;
  }
  if (!kPlain && args.all_classes_count()) {
#pragma unroll
    for (int s = 0; s < kForwardSlots<T>; ++s) {
      SlotItems<A, kWidth> of_class = coefficients(args, row, first[s], slots.head);
      A sum = 0, products = 0;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (logits.holds(first[s] + i)) {
          sum += of_class[i];
          products += of_class[i] * (x[s][i] - common);
        }
      }
      state.coefficient += sum;
      state.logit += products;
    }
  }
  return state;
}

template <typename T, typename A>
__device__ __forceinline__ A label_logit(const ForwardArgs<T, A>& args, int64_t row,
                                         RowTarget target) {
  if (args.has_probabilities() || !target.counts) {
    return 0;
  }
  const A logit = static_cast<A>(args.logits.row(row)[target.label * args.logits.class_stride]);
  return args.transform.is_identity ? logit : transform_logit(args.transform, logit).value;
}

// By one thread of the row's team.
template <typename T, typename A>
__device__ __forceinline__ void finish_row(const ForwardArgs<T, A>& args, int64_t row,
                                           RowTarget target, A logit_of_label,
                                           const RowState<A>& state, ForwardTotals& totals) {
  const A max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  A weighted_nll = 0;
  if (args.all_classes_count() && target.counts) {
    weighted_nll = static_cast<A>(
        weighted_negative_log_likelihood<double>(state.coefficient, log_sum, state.logit));
    if (args.has_probabilities()) {
      args.coefficient_sum[row] = static_cast<A>(state.coefficient);
    }
  }
  add_row(args, row, target, logit_of_label, max, state.exp.sum, log_sum, weighted_nll, totals);
}

// use(row, target, logit_of_label, state) for each row of the block, by every thread of the row's
// team: the state of the block's share of it.
template <bool kPlain, typename T, typename A, typename Use>
__device__ __forceinline__ void walk_rows(const ForwardArgs<T, A>& args, Team team, Share share,
                                          const Use& use) {
  __shared__ RowState<A> shared[2][kMostWarps];
  TeamMerge<A> merge_team{shared};
  const bool weighted = !kPlain && args.all_classes_count();
  const int64_t rows_at_once = team.per_block();
  for (int64_t begin = blockIdx.x * rows_at_once; begin < args.rows;
       begin += gridDim.x * rows_at_once) {
    // Threads beyond the last row keep step with the others of their warp.
    const int64_t row = begin + team.index();
    const bool exists = row < args.rows;
    RowTarget target;
    A logit_of_label = 0;
    RowState<A> state = RowState<A>::empty();
    if (exists) {
      target = checked_target(args, row);
      if (is_read(args, target)) {
        logit_of_label = label_logit(args, row, target);
        const RowSlots<const T> slots(args.logits.row(row), args.logits.classes_adjacent(),
                                      args.classes);
        const RowItems<const T> logits = items_of(args.logits, row, args.classes, slots.head);
        const int in_share = (slots.count + share.count - 1) / share.count;
        const int first = share.index * in_share;
        const int end = first + in_share < slots.count ? first + in_share : slots.count;
        for (int slot = first + team.lane(); slot < end; slot += kForwardSlots<T> * team.size) {
          const RowState<A> some =
              state_of_slots<kPlain>(args, row, logits, slots, slot, end, team.size);
          state = merge(state, some, weighted);
        }
      }
    }
    state = merge_team(state, team, weighted);
    if (exists) {
      use(row, target, logit_of_label, state);
    }
  }
}

template <typename T>
LaunchShape forward_shape(const ForwardArgs<T, Accumulator<T>>& args) {
  return {args.rows, args.classes, args.logits.classes_adjacent(), Pack<T>::kItems,
          kForwardSlots<T>};
}

}  // namespace
}  // namespace softreg
