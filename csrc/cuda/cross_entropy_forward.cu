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
__global__ void __launch_bounds__(kResidentThreads<T>, 1)
    cross_entropy_forward_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                                 const __grid_constant__ ForwardResult<T> result,
                                 ForwardWorkspace<Accumulator<T>> workspace, int threads_of_row,
                                 int sources) {
  using A = Accumulator<T>;
  const Team team(threads_of_row);
  const bool whole_rows = gridDim.y == 1;
  const auto keep_share = [&](int64_t row, RowTarget, const RowState<A>& state, auto&...) {
    if (!whole_rows && team.lane() == 0) {
      workspace.columns[row * gridDim.y + blockIdx.y] = state;
    }
  };
  const ForwardTotals totals =
      walk_rows<kPlain, false>(args, team, share_of_block(), sources, kPlacesOfStream, keep_share);
  if (whole_rows) {
    finish_block(result, workspace.totals, {totals.loss, totals.weight});
  }
}

// One block: each row from the states of its columns.
template <typename T>
__global__ void __launch_bounds__(kManyThreads, 1)
    merge_columns_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                         const __grid_constant__ ForwardResult<T> result,
                         const RowState<Accumulator<T>>* columns, int columns_of_row,
                         int threads_of_row) {
  using A = Accumulator<T>;
  const Team team(threads_of_row);
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
      finish_row(args, row, state, totals);
    }
  }
  finish_block(result, nullptr, {totals.loss, totals.weight});
}

}  // namespace

template <typename T>
int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>& args, const GpuLimits& limits) {
  const LaunchPlan plan = plan_forward(launch_shape<T>(args, true), limits);
  return plan.columns > 1 ? args.rows * plan.columns * sizeof(RowState<Accumulator<T>>)
                          : plan.blocks * sizeof(Totals);
}

template <typename T>
cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>& args,
                           const ForwardResult<T>& result, void* workspace, const GpuLimits& limits,
                           cudaStream_t stream) {
  using A = Accumulator<T>;
  const LaunchPlan plan = plan_forward(launch_shape<T>(args, true), limits);
  const ForwardWorkspace<A> left{static_cast<RowState<A>*>(workspace),
                                 static_cast<Totals*>(workspace)};
  Launches launches{stream};
  launches.add(args.is_plain() ? cross_entropy_forward_kernel<T, true>
                               : cross_entropy_forward_kernel<T, false>,
               dim3(plan.blocks, plan.columns), plan.threads, plan.shared_bytes(), args, result,
               left, plan.team, plan.sources);
  if (plan.columns > 1) {
    int team = kWarp;
    while (team / 2 >= plan.columns) {
      team /= 2;
    }
    launches.add(merge_columns_kernel<T>, dim3(1), kManyThreads, 0, args, result, left.columns,
                 static_cast<int>(plan.columns), team);
  } else {
    add_totals(launches, result, left.totals, plan.blocks);
  }
  return launches.error;
}

#define SOFTREG_FORWARD(T)                                                                     \
  template int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>&, const GpuLimits&); \
  template cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>&,                   \
                                      const ForwardResult<T>&, void*, const GpuLimits&,        \
                                      cudaStream_t);

SOFTREG_FORWARD(float)
SOFTREG_FORWARD(double)
SOFTREG_FORWARD(c10::BFloat16)
SOFTREG_FORWARD(c10::Half)

}  // namespace softreg
