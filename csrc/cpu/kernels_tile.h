// Some classes of as many rows as a vector has lanes, each lane a row. Included by the kernels
// alone.
#pragma once

#include "cpu/kernels_lane_vec.h"
// after the vectors, whose overloads the formulas call
#include "row_target.h"

namespace softreg {
namespace {

// Classes taken up at a time.
constexpr int64_t kTileClasses = 32;

// The numbers of a tile's classes as vectors: from memory, for to convert and spread them costs
// more.
struct ClassNumbers {
  float of[kTileClasses];

  constexpr ClassNumbers() : of() {
    for (int64_t c = 0; c < kTileClasses; ++c) {
      of[c] = static_cast<float>(c);
    }
  }
};
constexpr ClassNumbers kClassNumbers;

template <typename V>
SOFTREG_INLINE V class_number(int64_t c) {
  return V(static_cast<typename V::value_type>(kClassNumbers.of[c]));
}

// Calls to the second-level cache what lies ahead of a vector of rows that is read, or written:
// they are taken class by class, each far from the one before, which no prefetcher of a processor's
// follows.
template <typename V, typename T>
SOFTREG_INLINE void fetch_rows_ahead(const T* rows) {
  constexpr int64_t kBytesAhead = 256, kLine = 64;
  constexpr int64_t bytes = V::size() * sizeof(T);
  const char* const ahead = reinterpret_cast<const char*>(rows) + kBytesAhead;
  for (int64_t byte = 0; byte < bytes; byte += kLine) {
    __builtin_prefetch(ahead + byte, 0, 2);
  }
}

// Rows of a matrix, one stride apart.
template <typename T>
struct Strip {
  T* data = nullptr;
  int64_t row_stride = 0, class_stride = 0;

  SOFTREG_INLINE Strip() = default;
  SOFTREG_INLINE Strip(T* data, int64_t row_stride, int64_t class_stride)
      : data(data), row_stride(row_stride), class_stride(class_stride) {}
  // From row r to the end of its sample.
  SOFTREG_INLINE Strip(const RowMatrix<T>& matrix, int64_t r)
      : data(matrix.row(r)),
        row_stride(matrix.inner > 1 ? 1 : matrix.outer_stride),
        class_stride(matrix.class_stride) {}

  SOFTREG_INLINE bool rows_adjacent() const { return row_stride == 1; }
  // Whether `count` rows are a V as they lie in memory.
  template <typename V>
  SOFTREG_INLINE bool are_vector(int64_t count) const {
    return rows_adjacent() && count == V::size();
  }
  SOFTREG_INLINE T* at(int64_t row, int64_t c) const {
    return data + row * row_stride + c * class_stride;
  }
};

// Some classes of V::size() rows.
template <typename V>
struct Tile {
  using A = typename V::value_type;
  static constexpr int64_t kRows = V::size(), kWidth = Vec<A>::size();
  alignas(64) A values[(kTileClasses + 1) * kRows];  // one more: tiles do not lie 4 KB apart

  SOFTREG_INLINE V operator[](int64_t c) const { return load_lane_vec<V>(values + c * kRows); }
  SOFTREG_INLINE void set(int64_t c, V x) { store_lane_vec(values + c * kRows, x); }

  // Classes [first, first + n) of `count` rows; lanes past them get harmless numbers, never used.
  template <typename T>
  SOFTREG_INLINE void load(const Strip<const T>& rows, int64_t count, int64_t first, int64_t n) {
    if (rows.rows_adjacent()) {
      const T* from = rows.at(0, first);
      for (int64_t c = 0; c < n; ++c, from += rows.class_stride) {
        set(c, count == kRows ? load_lane_vec<V>(from) : load_lane_vec<V>(from, count, A(0)));
      }
    } else {
      gather(rows.data, rows.row_stride, rows.class_stride, count, first, n);
    }
  }

  template <typename T>
  SOFTREG_INLINE void store(const Strip<T>& rows, int64_t count, int64_t first, int64_t n) const {
    if (rows.rows_adjacent()) {
      T* to = rows.at(0, first);
      for (int64_t c = 0; c < n; ++c, to += rows.class_stride) {
        store_lane_vec(to, count, (*this)[c]);
      }
    } else {
      scatter(rows.data, rows.row_stride, rows.class_stride, count, first, n);
    }
  }

 private:
  // Row by row. The strip comes in parts, in registers: as a whole it would be put together in
  // memory by narrow stores, which a wide load gets late.
  template <typename T>
  __attribute__((noinline)) void gather(const T* data, int64_t row_stride, int64_t class_stride,
                                        int64_t count, int64_t first, int64_t n) {
    const Strip<const T> rows(data, row_stride, class_stride);
    const auto from = [&](int64_t lane, int64_t c) {
      return rows.at(lane < count ? lane : count - 1, first + c);
    };
    if constexpr (kTransposes<T>) {
      for (int64_t c = 0; rows.class_stride == 1 && c < n; c += kWidth) {
        for (int64_t part = 0; part < kRows; part += kWidth) {
          Vec<A> square[kWidth];
          for (int64_t lane = 0; lane < kWidth; ++lane) {
            const T* x = from(part + lane, c);
            square[lane] = n - c < kWidth ? load_first(x, n - c) : load_vec(x);
          }
          transpose(square);
          for (int64_t k = 0; k < kWidth && c + k < n; ++k) {
            square[k].store(values + (c + k) * kRows + part);
          }
        }
      }
      if (rows.class_stride == 1) {
        return;
      }
    }
    for (int64_t lane = 0; lane < kRows; ++lane) {
      for (int64_t c = 0; c < n; ++c) {
        values[c * kRows + lane] = static_cast<A>(*from(lane, c));
      }
    }
  }

  template <typename T>
  __attribute__((noinline)) void scatter(T* data, int64_t row_stride, int64_t class_stride,
                                         int64_t count, int64_t first, int64_t n) const {
    const Strip<T> rows(data, row_stride, class_stride);
    if constexpr (kTransposes<T>) {
      for (int64_t c = 0; rows.class_stride == 1 && c < n; c += kWidth) {
        for (int64_t part = 0; part < count; part += kWidth) {
          Vec<A> square[kWidth];
          for (int64_t k = 0; k < kWidth; ++k) {
            square[k] = c + k < n ? Vec<A>::loadu(values + (c + k) * kRows + part) : Vec<A>(0);
          }
          transpose(square);
          for (int64_t lane = 0; lane < kWidth && part + lane < count; ++lane) {
            T* to = rows.at(part + lane, first + c);
            n - c < kWidth ? store_part(to, n - c, square[lane]) : store_vec(to, square[lane]);
          }
        }
      }
      if (rows.class_stride == 1) {
        return;
      }
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      for (int64_t c = 0; c < n; ++c) {
        *rows.at(lane, first + c) = static_cast<T>(values[c * kRows + lane]);
      }
    }
  }
};

}  // namespace
}  // namespace softreg
