// How a row's values come from memory and get there. Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec_memory.h"
// after the vectors, whose overloads the formulas call
#include "kernel_args.h"

namespace softreg {
namespace {

// Which lanes of a vector there are: all, or the first ones where a row ends.
struct All {};
struct First {
  int64_t count;
};

template <typename A, typename T>
SOFTREG_INLINE Vec<A> load_lanes(All, const T* x, A) {
  return load_vec(x);
}

template <typename A, typename T>
SOFTREG_INLINE Vec<A> load_lanes(First lanes, const T* x, A padding) {
  return load_part(x, lanes.count, padding);
}

// x, and `padding` in lanes that there are not.
template <typename A>
SOFTREG_INLINE Vec<A> in_lanes(All, Vec<A> x, A = 0) {
  return x;
}

template <typename A>
SOFTREG_INLINE Vec<A> in_lanes(First lanes, Vec<A> x, A padding = 0) {
  return padded(x, lanes.count, padding);
}

// Called to the second-level cache: to the first it would wait for the few buffers that loads need
// too.
template <typename T>
SOFTREG_INLINE void fetch(const T* x) {
  __builtin_prefetch(x, 0, 2);
}

// What follows x, `count` numbers or a line of the caches, at a distance: a page's translation,
// which may cost more than its lines, is looked up early.
template <int64_t count = 1, typename T>
SOFTREG_INLINE void fetch_ahead(const T* x) {
  constexpr int64_t kBytes = 4096, kLine = 64;
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += kLine) {
    fetch(reinterpret_cast<const char*>(x) + kBytes + i);
  }
}

// A gradient of this many bytes is gone from the caches before anyone reads it.
constexpr int64_t kStreamedBytes = int64_t(64) << 20;

// Stores value(c, lanes), the classes from c on, at to + c for all c in [0, n). `streams`: past the
// caches, which does not read first what is overwritten as a whole.
template <typename A, typename T, typename Value>
SOFTREG_INLINE void store_row(T* to, int64_t n, bool streams, Value value) {
  constexpr int64_t width = Vec<A>::size(), step = StorageVec<T>::size();
  const auto stored = [&](int64_t c) {
    return to_storage<T>([&](int64_t k) { return value(c + k * width, All()); });
  };
  int64_t c = 0;
  if (streams && n >= 2 * step) {
    stored(0).store(to);  // what the aligned vectors do not reach, and some that they write again
    for (c = step - reinterpret_cast<uintptr_t>(to) / sizeof(T) % step; c + step <= n; c += step) {
      stream(to + c, stored(c));
    }
  }
  for (; c + step <= n; c += step) {
    stored(c).store(to + c);
  }
  for (; c + width <= n; c += width) {
    store_vec(to + c, value(c, All()));
  }
  if (c < n) {
    store_part(to + c, n - c, value(c, First{n - c}));
  }
}

}  // namespace
}  // namespace softreg
