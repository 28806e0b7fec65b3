// What the kernels of every device are given: pointers, sizes and options, checked beforehand.
// T is the storage type of the logits, A the type they are accumulated in.
#pragma once

#include <cstdint>

#include "core/compensated_sum.h"

namespace softreg {

struct Labels {
  const void* data;
  int64_t stride;
  bool is_uint8;  // else int64
  int64_t ignore_index;

  int64_t operator[](int64_t row) const {
    return is_uint8 ? static_cast<const uint8_t*>(data)[row * stride]
                    : static_cast<const int64_t*>(data)[row * stride];
  }
};

template <typename T, typename A>
struct CrossEntropyRows {
  const T* logits;  // (rows, classes), unit stride along the classes
  int64_t row_stride;
  int64_t rows;
  int64_t classes;
  Labels target;    // (rows)
  const A* weight;  // (classes), or null: all 1
  A weight_sum;     // sum of weight, used with label smoothing only
  double label_smoothing;
};

template <typename T, typename A>
struct ForwardArgs : CrossEntropyRows<T, A> {
  A* row_max;  // (rows)
  A* log_sum;  // (rows)
  T* loss;     // (rows), or null when only the totals are asked for
};

template <typename T, typename A>
struct BackwardArgs : CrossEntropyRows<T, A> {
  const A* row_max;      // (rows)
  const A* log_sum;      // (rows)
  const T* grad_output;  // (rows), or null for a reduced loss
  int64_t grad_output_stride;
  A grad_reduced;  // then: each row's upstream gradient
  T* grad_logits;  // (rows, classes), contiguous
};

// A label outside [0, classes) that is not ignore_index: its row is left out and reported.
constexpr int64_t kNoBadRow = INT64_MAX;

// Sums over a range of rows.
struct ForwardTotals {
  CompensatedSum loss;
  CompensatedSum weight;        // of the target's class, over the rows that are not ignored
  int64_t bad_row = kNoBadRow;  // the first of them
};

}  // namespace softreg
