// What a logit may go through before the softmax, for the host compiler and nvcc alike:
//
//   y = cap tanh(scale x / cap), or y = scale x without a cap
//
// (soft capping as in Gemma 2, 2024). Found by overload for a value F: vtanh.
#pragma once

#include "value.h"

namespace softreg {

template <typename A>
struct LogitTransform {
  A scale = 1;
  A cap = INFINITY;
  A scale_over_cap = 0;
  bool is_identity = true;

  LogitTransform() = default;
  LogitTransform(A of_logits, A of_tanh)
      : scale(of_logits),
        cap(of_tanh),
        scale_over_cap(of_logits / of_tanh),
        is_identity(of_logits == 1 && of_tanh == static_cast<A>(INFINITY)) {}

  SOFTREG_INLINE bool is_capped() const { return cap != static_cast<A>(INFINITY); }
};

// y and dy / dx. The slope comes from tanh itself: from y it would be two roundings further away.
template <typename F>
struct TransformedLogit {
  F value, slope;
};

// Of a cap.
template <typename F, typename A>
SOFTREG_INLINE F tanh_of_logit(const LogitTransform<A>& transform, F logit) {
  return vtanh(F(transform.scale_over_cap) * logit);
}

template <typename F, typename A>
SOFTREG_INLINE TransformedLogit<F> capped_logit(const LogitTransform<A>& transform, F tanh) {
  return {F(transform.cap) * tanh, F(transform.scale) * ((F(1) - tanh) * (F(1) + tanh))};
}

// Without one.
template <typename F, typename A>
SOFTREG_INLINE TransformedLogit<F> scaled_logit(const LogitTransform<A>& transform, F logit) {
  const F scale(transform.scale);
  return {scale * logit, scale};
}

template <typename F, typename A>
SOFTREG_INLINE TransformedLogit<F> transform_logit(const LogitTransform<A>& transform, F logit) {
  if (!transform.is_capped()) {
    return scaled_logit(transform, logit);
  }
  return capped_logit(transform, tanh_of_logit(transform, logit));
}

// use(transformed), transformed(logit): what is done to logits is asked once, not for each.
template <typename A, typename Use>
SOFTREG_INLINE void with_transform(const LogitTransform<A>& transform, Use use) {
  if (transform.is_capped()) {
    use([&](auto logit) { return capped_logit(transform, tanh_of_logit(transform, logit)); });
  } else {
    use([&](auto logit) { return scaled_logit(transform, logit); });
  }
}

}  // namespace softreg
