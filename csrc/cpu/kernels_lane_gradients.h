// The gradients of the rows in the lanes, a tile at a time. Included by the kernels alone.
#pragma once

#include "cpu/kernels_lanes.h"
#include "cpu/kernels_tile_walk.h"

namespace softreg {
namespace {

// The coefficients of a tile's classes: a_c for probabilities, w_c for labels. What they are made
// of is asked once a tile: for all the compiler knows, each store of a class may change `args`.
template <Target kTarget, typename T, typename V>
class Coefficients {
  using A = typename V::value_type;

 public:
  SOFTREG_INLINE Coefficients() = default;
  SOFTREG_INLINE Coefficients(const CrossEntropyRows<T, A>& args, const Place<T>& place,
                              const Tiles<V>& tiles)
      : weight_(args.weight),
        on_target_(args.on_target),
        per_class_(args.per_class),
        first_(place.first),
        probabilities_(place.probabilities),
        in_place_(probabilities_.template are_vector<V>(place.count)),
        tile_(&tiles.probabilities) {}

  // Of the tile's class c.
  SOFTREG_INLINE V operator[](int64_t c) const {
    if constexpr (!has_probabilities(kTarget)) {
      return weight(c);
    } else {
      const V q = in_place_ ? load_lane_vec<V>(probabilities_.at(0, first_ + c)) : (*tile_)[c];
      return is_plain(kTarget)
                 ? q
                 : probability_coefficient(weight(c), q, V(on_target_), V(per_class_));
    }
  }

  SOFTREG_INLINE void fetch_ahead(int64_t c) const {
    if (has_probabilities(kTarget)) {
      fetch_rows_ahead<V>(probabilities_.at(0, first_ + c));
    }
  }

 private:
  SOFTREG_INLINE V weight(int64_t c) const { return V(class_weight(weight_, first_ + c)); }

  const A* weight_;
  A on_target_, per_class_;
  int64_t first_;
  Strip<const T> probabilities_;
  bool in_place_;
  const Tile<V>* tile_;
};

// Where a tile's gradients go, class by class: to memory at once where a vector of rows lies side
// by side there, else by way of the tile.
template <typename T, typename V>
class TileOutput {
 public:
  SOFTREG_INLINE void begin(const Place<T>& place, Tile<V>& tile) {
    place_ = place;
    tile_ = &tile;
    is_direct_ = place.grad.template are_vector<V>(place.count);
    next_ = place.grad.at(0, place.first);
  }

  SOFTREG_INLINE const Place<T>& place() const { return place_; }
  SOFTREG_INLINE bool is_direct() const { return is_direct_; }

  SOFTREG_INLINE void set(int64_t c, V x) {
    if (is_direct_) {
      set_directly(x);
    } else {
      tile_->set(c, x);
    }
  }
  SOFTREG_INLINE void set_directly(V x) {
    fetch_rows_ahead<V>(next_);
    store_lane_vec(next_, x);
    next_ += place_.grad.class_stride;
  }

  // After the last class.
  SOFTREG_INLINE void finish() {
    if (!is_direct_) {
      tile_->store(place_.grad, place_.count, place_.first, place_.classes);
    }
  }

 private:
  Place<T> place_;
  Tile<V>* tile_ = nullptr;
  bool is_direct_ = true;
  T* next_;
};

template <typename V, typename T, typename A>
SOFTREG_INLINE V upstream_of_lanes(const BackwardArgs<T, A>& args, int64_t row, int64_t count) {
  if (!args.grad_loss) {
    return V(args.grad_reduced);
  }
  if (args.grad_loss_stride == 1 && !args.total_weight) {
    return load_lane_vec<V>(args.grad_loss + row, count, A(0));
  }
  A upstream[V::size()] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    upstream[lane] = upstream_gradient(args, row + lane);
  }
  return load_lane_vec<V>(upstream);
}

// What the rows in the lanes need for their gradients.
template <typename T, typename A, typename V>
SOFTREG_INLINE RowGradient<V> row_gradients(const BackwardArgs<T, A>& args, int64_t row,
                                            int64_t count, const LaneTargets<V>& targets, V max) {
  const V sum = load_lane_vec<V>(args.sum + row, count, A(1));
  RowGradient<V> of_rows = row_gradient(
      args, targets.weight, max, sum,
      args.has_probabilities() ? load_lane_vec<V>(args.coefficient_sum + row, count, A(0)) : V(0),
      upstream_of_lanes<V>(args, row, count));
  if (args.grad_lse) {
    for (V* of : {&of_rows.softmax_scale, &of_rows.weight_scale, &of_rows.target_offset,
                  &of_rows.upstream}) {
      *of = targets.of_counting(*of);
    }
    of_rows = with_lse_gradient(of_rows, load_lane_vec<V>(args.grad_lse + row, count, A(0)), sum);
  }
  return of_rows;
}

// Writes the gradients of a tile's logits, class by class, beside the arithmetic of another tile
// where it can be.
template <Target kTarget, bool kBeside, typename T, typename V>
class GradientWriter {
  using A = typename V::value_type;

 public:
  SOFTREG_INLINE explicit GradientWriter(const BackwardArgs<T, A>& args)
      : args_(args),
        coefficients_vary_(args.coefficients_vary()),
        is_transformed_(!args.transform.is_identity) {}

  SOFTREG_INLINE const BackwardArgs<T, A>& args() const { return args_; }
  SOFTREG_INLINE const Coefficients<kTarget, T, V>& coefficients() const { return coefficients_; }

  SOFTREG_INLINE void begin(const Place<T>& place, const LaneTargets<V>& targets,
                            const RowGradient<V>& rows, Tiles<V>& tiles) {
    output_.begin(place, tiles.logits);
    tiles_ = &tiles;
    coefficients_ = {args_, place, tiles};
    tiles.gradients = {rows, targets.labels_from(place.first), targets.counting};
    all_flow_ = args_.grad_lse || targets.all_count();
    beside_ = kBeside && output_.is_direct() ? place.classes : 0;
  }

  // From the exponential that the tile holds. What else it takes comes from memory too: the
  // arithmetic beside has no register left.
  SOFTREG_INLINE void write_beside(int64_t c) {
    if (kBeside && C10_LIKELY(c < beside_)) {
      output_.set_directly(gradient(tiles_->gradients, c, tiles_->logits[c]));
    }
  }

  // All but the first `done` classes, if they were written beside something. exp_of(c): exp(x -
  // max) of the class first + c.
  template <typename ExpOf>
  SOFTREG_INLINE void write_rest(int64_t done, ExpOf exp_of) {
    const int64_t classes = output_.place().classes;
    if (classes == 0) {
      return;  // nothing was begun
    }
    const LaneGradients<V> of_lanes = tiles_->gradients;
#pragma GCC unroll 4
    for (int64_t c = beside_ > 0 ? done : 0; c < classes; ++c) {
      output_.set(c, gradient(of_lanes, c, exp_of(c)));
    }
    output_.finish();
  }

  SOFTREG_INLINE void write_rest(int64_t done) {
    write_rest(done, [&](int64_t c) { return tiles_->logits[c]; });
  }

 private:
  SOFTREG_INLINE V gradient(const LaneGradients<V>& of_lanes, int64_t c, V exp) const {
    const RowGradient<V>& rows = of_lanes.rows;
    V offset = rows.weight_scale;
    if (has_probabilities(kTarget) || (!is_plain(kTarget) && coefficients_vary_)) {
      offset = offset * coefficients_[c];
    }
    if constexpr (!has_probabilities(kTarget)) {
      offset = where_equal(of_lanes.label, class_number<V>(c), rows.target_offset, offset);
    }
    V grad = logit_gradient(exp, rows.softmax_scale, offset, rows.upstream);
    if (!is_plain(kTarget) && is_transformed_) {
      grad = grad * tiles_->slopes[c];
    }
    return all_flow_ ? grad : of_counting(of_lanes.counting, grad);
  }

  const BackwardArgs<T, A>& args_;
  bool coefficients_vary_, is_transformed_;
  Coefficients<kTarget, T, V> coefficients_;
  TileOutput<T, V> output_;
  Tiles<V>* tiles_ = nullptr;
  int64_t beside_ = 0;
  bool all_flow_;
};

// Where the forward pass goes alone.
struct NoGradient {
  SOFTREG_INLINE void write_beside(int64_t) {}
  SOFTREG_INLINE void write_rest(int64_t) {}
};

}  // namespace
}  // namespace softreg
