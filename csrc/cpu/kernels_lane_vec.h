// Two vectors as one: while the one waits for what it needs, the other computes. So are the vectors
// of rows in the lanes, where there are registers enough. Included by the kernels alone.
#pragma once

#include "cpu/kernels_vec_exp.h"
#include "cpu/kernels_vec_memory.h"

namespace softreg {

template <typename V>
struct Pair {
  using value_type = typename V::value_type;
  V low, high;

  SOFTREG_INLINE Pair() = default;
  SOFTREG_INLINE Pair(value_type x) : low(x), high(x) {}
  SOFTREG_INLINE Pair(V low, V high) : low(low), high(high) {}
  template <typename U>
  SOFTREG_INLINE explicit Pair(const Pair<U>& x) : low(x.low), high(x.high) {}

  static constexpr int64_t size() { return 2 * V::size(); }
};

template <typename V>
SOFTREG_INLINE Pair<V> operator+(const Pair<V>& a, const Pair<V>& b) {
  return {a.low + b.low, a.high + b.high};
}
template <typename V>
SOFTREG_INLINE Pair<V> operator-(const Pair<V>& a, const Pair<V>& b) {
  return {a.low - b.low, a.high - b.high};
}
template <typename V>
SOFTREG_INLINE Pair<V> operator-(const Pair<V>& a) {
  return {a.low.neg(), a.high.neg()};
}
template <typename V>
SOFTREG_INLINE Pair<V> operator*(const Pair<V>& a, const Pair<V>& b) {
  return {a.low * b.low, a.high * b.high};
}
template <typename V>
SOFTREG_INLINE Pair<V> operator/(const Pair<V>& a, const Pair<V>& b) {
  return {a.low / b.low, a.high / b.high};
}

// As for a Vec.
template <typename V>
SOFTREG_INLINE Pair<V> vmax(const Pair<V>& best, const Pair<V>& x) {
  return {vmax(best.low, x.low), vmax(best.high, x.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> zero_if_neg_inf(const Pair<V>& x) {
  return {zero_if_neg_inf(x.low), zero_if_neg_inf(x.high)};
}
// One after the other, where tanh goes side by side: rows in the lanes have no registers for that.
template <typename V>
SOFTREG_INLINE Pair<V> vexp(const Pair<V>& x) {
  return {vexp(x.low), vexp(x.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> add_exp(const Pair<V>& sum, const Pair<V>& x, Pair<V>& exp) {
  return {add_exp(sum.low, x.low, exp.low), add_exp(sum.high, x.high, exp.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> vlog(const Pair<V>& x) {
  return {vlog(x.low), vlog(x.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> vcopysign(const Pair<V>& x, const Pair<V>& sign) {
  return {vcopysign(x.low, sign.low), vcopysign(x.high, sign.high)};
}
template <int kBits, typename V>
SOFTREG_INLINE Pair<V> power_of_two(const Pair<V>& biased) {
  return {power_of_two<kBits>(biased.low), power_of_two<kBits>(biased.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> mul_sub(const Pair<V>& a, const Pair<V>& b, const Pair<V>& c) {
  return {mul_sub(a.low, b.low, c.low), mul_sub(a.high, b.high, c.high)};
}
template <typename V>
SOFTREG_INLINE Pair<V> mul_add(const Pair<V>& a, const Pair<V>& b, const Pair<V>& c) {
  return {mul_add(a.low, b.low, c.low), mul_add(a.high, b.high, c.high)};
}

template <typename V>
SOFTREG_INLINE Pair<V> where_equal(const Pair<V>& a, const Pair<V>& b, const Pair<V>& x,
                                   const Pair<V>& y) {
  return {where_equal(a.low, b.low, x.low, y.low), where_equal(a.high, b.high, x.high, y.high)};
}
SOFTREG_INLINE Pair<Vec<float>> narrowed(const Pair<WideVec>& x) {
  return {narrowed(x.low), narrowed(x.high)};
}
SOFTREG_INLINE Pair<Vec<double>> narrowed(const Pair<Vec<double>>& x) { return x; }

// V below: the vector of rows in the lanes, a Vec or a Pair of them.
template <typename V>
struct LanesOf {
  using Part = V;
  using WideV = Wide<typename V::value_type>;
};
template <typename P>
struct LanesOf<Pair<P>> {
  using Part = P;
  using WideV = Pair<Wide<typename P::value_type>>;
};
// One of the Vecs that it is made of; the same lanes in the type that long sums are taken in.
template <typename V>
using PartOf = typename LanesOf<V>::Part;
template <typename V>
using WideOf = typename LanesOf<V>::WideV;

#if defined(CPU_CAPABILITY_AVX512)
constexpr bool kPairsFit = true, kPairsFillLines = true;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr bool kPairsFit = false, kPairsFillLines = true;
#else
constexpr bool kPairsFit = false, kPairsFillLines = false;
#endif
// Of as many lanes as there are registers for.
template <typename A>
using ManyLanes = std::conditional_t<kPairsFit, Pair<Vec<A>>, Vec<A>>;
// For kernels that write as much as they read: at least a line of the caches, or each line would
// come and go twice.
template <typename A>
using LanesOfLine = std::conditional_t<kPairsFillLines, Pair<Vec<A>>, Vec<A>>;

// The V whose k-th Vec is part(k).
template <typename V, typename Part>
SOFTREG_INLINE V lanes_of(Part part) {
  if constexpr (std::is_same_v<V, PartOf<V>>) {
    return part(0);
  } else {
    return {part(0), part(1)};
  }
}

// use(k, part) for each of its Vecs.
template <typename V, typename Use>
SOFTREG_INLINE void for_each_part(const Pair<V>& x, Use use) {
  use(0, x.low);
  use(1, x.high);
}
template <typename V, typename Use>
SOFTREG_INLINE void for_each_part(const V& x, Use use) {
  use(0, x);
}

// How many of the first `count` lanes are in part k, of `width` lanes.
SOFTREG_INLINE int64_t count_in_part(int64_t k, int64_t width, int64_t count) {
  const int64_t rest = count - k * width;
  return rest < 0 ? 0 : rest < width ? rest : width;
}

template <typename V, typename T>
SOFTREG_INLINE V load_lane_vec(const T* x) {
  constexpr int64_t width = PartOf<V>::size();
  return lanes_of<V>([&](int64_t k) { return load_vec(x + k * width); });
}

// The first `count` lanes; the others get `padding`.
template <typename V, typename T>
SOFTREG_INLINE V load_lane_vec(const T* x, int64_t count, typename V::value_type padding) {
  constexpr int64_t width = PartOf<V>::size();
  return lanes_of<V>(
      [&](int64_t k) { return load_part(x + k * width, count_in_part(k, width, count), padding); });
}

// x in the first `count` lanes, 0 in the others.
template <typename V>
SOFTREG_INLINE V first_lanes_of(typename V::value_type x, int64_t count) {
  using Part = PartOf<V>;
  return lanes_of<V>([&](int64_t k) {
    return padded(Part(x), count_in_part(k, Part::size(), count), typename V::value_type(0));
  });
}

template <typename T, typename V>
SOFTREG_INLINE void store_lane_vec(T* to, const V& x) {
  for_each_part(x, [&](int64_t k, const auto& part) { store_vec(to + k * part.size(), part); });
}

// The first `count` lanes.
template <typename T, typename V>
SOFTREG_INLINE void store_lane_vec(T* to, int64_t count, const V& x) {
  for_each_part(x, [&](int64_t k, const auto& part) {
    store_part(to + k * part.size(), count_in_part(k, part.size(), count), part);
  });
}

}  // namespace softreg
