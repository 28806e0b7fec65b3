// What the kernels of every device are given: pointers, sizes and options, checked beforehand.
// T is the storage type of the logits, A the type they are accumulated in.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/compensated_sum.h"
#include "core/logit_transform.h"

namespace softreg {

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A matrix (rows, classes) inside a tensor (N, C, d1, ..., dK) or (N, C). Row r lies at position
// r % inner of sample r / inner; positions are adjacent, so that inner > 1 puts rows side by side.
template <typename T>
struct RowMatrix {
  T* data = nullptr;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t class_stride = 1;

  SOFTREG_INLINE T* row(int64_t r) const {
    if (inner == 1) {
      return data + r * outer_stride;
    }
    const int64_t sample = sample_of(r);
    return data + sample * outer_stride + (r - sample * inner);
  }
  // `count`, or fewer where the sample of row r ends before.
  SOFTREG_INLINE int64_t rows_in_sample(int64_t r, int64_t count) const {
    if (inner == 1) {
      return count;
    }
    const int64_t rest = inner - (r - sample_of(r) * inner);
    return count < rest ? count : rest;
  }
  // A division of 64 bits costs a processor, and a GPU more, several of 32.
  SOFTREG_INLINE int64_t sample_of(int64_t r) const {
    return (r | inner) >> 32 == 0 ? static_cast<uint32_t>(r) / static_cast<uint32_t>(inner)
                                  : r / inner;
  }
  SOFTREG_INLINE bool classes_adjacent() const { return inner == 1 && class_stride == 1; }
};

// Class indices, a signed integer of 2, 4 or 8 bytes or an unsigned one of 1.
struct Labels {
  const void* data;
  int64_t stride;
  int64_t bytes;
  int64_t ignore_index;

  SOFTREG_INLINE int64_t operator[](int64_t row) const {
    switch (bytes) {
      case 1:
        return static_cast<const uint8_t*>(data)[row * stride];
      case 2:
        return static_cast<const int16_t*>(data)[row * stride];
      case 4:
        return static_cast<const int32_t*>(data)[row * stride];
      default:
        return static_cast<const int64_t*>(data)[row * stride];
    }
  }
};

SOFTREG_INLINE bool names_a_class(int64_t label, int64_t classes) {
  return static_cast<uint64_t>(label) < static_cast<uint64_t>(classes);
}

template <typename T, typename A>
struct CrossEntropyRows {
  using Logit = T;

  int64_t rows;
  int64_t classes;
  RowMatrix<const T> logits;
  RowMatrix<const T> probabilities;  // the target, where it is a distribution
  Labels labels;                     // (rows), else
  bool is_distribution;
  const A* weight;      // (classes), or null: all 1
  const A* weight_sum;  // of label smoothing, or null: classes
  A on_target;          // 1 - s, for the label smoothing s
  A per_class;          // s / classes
  A z_loss;
  LogitTransform<A> transform;

  SOFTREG_INLINE bool holds(int64_t c) const { return names_a_class(c, classes); }
  SOFTREG_INLINE bool has_probabilities() const { return is_distribution; }
  SOFTREG_INLINE bool classes_adjacent() const {
    return logits.classes_adjacent() && (!has_probabilities() || probabilities.classes_adjacent());
  }
  // Whether classes besides the label's have a coefficient, and so their weights a meaning.
  SOFTREG_INLINE bool all_classes_count() const { return has_probabilities() || per_class > 0; }
  // Whether classes off the target differ in their coefficients.
  SOFTREG_INLINE bool coefficients_vary() const {
    return has_probabilities() || (all_classes_count() && weight);
  }
  // Whether a target of probabilities is all that its coefficients are made of.
  SOFTREG_INLINE bool probabilities_are_coefficients() const { return !weight && per_class == 0; }
  // Logits as they are, and no class that counts besides the label: the GPU's kernels compiled for
  // no more than that ask no questions for each logit.
  SOFTREG_INLINE bool is_plain() const { return transform.is_identity && !all_classes_count(); }
};

template <typename T, typename A>
struct ForwardArgs : CrossEntropyRows<T, A> {
  A* row_max;          // (rows)
  A* sum;              // (rows), of exp(x - max)
  A* coefficient_sum;  // (rows), with probabilities only
  A* lse;              // (rows), or null; of every row then, ignored or not
  T* loss;             // (rows), or null when only the totals are asked for
};

template <typename T, typename A>
struct BackwardArgs : CrossEntropyRows<T, A> {
  const A* row_max;          // (rows)
  const A* sum;              // (rows)
  const A* coefficient_sum;  // (rows), with probabilities only
  const T* grad_loss;        // (rows), or null where it is grad_reduced for all of them
  int64_t grad_loss_stride;
  const double* total_weight;  // what either is divided by, or null
  A grad_reduced;
  const A* grad_lse;  // (rows), or null where none flows from there
  RowMatrix<T> grad;  // of the logits, or of a target of probabilities
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
