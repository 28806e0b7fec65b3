// A sum that rounds once, not once a term, for the host compiler and nvcc alike.
#pragma once

#include "value.h"

namespace softreg {

// `carry` collects what each addition rounds off (Knuth's TwoSum, exact whatever the sizes).
struct CompensatedSum {
  double sum = 0;
  double carry = 0;

  SOFTREG_INLINE void add(double x) {
    const double next = sum + x;
    const double added = next - sum;
    carry += (sum - (next - added)) + (x - added);
    sum = next;
  }

  SOFTREG_INLINE void add(const CompensatedSum& other) {
    add(other.sum);
    carry += other.carry;
  }

  // An infinite sum leaves a NaN in the carry, which has nothing to say then.
  SOFTREG_INLINE double total() const { return carry == carry ? sum + carry : sum; }
};

}  // namespace softreg
