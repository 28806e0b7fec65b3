// Some classes of as many rows as a vector has lanes, each lane a row. Included by the kernels
// alone.
#pragma once

#include "cpu/kernels_target.h"
#include "cpu/kernels_vec.h"

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

template <typename A>
SOFTREG_INLINE Vec<A> class_number(int64_t c) {
  return Vec<A>(static_cast<A>(kClassNumbers.of[c]));
}

// Rows that lie side by side are read class by class, each class far from the one before. The lines
// behind x, those of this many tiles to come, are called together: they lie in one page of memory.
constexpr int64_t kTilesFetched = 4;

template <typename T>
SOFTREG_INLINE void fetch_tiles(const T* x, int64_t rows_of_tile) {
  const int64_t bytes = rows_of_tile * static_cast<int64_t>(sizeof(T));
  const char* const next = reinterpret_cast<const char*>(x) + kTilesFetched * bytes;
  if (reinterpret_cast<uintptr_t>(x) / bytes % kTilesFetched == 0) {
    for (int64_t tile = 0; tile < kTilesFetched; ++tile) {
      __builtin_prefetch(next + tile * bytes);
    }
  }
}

// Some classes of Vec::size() rows.
template <typename A>
struct Tile {
  static constexpr int64_t kRows = Vec<A>::size();
  alignas(64) A values[(kTileClasses + 1) * kRows];  // one more: tiles do not lie 4 KB apart

  Vec<A> operator[](int64_t c) const { return Vec<A>::loadu(values + c * kRows); }
  void set(int64_t c, Vec<A> x) { x.store(values + c * kRows); }

  // Classes [first, first + n) of `count` rows; lanes past them get harmless numbers, never used.
  template <typename T>
  void load(const RowMatrix<const T>& matrix, int64_t row, int64_t count, int64_t first,
            int64_t n) {
    const int64_t stride = matrix.class_stride;
    if (matrix.inner > 1) {
      const T* from = matrix.row(row) + first * stride;
      for (int64_t c = 0; c < n; ++c, from += stride) {
        fetch_tiles(from, kRows);
        set(c, count == kRows ? load_vec(from) : load_part(from, count, A(0)));
      }
      return;
    }
    const auto from = [&](int64_t lane) {
      return matrix.row(row + (lane < count ? lane : count - 1)) + first * stride;
    };
    if constexpr (kTransposes<T>) {
      for (int64_t c = 0; stride == 1 && c < n; c += kRows) {
        Vec<A> square[kRows];
        for (int64_t lane = 0; lane < kRows; ++lane) {
          square[lane] =
              n - c < kRows ? load_first(from(lane) + c, n - c) : load_vec(from(lane) + c);
        }
        transpose(square);
        for (int64_t k = 0; k < kRows && c + k < n; ++k) {
          set(c + k, square[k]);
        }
      }
      if (stride == 1) {
        return;
      }
    }
    for (int64_t lane = 0; lane < kRows; ++lane) {
      for (int64_t c = 0; c < n; ++c) {
        values[c * kRows + lane] = static_cast<A>(from(lane)[c * stride]);
      }
    }
  }

  template <typename T>
  void store(const RowMatrix<T>& matrix, int64_t row, int64_t count, int64_t first,
             int64_t n) const {
    const int64_t stride = matrix.class_stride;
    if (matrix.inner > 1) {
      T* to = matrix.row(row) + first * stride;
      for (int64_t c = 0; c < n; ++c, to += stride) {
        store_part(to, count, (*this)[c]);
      }
      return;
    }
    if constexpr (kTransposes<T>) {
      for (int64_t c = 0; stride == 1 && c < n; c += kRows) {
        Vec<A> square[kRows];
        for (int64_t k = 0; k < kRows; ++k) {
          square[k] = c + k < n ? (*this)[c + k] : Vec<A>(0);
        }
        transpose(square);
        for (int64_t lane = 0; lane < count; ++lane) {
          T* to = matrix.row(row + lane) + first + c;
          n - c < kRows ? store_part(to, n - c, square[lane]) : store_vec(to, square[lane]);
        }
      }
      if (stride == 1) {
        return;
      }
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      T* to = matrix.row(row + lane) + first * stride;
      for (int64_t c = 0; c < n; ++c) {
        to[c * stride] = static_cast<T>(values[c * kRows + lane]);
      }
    }
  }
};

// Where the gradients of a tile go: to memory at once where a vector of rows lies side by side
// there, else by way of the tile.
template <typename T, typename A>
class TileOutput {
 public:
  SOFTREG_INLINE TileOutput(const RowMatrix<T>& matrix, int64_t row, int64_t count, int64_t first,
                            Tile<A>& tile)
      : matrix_(matrix), row_(row), count_(count), first_(first), tile_(tile) {
    if (matrix.inner > 1 && count == Tile<A>::kRows) {
      to_ = matrix.row(row) + first * matrix.class_stride;
    }
  }

  SOFTREG_INLINE void set(int64_t c, Vec<A> x) {
    to_ ? store_vec(to_ + c * matrix_.class_stride, x) : tile_.set(c, x);
  }

  // After the last of n classes.
  SOFTREG_INLINE void finish(int64_t n) {
    if (!to_) {
      tile_.store(matrix_, row_, count_, first_, n);
    }
  }

 private:
  const RowMatrix<T>& matrix_;
  int64_t row_, count_, first_;
  Tile<A>& tile_;
  T* to_ = nullptr;
};

// Logits, transformed, and where `slopes` is given the slopes of that.
template <typename T, typename A>
SOFTREG_INLINE void load_logits(Tile<A>& tile, Tile<A>* slopes, const CrossEntropyRows<T, A>& args,
                                int64_t row, int64_t count, int64_t first, int64_t n) {
  tile.load(args.logits, row, count, first, n);
  if (args.transform.is_identity) {
    return;
  }
  for (int64_t c = 0; c < n; ++c) {
    const TransformedLogit<Vec<A>> y = transform_logit(args.transform, tile[c]);
    tile.set(c, y.value);
    if (slopes) {
      slopes->set(c, y.slope);
    }
  }
}

// How many rows from `row` on share a tile.
template <typename T, typename A>
SOFTREG_INLINE int64_t lanes_from(const CrossEntropyRows<T, A>& args, int64_t row, int64_t end) {
  const int64_t count = end - row < Tile<A>::kRows ? end - row : Tile<A>::kRows;
  return args.probabilities.rows_in_sample(row, args.logits.rows_in_sample(row, count));
}

// Calls body(first, n) for tiles of classes [first, first + n).
template <typename Body>
SOFTREG_INLINE void for_each_tile(int64_t classes, Body body) {
  for (int64_t first = 0; first < classes; first += kTileClasses) {
    body(first, classes - first < kTileClasses ? classes - first : kTileClasses);
  }
}

}  // namespace
}  // namespace softreg
