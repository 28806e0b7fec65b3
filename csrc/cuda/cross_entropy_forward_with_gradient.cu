// The forward pass and the gradient of the logits row by row, so that the second read of a row
// finds it in the caches.
#include "cuda/cross_entropy_forward.cuh"
#include "cuda/cross_entropy_gradient.cuh"

namespace softreg {
namespace {

// What the mean divides by, from the target alone, before the first gradient is written. The bits
// are those of the forward pass's own sum, as long as weights of both signs do not cancel to less
// than 2^-50 of their size.
template <typename T>
__global__ void __launch_bounds__(kManyThreads, 1)
    total_weight_kernel(const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
                        const __grid_constant__ ForwardResult<T> result, Totals* of_blocks) {
  Totals totals;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < args.rows;
       row += threads) {
    const RowTarget target = checked_target(args, row);
    if (target.counts) {
      totals.weight.add(row_weight(args, target));
    }
  }
  finish_block(result, of_blocks, totals);
}

template <typename T, bool kPlain>
__global__ void __launch_bounds__(kResidentThreads<T>, 1)
    cross_entropy_forward_with_gradient_kernel(
        const __grid_constant__ ForwardArgs<T, Accumulator<T>> args,
        const __grid_constant__ BackwardArgs<T, Accumulator<T>> gradient_args,
        const __grid_constant__ ForwardResult<T> result, Totals* of_blocks, int threads_of_row,
        int sources, int places) {
  using A = Accumulator<T>;
  const Team team(threads_of_row);
  constexpr Share whole_row{0, 1};
  const UpstreamGradients<T, A> upstream(gradient_args);
  const auto write_gradient = [&](int64_t row, RowTarget target, const RowState<A>& state,
                                  const RowRounds<T>& rounds,
                                  RowStream<ForwardArgs<T, A>, kPlain, true>& stream) {
    const auto saved = [&] {
      return SavedRow<A>{shift(state.exp.max), state.exp.sum, static_cast<A>(state.coefficient)};
    };
    const LogitGradients<T, kPlain> gradients(upstream, row, rounds.head, target, saved);
    write_gradient_row<kPlain>(gradient_args, row, team, rounds, rounds.count - stream.kept(rounds),
                               gradients, stream);
  };
  const ForwardTotals totals =
      walk_rows<kPlain, true>(args, team, whole_row, sources, places, write_gradient);
  finish_block(result, of_blocks, {totals.loss, {}});
}

template <typename T>
void add_total_weight(Launches& launches, const ForwardArgs<T, Accumulator<T>>& args,
                      double* total_weight, Totals* of_blocks, int64_t most_blocks) {
  constexpr int kRowsOfThread = 8;
  const int64_t wanted = args.rows / (kManyThreads * kRowsOfThread);
  const int64_t blocks = std::clamp<int64_t>(wanted, 1, most_blocks);
  ForwardResult<T> result{};
  result.total_weight = total_weight;
  launches.add(total_weight_kernel<T>, dim3(blocks), kManyThreads, 0, args, result, of_blocks);
  add_totals(launches, result, of_blocks, blocks);
}

}  // namespace

template <typename T>
cudaError_t launch_forward_with_gradient(const ForwardArgs<T, Accumulator<T>>& args,
                                         const BackwardArgs<T, Accumulator<T>>& gradient_args,
                                         const ForwardResult<T>& result, void* workspace,
                                         const GpuLimits& limits, cudaStream_t stream) {
  const LaunchPlan plan = plan_forward_with_gradient(launch_shape<T>(args, true), limits);
  if (plan.columns > 1) {  // each block has but a share of a row
    const cudaError_t error = launch_forward(args, result, workspace, limits, stream);
    return error == cudaSuccess ? launch_backward(gradient_args, limits, stream) : error;
  }
  Totals* of_blocks = static_cast<Totals*>(workspace);
  Launches launches{stream};
  add_total_weight(launches, args, result.total_weight, of_blocks, plan.blocks);
  ForwardResult<T> with_total_weight = result;
  with_total_weight.has_total_weight = true;
  launches.add(args.is_plain() ? cross_entropy_forward_with_gradient_kernel<T, true>
                               : cross_entropy_forward_with_gradient_kernel<T, false>,
               dim3(plan.blocks), plan.threads, plan.shared_bytes(), args, gradient_args,
               with_total_weight, of_blocks, plan.team, plan.sources, plan.places);
  if (result.loss) {
    add_totals(launches, with_total_weight, of_blocks, plan.blocks);
  }
  return launches.error;
}

#define SOFTREG_FORWARD_WITH_GRADIENT(T)                                             \
  template cudaError_t launch_forward_with_gradient(                                 \
      const ForwardArgs<T, Accumulator<T>>&, const BackwardArgs<T, Accumulator<T>>&, \
      const ForwardResult<T>&, void*, const GpuLimits&, cudaStream_t);

SOFTREG_FORWARD_WITH_GRADIENT(float)
SOFTREG_FORWARD_WITH_GRADIENT(double)
SOFTREG_FORWARD_WITH_GRADIENT(c10::BFloat16)
SOFTREG_FORWARD_WITH_GRADIENT(c10::Half)

}  // namespace softreg
