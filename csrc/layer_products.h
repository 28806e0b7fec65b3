// The matrix products of a linear layer and its gradients, for some rows of its input: ATen's,
// shared out where its own way is slow. `weight` is (classes, features).
#pragma once

#include <ATen/core/Tensor.h>

namespace softreg {

// Of half types on a CPU, which ATen multiplies item by item, up to a hundred times as slowly as
// float32, where the processor has no instructions for them. The functions below do not.
bool has_slow_products(const at::Tensor& input);

// What the functions below multiply a gradient of the output by the others as: in the layer's
// dtype, or in float32 where they widen those.
at::Tensor layer_factor(const at::Tensor& grad_output, const at::Tensor& input);

// input weight^T + bias, where there is a bias. `output` may be in float32 beside half types.
void layer_output(at::Tensor& output, const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& bias);

// grad_output weight.
void layer_grad_input(at::Tensor& grad_input, const at::Tensor& grad_output,
                      const at::Tensor& weight);

// grad_output^T input, added to grad_weight or in its place. It may be in float32 beside half
// types.
void layer_grad_weight(at::Tensor& grad_weight, const at::Tensor& grad_output,
                       const at::Tensor& input, bool is_first);

}  // namespace softreg
