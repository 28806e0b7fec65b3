// A row's target beside the vectors. Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec_exp.h"
// after the vectors, whose overloads the formulas call
#include "row_target.h"

namespace softreg {
namespace {

// The logit of a row's label, transformed as the vectors are: another tanh than theirs could put it
// above the row's maximum.
template <typename T, typename A>
SOFTREG_INLINE A label_logit(const CrossEntropyRows<T, A>& args, int64_t row, RowTarget target) {
  if (args.has_probabilities() || !target.counts) {
    return 0;
  }
  const A logit = static_cast<A>(args.logits.row(row)[target.label * args.logits.class_stride]);
  if (args.transform.is_identity) {
    return logit;
  }
  A lanes[Vec<A>::size()];
  transform_logit(args.transform, Vec<A>(logit)).value.store(lanes);
  return lanes[0];
}

}  // namespace
}  // namespace softreg
