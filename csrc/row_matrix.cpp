#include "row_matrix.h"

#include <algorithm>

namespace softreg {
namespace {

// The one stride that walks all of d1, ..., dK in order (1 where there is at most one position).
std::optional<int64_t> position_stride(const at::Tensor& tensor) {
  std::optional<int64_t> innermost;
  int64_t next = 1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) {
      continue;
    }
    if (innermost && tensor.stride(d) != next) {
      return std::nullopt;
    }
    innermost = innermost ? innermost : tensor.stride(d);
    next = tensor.stride(d) * tensor.size(d);
  }
  return innermost.value_or(1);
}

}  // namespace

c10::SymInt row_count(const at::Tensor& logits) {
  c10::SymInt rows = 1;
  for (int64_t d = 0; d < logits.dim(); ++d) {
    if (d != 1 && logits.dim() > 1) {
      rows = rows * logits.sym_size(d);
    }
  }
  return rows;
}

std::optional<RowMatrix<void>> row_strides(const at::Tensor& tensor) {
  const int64_t dim = tensor.dim(), class_dim = dim > 1 ? 1 : 0;
  const int64_t classes = tensor.size(class_dim);
  const int64_t class_stride = classes > 1 ? tensor.stride(class_dim) : 1;
  if (dim == 1) {
    return RowMatrix<void>{nullptr, 1, 0, class_stride};
  }
  const int64_t samples = tensor.size(0), sample_stride = tensor.stride(0);
  int64_t positions = 1;
  for (int64_t d = 2; d < dim; ++d) {
    positions *= tensor.size(d);
  }
  if (positions == 1) {
    // (N, C), transposed: the samples themselves are the rows that lie side by side.
    const bool transposed = class_stride != 1 && sample_stride == 1 && samples > 1;
    return transposed ? RowMatrix<void>{nullptr, samples, 0, class_stride}
                      : RowMatrix<void>{nullptr, 1, sample_stride, class_stride};
  }
  const std::optional<int64_t> stride = position_stride(tensor);
  if (stride == 1) {
    return RowMatrix<void>{nullptr, positions, sample_stride, class_stride};
  }
  // Channels last: one stride from row to row, across the samples too.
  if (stride && class_stride == 1 && (samples == 1 || sample_stride == positions * *stride)) {
    return RowMatrix<void>{nullptr, 1, *stride, class_stride};
  }
  return std::nullopt;
}

bool is_expanded_scalar(const at::Tensor& tensor) {
  const auto strides = tensor.strides();
  return std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; });
}

int64_t item_stride(const at::Tensor& of_rows) {
  if (is_expanded_scalar(of_rows)) {
    return 0;
  }
  return of_rows.dim() == 1 ? of_rows.stride(0) : 1;
}

}  // namespace softreg
