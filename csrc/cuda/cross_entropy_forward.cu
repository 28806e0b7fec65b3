// The forward pass: kernels, and how they are launched.
#include "cuda/cross_entropy_forward.cuh"

namespace softreg {
namespace {

// Where a launch leaves what the next one takes up: the states of the columns of each row, or,
// where a row has one block to itself, each block's totals.
template <typename A>
struct ForwardWorkspace {
  RowState<A>* columns;
  Totals* totals;
};

template <typename T, bool kPlain>
__global__ void __launch_bounds__(512, (kResidentBlocks<T, kPlain>))
    cross_entropy_forward_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                                 const __grid_constant__ ForwardResult<T> result,
                                 ForwardWorkspace<Accumulator<T>> workspace, int threads_of_row) {
  using A = Accumulator<T>;
  const Team team{threads_of_row};
  const bool whole_rows = gridDim.y == 1;
  ForwardTotals totals;
  const auto use = [&](int64_t row, RowTarget target, A logit_of_label, const RowState<A>& state) {
    if (team.lane() == 0 && whole_rows) {
      finish_row(args, row, target, logit_of_label, state, totals);
    } else if (team.lane() == 0) {
      workspace.columns[row * gridDim.y + blockIdx.y] = state;
    }
  };
  walk_rows<kPlain>(args, team, share_of_block(), use);
  if (whole_rows) {
    finish_block(result, workspace.totals, {totals.loss, totals.weight});
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
      const RowTarget target = checked_target(args, row);
      finish_row(args, row, target, label_logit(args, row, target), state, totals);
    }
  }
  finish_block(result, nullptr, {totals.loss, totals.weight});
}

}  // namespace

template <typename T>
int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>& args, int64_t multiprocessors) {
  const LaunchPlan plan = plan_forward(forward_shape(args), multiprocessors);
  return plan.columns > 1 ? args.rows * plan.columns * sizeof(RowState<Accumulator<T>>)
                          : plan.blocks * sizeof(Totals);
}

template <typename T>
cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>& args,
                           const ForwardResult<T>& result, void* workspace, int64_t multiprocessors,
                           cudaStream_t stream) {
  using A = Accumulator<T>;
  const LaunchPlan plan = plan_forward(forward_shape(args), multiprocessors);
  const ForwardWorkspace<A> left{static_cast<RowState<A>*>(workspace),
                                 static_cast<Totals*>(workspace)};
  Launches launches{stream};
  launches.add(args.is_plain() ? cross_entropy_forward_kernel<T, true>
                               : cross_entropy_forward_kernel<T, false>,
               dim3(plan.blocks, plan.columns), plan.threads, args, result, left, plan.team);
  if (plan.columns > 1) {
    int team = kWarp;
    while (team / 2 >= plan.columns) {
      team /= 2;
    }
    launches.add(merge_columns_kernel<T>, dim3(1), 512, args, result, left.columns,
                 static_cast<int>(plan.columns), team);
  } else {
    add_totals(launches, result, left.totals, plan.blocks);
  }
  return launches.error;
}

#define SOFTREG_FORWARD(T)                                                            \
  template int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>&, int64_t); \
  template cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>&,          \
                                      const ForwardResult<T>&, void*, int64_t, cudaStream_t);

SOFTREG_FORWARD(float)
SOFTREG_FORWARD(double)
SOFTREG_FORWARD(c10::BFloat16)
SOFTREG_FORWARD(c10::Half)

}  // namespace softreg
