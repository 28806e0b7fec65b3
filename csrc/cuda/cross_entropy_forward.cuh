// The forward pass: one walk over a row, whatever the loss asks for.
#pragma once

#include "cuda/cross_entropy_kernel.h"
#include "cuda/launch_plan.h"
#include "cuda/slot_coefficients.cuh"
#include "cuda/team.cuh"

namespace softreg {
namespace {

// Where a launch leaves what the next one takes up: the states of the columns of each row, or,
// where a row has one block to itself, each block's totals.
template <typename A>
struct ForwardWorkspace {
  RowState<A>* columns;
  Totals* totals;
};

// What kForwardSlots<T> slots of a row hold, from `slot` on, `step` apart. Past `end` there is
// nothing.
template <bool kPlain, typename T>
__device__ __forceinline__ RowState<Accumulator<T>> state_of_slots(
    const CrossEntropyRows<T, Accumulator<T>>& args, int64_t row, const RowItems<const T>& logits,
    const RowSlots<const T>& slots, int64_t slot, int64_t end, int step) {
  using A = Accumulator<T>;
  constexpr int kWidth = Pack<T>::kItems;
  const A nothing = -static_cast<A>(INFINITY);
  int64_t first[kForwardSlots<T>];
  SlotItems<T, kWidth> raw[kForwardSlots<T>];
#pragma unroll
  for (int s = 0; s < kForwardSlots<T>; ++s) {
    first[s] = slot + s * step < end ? slots.first(slot + s * step) : args.classes;
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
      sum += exp_for_sum<T>(x[s][i] - common);
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

template <typename T>
__device__ __forceinline__ void finish(const ForwardResult<T>& result, Totals totals) {
  if (result.loss) {
    *result.loss = static_cast<T>(result.is_mean ? totals.loss / totals.weight : totals.loss);
  }
  *result.total_weight = totals.weight;
}

template <typename T, bool kPlain>
__global__ void __launch_bounds__(512, 1)
    cross_entropy_forward_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                                 const __grid_constant__ ForwardResult<T> result,
                                 ForwardWorkspace<Accumulator<T>> workspace, int threads_of_row) {
  using A = Accumulator<T>;
  __shared__ RowState<A> shared[2][kMostWarps];
  TeamMerge<A> merge_team{shared};
  const Team team{threads_of_row};
  const bool weighted = !kPlain && args.all_classes_count(), whole_rows = gridDim.y == 1;
  ForwardTotals totals;
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
      int64_t bad_row = kNoBadRow;
      target = RowTarget(args, row, bad_row);
      assert_labels_in_range(bad_row);
      if (is_read(args, target)) {
        logit_of_label = label_logit(args, row, target);
        const RowSlots<const T> slots(args.logits.row(row), args.logits.classes_adjacent(),
                                      args.classes);
        const RowItems<const T> logits = items_of(args.logits, row, args.classes, slots.head);
        const int64_t in_column = (slots.count + gridDim.y - 1) / gridDim.y;
        const int64_t first = blockIdx.y * in_column;
        const int64_t end = first + in_column < slots.count ? first + in_column : slots.count;
        for (int64_t slot = first + team.lane(); slot < end; slot += kForwardSlots<T> * team.size) {
          const RowState<A> some =
              state_of_slots<kPlain>(args, row, logits, slots, slot, end, team.size);
          state = merge(state, some, weighted);
        }
      }
    }
    state = merge_team(state, team, weighted);
    if (exists && team.lane() == 0) {
      if (whole_rows) {
        finish_row(args, row, target, logit_of_label, state, totals);
      } else {
        workspace.columns[row * gridDim.y + blockIdx.y] = state;
      }
    }
  }
  if (whole_rows) {
    const Totals of_block = sum_over_block({totals.loss.total(), totals.weight.total()});
    if (threadIdx.x == 0) {
      if (gridDim.x == 1) {
        finish(result, of_block);
      } else {
        workspace.totals[blockIdx.x] = of_block;
      }
    }
  }
}

// One block: each row from the states of its columns.
template <typename T>
__global__ void __launch_bounds__(512, 1)
    merge_columns_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                         const __grid_constant__ ForwardResult<T> result,
                         const RowState<Accumulator<T>>* columns, int columns_of_row,
                         int threads_of_row) {
  using A = Accumulator<T>;
  const Team team{threads_of_row};
  const bool weighted = args.all_classes_count();
  ForwardTotals totals;
  for (int64_t begin = 0; begin < args.rows; begin += team.per_block()) {
    const int64_t row = begin + team.index();
    RowState<A> state = RowState<A>::empty();
    for (int c = team.lane(); row < args.rows && c < columns_of_row; c += team.size) {
      state = merge(state, columns[row * columns_of_row + c], weighted);
    }
    state = merge_lanes(state, team.size, weighted);
    if (row < args.rows && team.lane() == 0) {
      int64_t bad_row = kNoBadRow;
      const RowTarget target(args, row, bad_row);
      finish_row(args, row, target, label_logit(args, row, target), state, totals);
    }
  }
  const Totals of_block = sum_over_block({totals.loss.total(), totals.weight.total()});
  if (threadIdx.x == 0) {
    finish(result, of_block);
  }
}

// One block: the totals of the blocks before it.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    add_totals_kernel(const __grid_constant__ ForwardResult<T> result, const Totals* totals,
                      int count) {
  ForwardTotals mine;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    mine.loss.add(totals[i].loss);
    mine.weight.add(totals[i].weight);
  }
  const Totals of_block = sum_over_block({mine.loss.total(), mine.weight.total()});
  if (threadIdx.x == 0) {
    finish(result, of_block);
  }
}

}  // namespace

template <typename T>
LaunchPlan plan_forward(const ForwardArgs<T, Accumulator<T>>& args, int64_t multiprocessors) {
  return plan_forward(
      {args.rows, args.classes, args.logits.classes_adjacent(), Pack<T>::kItems, kForwardSlots<T>},
      multiprocessors);
}

template <typename T>
int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>& args, int64_t multiprocessors) {
  const LaunchPlan plan = plan_forward(args, multiprocessors);
  return plan.columns > 1 ? args.rows * plan.columns * sizeof(RowState<Accumulator<T>>)
                          : plan.blocks * sizeof(Totals);
}

template <typename T>
cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>& args,
                           const ForwardResult<T>& result, void* workspace, int64_t multiprocessors,
                           cudaStream_t stream) {
  using A = Accumulator<T>;
  const LaunchPlan plan = plan_forward(args, multiprocessors);
  const ForwardWorkspace<A> left{static_cast<RowState<A>*>(workspace),
                                 static_cast<Totals*>(workspace)};
  const auto kernel = args.is_plain() ? cross_entropy_forward_kernel<T, true>
                                      : cross_entropy_forward_kernel<T, false>;
  cudaError_t error = launch(kernel, dim3(plan.blocks, plan.columns), plan.threads, stream, args,
                             result, left, plan.team);
  if (error == cudaSuccess && plan.columns > 1) {
    int team = kWarp;
    while (team / 2 >= plan.columns) {
      team /= 2;
    }
    error = launch(merge_columns_kernel<T>, dim3(1), 512, stream, args, result, left.columns,
                   static_cast<int>(plan.columns), team);
  } else if (error == cudaSuccess && plan.blocks > 1) {
    error = launch(add_totals_kernel<T>, dim3(1), kMostThreads, stream, result, left.totals,
                   static_cast<int>(plan.blocks));
  }
  return error;
}

}  // namespace softreg
