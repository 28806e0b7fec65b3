// The launchers of the kernels, for the host (cuda/cross_entropy.cpp): sources for nvcc include no
// ATen header, which it would parse once for each architecture.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_plan.h"
#include "kernel_args.h"

namespace softreg {

// The kernels number a row's classes in 32 bits, and a few beyond its end.
constexpr int64_t kMostClasses = INT32_MAX - 16;

// What becomes of all rows together, on the device.
template <typename T>
struct ForwardResult {
  T* loss;  // (), or null where each row keeps its own
  bool is_mean;
  double* total_weight;           // ()
  bool has_total_weight = false;  // from an earlier launch
};

// Device memory that the forward pass needs meanwhile, in bytes.
template <typename T>
int64_t forward_workspace(const ForwardArgs<T, Accumulator<T>>& args, const GpuLimits& limits);

template <typename T>
cudaError_t launch_forward(const ForwardArgs<T, Accumulator<T>>& args,
                           const ForwardResult<T>& result, void* workspace, const GpuLimits& limits,
                           cudaStream_t stream);

// The gradient of the logits too, for the upstream gradient grad_reduced. The same workspace.
template <typename T>
cudaError_t launch_forward_with_gradient(const ForwardArgs<T, Accumulator<T>>& args,
                                         const BackwardArgs<T, Accumulator<T>>& gradient_args,
                                         const ForwardResult<T>& result, void* workspace,
                                         const GpuLimits& limits, cudaStream_t stream);

// The gradient of the logits, and that of a target of probabilities.
template <typename T>
cudaError_t launch_backward(const BackwardArgs<T, Accumulator<T>>& args, const GpuLimits& limits,
                            cudaStream_t stream);
template <typename T>
cudaError_t launch_grad_target(const BackwardArgs<T, Accumulator<T>>& args, const GpuLimits& limits,
                               cudaStream_t stream);

// A gradient that is there already, for an upstream gradient that is one number for all rows.
struct KnownGradient {
  double upstream = 0;
  double* report = nullptr;  // (2), whose element [right guess] becomes what came; null: none known
};

// The gradient of the logits, unless it is the known one.
template <typename T>
cudaError_t launch_correction(const BackwardArgs<T, Accumulator<T>>& args,
                              const KnownGradient& known, const GpuLimits& limits,
                              cudaStream_t stream);

}  // namespace softreg
