// The way over rows in the lanes, tile by tile, and how one is read beside the arithmetic of the
// one before it. Included by the kernels alone.
#pragma once

#include "cpu/kernels_fold.h"
#include "cpu/kernels_tile.h"

namespace softreg {
namespace {

// What the kernels are compiled for. Plain: logits as they are, and either no class that counts
// besides the label or probabilities that are their own coefficients.
enum class Target { kPlainLabels, kLabels, kPlainProbabilities, kProbabilities };

constexpr bool is_plain(Target target) {
  return target == Target::kPlainLabels || target == Target::kPlainProbabilities;
}
constexpr bool has_probabilities(Target target) {
  return target == Target::kPlainProbabilities || target == Target::kProbabilities;
}

// The classes [first, first + classes) of the rows [row, row + count), as many as a tile has room
// for or fewer.
template <typename T>
struct Place {
  int64_t row = 0, count = 0;
  int64_t first = 0, classes = 0;
  Strip<const T> logits, probabilities;
  Strip<T> grad;
};

// Place after place: all classes of a vector of rows, then the next rows. `grad`: where gradients
// go, if any.
template <typename T, typename V>
class TileWalk {
  using A = typename V::value_type;

 public:
  SOFTREG_INLINE TileWalk(const CrossEntropyRows<T, A>& args, const RowMatrix<T>& grad,
                          int64_t begin, int64_t end)
      : args_(args), grad_(grad), end_(end) {
    move_to(begin);
  }

  SOFTREG_INLINE const Place<T>& place() const { return place_; }
  SOFTREG_INLINE bool is_over() const { return place_.row >= end_; }
  SOFTREG_INLINE bool begins_rows() const { return place_.first == 0; }
  SOFTREG_INLINE bool ends_rows() const { return place_.first + place_.classes == args_.classes; }

  SOFTREG_INLINE void next() {
    if (ends_rows()) {
      move_to(place_.row + place_.count);
    } else {
      take_classes(place_.first + place_.classes);
    }
  }

 private:
  SOFTREG_INLINE void move_to(int64_t row) {
    const int64_t passed = place_.count;
    place_.row = row;
    if (is_over()) {
      return;
    }
    rest_ -= passed;
    if (rest_ == 0) {
      rest_ = args_.logits.rows_in_sample(row, end_ - row);
      rest_ = grad_.rows_in_sample(row, args_.probabilities.rows_in_sample(row, rest_));
      place_.logits = {args_.logits, row};
      place_.probabilities = {args_.probabilities, row};
      place_.grad = {grad_, row};
    } else {
      place_.logits.data += passed * place_.logits.row_stride;
      place_.probabilities.data += passed * place_.probabilities.row_stride;
      place_.grad.data += passed * place_.grad.row_stride;
    }
    place_.count = rest_ < V::size() ? rest_ : V::size();
    take_classes(0);
  }

  SOFTREG_INLINE void take_classes(int64_t first) {
    const int64_t rest = args_.classes - first;
    place_.first = first;
    place_.classes = rest < kTileClasses ? rest : kTileClasses;
  }

  const CrossEntropyRows<T, A>& args_;
  const RowMatrix<T>& grad_;
  int64_t end_;
  int64_t rest_ = 0;  // rows of the sample, from the place on
  Place<T> place_;
};

// What the gradients of the rows in the lanes are made of.
template <typename V>
struct LaneGradients {
  RowGradient<V> rows;
  V label;     // counted from the tile's first class
  V counting;  // 1 or 0
};

// Some classes of the rows in the lanes.
template <typename V>
struct Tiles {
  Tile<V> logits;  // transformed; then exp(x - max), where that is kept; their gradients at last
  Tile<V> slopes;  // where logits are transformed
  Tile<V> probabilities;
  LaneGradients<V> gradients;
};

// Whether what is read at a place lies in memory as vectors do, and is taken as it is.
template <typename V, Target kTarget, typename T, typename A>
SOFTREG_INLINE bool is_read_in_place(const CrossEntropyRows<T, A>& args, const Place<T>& place) {
  return (is_plain(kTarget) || args.transform.is_identity) &&
         place.logits.template are_vector<V>(place.count) &&
         (!has_probabilities(kTarget) || place.probabilities.template are_vector<V>(place.count));
}

// Takes the logits of class after class from where they lie.
template <typename T, typename V>
class LogitsInPlace {
 public:
  SOFTREG_INLINE LogitsInPlace() = default;
  SOFTREG_INLINE explicit LogitsInPlace(const Place<T>& place)
      : next_(place.logits.at(0, place.first)), stride_(place.logits.class_stride) {}

  SOFTREG_INLINE V next() {
    const T* const logits = next_;
    next_ += stride_;
    fetch_rows_ahead<V>(logits);
    return load_lane_vec<V>(logits);
  }

 private:
  const T* next_;
  int64_t stride_;
};

// Logits, transformed, and where `slopes` is given the slopes of that.
template <typename T, typename V, typename A>
SOFTREG_INLINE void load_logits(Tile<V>& tile, Tile<V>* slopes, LogitTransform<A> transform,
                                const Place<T>& place) {
  tile.load(place.logits, place.count, place.first, place.classes);
  if (transform.is_identity) {
    return;
  }
  with_transform(transform, [&](auto transformed) {
    for (int64_t c = 0; c < place.classes; ++c) {
      const TransformedLogit<V> y = transformed(tile[c]);
      tile.set(c, y.value);
      if (slopes) {
        slopes->set(c, y.slope);
      }
    }
  });
}

// All that is read at a place, however it lies there.
template <Target kTarget, typename T, typename V, typename A>
SOFTREG_INLINE void load_tiles(Tiles<V>& tiles, const CrossEntropyRows<T, A>& args,
                               const Place<T>& place, bool with_slopes) {
  if constexpr (is_plain(kTarget)) {
    tiles.logits.load(place.logits, place.count, place.first, place.classes);
  } else {
    load_logits(tiles.logits, with_slopes ? &tiles.slopes : nullptr, args.transform, place);
  }
  if (has_probabilities(kTarget) && !place.probabilities.template are_vector<V>(place.count)) {
    tiles.probabilities.load(place.probabilities, place.count, place.first, place.classes);
  }
}

// Reads a tile, class by class beside the arithmetic of another, where it can be: so memory is
// asked for little at a time. All at once the lines of an image's classes, a power of two apart,
// would push each other out of the caches before they are used.
template <Target kTarget, bool kBeside, typename T, typename V>
class TileReader {
  using A = typename V::value_type;

 public:
  V max;  // of the logits that were read

  SOFTREG_INLINE TileReader(const CrossEntropyRows<T, A>& args, bool with_slopes)
      : args_(args), with_slopes_(with_slopes) {}

  // Where the walk is, if it is not over.
  SOFTREG_INLINE void begin(const TileWalk<T, V>& walk, Tiles<V>& to) {
    const Place<T>& place = walk.place();
    to_ = &to;
    max = V(-static_cast<A>(INFINITY));
    beside_ = kBeside && !walk.is_over() && is_read_in_place<V, kTarget>(args_, place)
                  ? place.classes
                  : 0;
    in_place_ = LogitsInPlace<T, V>(place);
  }

  SOFTREG_INLINE void read(int64_t c) {
    if (kBeside && C10_LIKELY(c < beside_)) {
      const V logits = in_place_.next();
      to_->logits.set(c, logits);
      max = vmax(max, logits);
    }
  }

  // All but the first `done` classes of the place it began with.
  SOFTREG_INLINE void finish(const Place<T>& place, int64_t done) {
    if (beside_ > 0) {
      for (int64_t c = done; c < beside_; ++c) {
        read(c);
      }
      return;
    }
    load_tiles<kTarget>(*to_, args_, place, with_slopes_);
    const auto logits = [&](int64_t c) { return to_->logits[c]; };
    max = fold_vectors<kTileClasses>(place.classes, max, logits, Max(), Max());
  }

 private:
  const CrossEntropyRows<T, A>& args_;
  bool with_slopes_;
  Tiles<V>* to_;
  LogitsInPlace<T, V> in_place_;
  int64_t beside_;  // classes
};

}  // namespace
}  // namespace softreg
