// Some classes of as many rows as a vector has lanes, each lane a row. Included by the kernels
// alone.
#pragma once

#include "cpu/kernels_lane_vec.h"
#include "cpu/kernels_target.h"

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
SOFTREG_INLINE LaneVec<A> class_number(int64_t c) {
  return LaneVec<A>(static_cast<A>(kClassNumbers.of[c]));
}

// How far ahead of what is read, or written, of rows that lie side by side. They are taken class by
// class, each far from the one before, which no prefetcher of a processor's follows.
constexpr int64_t kBytesAhead = 256, kLine = 64;

// Rows of a matrix, one stride apart.
template <typename T>
struct Strip {
  static constexpr int64_t kLanes = LaneVec<Accumulator<std::remove_const_t<T>>>::size();
  T* data;
  int64_t row_stride, class_stride;

  // From row r to the end of its sample.
  SOFTREG_INLINE Strip(const RowMatrix<T>& matrix, int64_t r)
      : data(matrix.row(r)),
        row_stride(matrix.inner > 1 ? 1 : matrix.outer_stride),
        class_stride(matrix.class_stride) {}

  SOFTREG_INLINE bool rows_adjacent() const { return row_stride == 1; }
  // Whether `count` rows are vectors as they lie in memory.
  SOFTREG_INLINE bool holds(int64_t count) const { return rows_adjacent() && count == kLanes; }
  SOFTREG_INLINE T* at(int64_t row, int64_t c) const {
    return data + row * row_stride + c * class_stride;
  }

  // For rows to come, to the cache of the level.
  template <int kLevel>
  SOFTREG_INLINE void fetch_ahead(int64_t c) const {
    if (rows_adjacent()) {
      const char* const ahead = reinterpret_cast<const char*>(at(0, c)) + kBytesAhead;
      for (int64_t byte = 0; byte < kLanes * static_cast<int64_t>(sizeof(T)); byte += kLine) {
        __builtin_prefetch(ahead + byte, 0, 4 - kLevel);
      }
    }
  }
};

// Some classes of LaneVec::size() rows.
template <typename A>
struct Tile {
  static constexpr int64_t kRows = LaneVec<A>::size(), kWidth = Vec<A>::size();
  alignas(64) A values[(kTileClasses + 1) * kRows];  // one more: tiles do not lie 4 KB apart

  SOFTREG_INLINE LaneVec<A> operator[](int64_t c) const {
    return load_lane_vec<A>(values + c * kRows);
  }
  SOFTREG_INLINE void set(int64_t c, LaneVec<A> x) { store_lane_vec(values + c * kRows, x); }

  // Classes [first, first + n) of `count` rows; lanes past them get harmless numbers, never used.
  template <typename T>
  SOFTREG_INLINE void load(const Strip<const T>& rows, int64_t count, int64_t first, int64_t n) {
    if (rows.rows_adjacent()) {
      const T* from = rows.at(0, first);
      for (int64_t c = 0; c < n; ++c, from += rows.class_stride) {
        set(c, count == kRows ? load_lane_vec<A>(from) : load_lane_vec(from, count, A(0)));
      }
    } else {
      gather(rows, count, first, n);
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
      scatter(rows, count, first, n);
    }
  }

 private:
  // Row by row.
  template <typename T>
  __attribute__((noinline)) void gather(const Strip<const T>& rows, int64_t count, int64_t first,
                                        int64_t n) {
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
  __attribute__((noinline)) void scatter(const Strip<T>& rows, int64_t count, int64_t first,
                                         int64_t n) const {
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

// Where the gradients of a tile go, class by class: to memory at once where a vector of rows lies
// side by side there, else by way of the tile.
template <typename T, typename A>
class TileOutput {
 public:
  SOFTREG_INLINE TileOutput(const Strip<T>& rows, int64_t count, int64_t first, Tile<A>& tile)
      : rows_(rows),
        count_(count),
        first_(first),
        tile_(tile),
        is_direct_(rows.holds(count)),
        to_(rows.at(0, first)) {}

  SOFTREG_INLINE void set(int64_t c, LaneVec<A> x) {
    if (is_direct_) {
      store_lane_vec(to_, x);
      to_ += rows_.class_stride;
    } else {
      tile_.set(c, x);
    }
  }

  // After the last of n classes.
  SOFTREG_INLINE void finish(int64_t n) {
    if (!is_direct_) {
      tile_.store(rows_, count_, first_, n);
    }
  }

 private:
  const Strip<T>& rows_;
  int64_t count_, first_;
  Tile<A>& tile_;
  bool is_direct_;
  T* to_;
};

// The rows [row, row + count), as many as a vector has lanes or fewer.
template <typename T>
struct Lanes {
  int64_t row, count;
  Strip<const T> logits, probabilities;
  Strip<T> grad;

  // What is read of class c, and written if `writes`. Asked for one by one beside the arithmetic:
  // all at once, they would have to wait.
  template <bool kProbabilities>
  SOFTREG_INLINE void fetch_ahead(bool writes, int64_t c) const {
    logits.template fetch_ahead<1>(c);
    if (kProbabilities) {
      probabilities.template fetch_ahead<1>(c);
    }
    if (writes) {
      grad.template fetch_ahead<2>(c);
    }
  }
};

// Calls body(lanes) for the rows [begin, end). `grad`: where gradients go, if any.
template <typename T, typename A, typename Body>
SOFTREG_INLINE void for_each_lanes(const CrossEntropyRows<T, A>& args, const RowMatrix<T>& grad,
                                   int64_t begin, int64_t end, Body body) {
  for (int64_t row = begin; row < end;) {
    int64_t rest = args.logits.rows_in_sample(row, end - row);
    rest = grad.rows_in_sample(row, args.probabilities.rows_in_sample(row, rest));
    Lanes<T> lanes{row, Tile<A>::kRows, {args.logits, row}, {args.probabilities, row}, {grad, row}};
    row += rest;
    for (; rest > 0; rest -= lanes.count) {
      lanes.count = rest < lanes.count ? rest : lanes.count;
      body(lanes);
      lanes.row += lanes.count;
      lanes.logits.data += lanes.count * lanes.logits.row_stride;
      lanes.probabilities.data += lanes.count * lanes.probabilities.row_stride;
      lanes.grad.data += lanes.count * lanes.grad.row_stride;
    }
  }
}

// Logits, transformed, and where `slopes` is given the slopes of that.
template <typename T, typename A>
SOFTREG_INLINE void load_logits(Tile<A>& tile, Tile<A>* slopes, const LogitTransform<A>& transform,
                                const Lanes<T>& lanes, int64_t first, int64_t n) {
  tile.load(lanes.logits, lanes.count, first, n);
  if (transform.is_identity) {
    return;
  }
  for (int64_t c = 0; c < n; ++c) {
    const TransformedLogit<LaneVec<A>> y = transform_logit(transform, tile[c]);
    tile.set(c, y.value);
    if (slopes) {
      slopes->set(c, y.slope);
    }
  }
}

// Calls body(first, n) for tiles of classes [first, first + n); kOne: they fit into one.
template <bool kOne, typename Body>
SOFTREG_INLINE void for_each_tile(int64_t classes, Body body) {
  if (kOne) {
    if (classes > 0) {
      body(int64_t(0), classes);
    }
    return;
  }
  for (int64_t first = 0; first < classes; first += kTileClasses) {
    body(first, classes - first < kTileClasses ? classes - first : kTileClasses);
  }
}

}  // namespace
}  // namespace softreg
