// The matrix products of a linear layer and its gradients, for some rows of its input: ATen's,
// shared out where its own way is slow. `weight` is (classes, features).
#pragma once

#include <ATen/core/Tensor.h>

namespace softreg {

// Whether the functions below take two thirds of the time of ATen's own products, or less.
// `factor`: of the type of the input and the weight.
bool gains_from_products(int64_t rows, int64_t classes, int64_t features, const at::Tensor& factor);

// Bytes that the functions below hold beside their results, for each row of the input.
int64_t product_row_bytes(const at::Tensor& input, const at::Tensor& weight, bool float_output);

// What the functions below take for a gradient of the output that may be in float32 beside half
// types.
at::Tensor layer_factor(const at::Tensor& grad_output, const at::Tensor& weight);

// input weight^T + bias, where there is a bias. `output` may be in float32 beside half types: what
// is rounded to those.
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
