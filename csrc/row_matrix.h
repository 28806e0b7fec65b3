// The (rows, classes) matrix inside a tensor of logits, for the hosts of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernel_args.h"

namespace softreg {

// Strides of `tensor`, shaped (C), (N, C) or (N, C, d1, ..., dK), as a RowMatrix without data; none
// where neither the classes nor the rows of a sample are adjacent.
std::optional<RowMatrix<void>> row_strides(const at::Tensor& tensor);

// Number of rows: N d1 ... dK.
c10::SymInt row_count(const at::Tensor& logits);

// Whether all its elements are one in memory, as those of the gradient that sum() sends back.
bool is_expanded_scalar(const at::Tensor& tensor);

// From row to row of a tensor with one item each, (N) with any stride, else contiguous or a scalar
// expanded. Not the last dimension's own: where its size is 1 that may be any number.
int64_t item_stride(const at::Tensor& of_rows);

template <typename T>
RowMatrix<T> row_matrix(const RowMatrix<void>& strides, T* data) {
  return {data, strides.inner, strides.outer_stride, strides.class_stride};
}

}  // namespace softreg
