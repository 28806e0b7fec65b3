// The gradients of a row: each logit once, on its own, from the row's maximum and sum.
#pragma once

#include "cuda/row_stream.cuh"

namespace softreg {
namespace {

// What flows into the rows' losses: read, and divided, once where it is one number for all rows.
template <typename T, typename A>
struct UpstreamGradients {
  const BackwardArgs<T, A>& args;
  bool is_common;
  A common = 0;

  __device__ explicit UpstreamGradients(const BackwardArgs<T, A>& args)
      : args(args), is_common(!args.grad_loss || args.grad_loss_stride == 0) {
    if (is_common) {
      common = upstream_gradient(args, 0);
    }
  }
  __device__ __forceinline__ A of(int64_t row) const {
    return is_common ? common : upstream_gradient(args, row);
  }
};

// The gradient of a row's logits, a slot at a time.
template <typename T, bool kPlain>
struct LogitGradients {
  using A = Accumulator<T>;
  static constexpr int kWidth = Pack<T>::kItems;
  static constexpr bool kReadsProbabilities = true;

  const BackwardArgs<T, A>& args;
  int head;
  bool flows;  // else the row's gradient is 0, and its logits are not read
  int label;
  A max = 0;
  RowGradient<A> gradient;

  // saved(): what the forward pass has left of the row.
  template <typename Saved>
  __device__ LogitGradients(const UpstreamGradients<T, A>& upstream, int64_t row, int head,
                            RowTarget target, const Saved& saved)
      : args(upstream.args),
        head(head),
        flows(is_read(args, target)),
        label(target.counts ? static_cast<int>(target.label) : -1) {
    if (flows) {
      const SavedRow<A> of_row = saved();
      max = of_row.max;
      gradient = row_gradient(args, row, target, of_row, upstream.of(row));
    }
  }

  __device__ LogitGradients(const UpstreamGradients<T, A>& upstream, int64_t row, int head)
      : LogitGradients(upstream, row, head, checked_target(upstream.args, row),
                       [&] { return saved_row(upstream.args, row); }) {}

  __device__ __forceinline__ A of(A x, A offset) const {
    if (kPlain || args.transform.is_identity) {
      return logit_gradient(exp_beside_logits<T>(x - max), gradient.softmax_scale, offset,
                            gradient.upstream);
    }
    const TransformedLogit<A> y = transform_logit(args.transform, x);
    return logit_gradient(exp_beside_logits<T>(y.value - max), gradient.softmax_scale, offset,
                          gradient.upstream) *
           y.slope;
  }

  __device__ __forceinline__ Pack<T> of(int first, const Pack<T>& logits,
                                        const Pack<T>& probabilities) const {
    const bool weighted = !kPlain && args.coefficients_vary();
    SlotItems<A, kWidth> of_class;
    if (weighted) {
      of_class = coefficients(args, first, head, probabilities);
    }
    WidePack<T> x(logits);
    const unsigned at = label - first;
    if (label >= 0 && at < kWidth) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const A elsewhere = weighted ? gradient.weight_scale * of_class[i] : gradient.weight_scale;
        x.items[i] = of(x.items[i], at == i ? gradient.target_offset : elsewhere);
      }
      return x.narrow();
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x.items[i] =
          of(x.items[i], weighted ? gradient.weight_scale * of_class[i] : gradient.weight_scale);
    }
    return x.narrow();
  }
};

// The gradient of a row's target of probabilities, where all classes count.
template <typename T, bool kPlain>
struct TargetGradients {
  static_assert(!kPlain);
  using A = Accumulator<T>;
  static constexpr int kWidth = Pack<T>::kItems;
  static constexpr bool kReadsProbabilities = false;

  const BackwardArgs<T, A>& args;
  int head;
  A max, log_sum, on, upstream;
  bool flows = true;

  __device__ TargetGradients(const UpstreamGradients<T, A>& upstream, int64_t row, int head)
      : args(upstream.args),
        head(head),
        max(args.row_max[row]),
        log_sum(vlog(args.sum[row])),
        on(args.on_target),
        upstream(upstream.of(row)) {}

  __device__ __forceinline__ Pack<T> of(int first, const Pack<T>& logits, const Pack<T>&) const {
    SlotItems<A, kWidth> weight = class_weights(args, first, head);
    WidePack<T> x(logits);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const A y = args.transform.is_identity ? x.items[i]
                                             : transform_logit(args.transform, x.items[i]).value;
      x.items[i] =
          probability_gradient(weight[i], on, negative_log_likelihood(log_sum, y - max), upstream);
    }
    return x.narrow();
  }
};

// Takes all rounds of a row from the stream, the first of which is `round`, and writes gradients.
template <bool kPlain, typename T, typename A, typename Gradients, typename Stream>
__device__ __forceinline__ void write_gradient_row(const BackwardArgs<T, A>& args, int64_t row,
                                                   Team team, const RowRounds<T>& rounds, int round,
                                                   const Gradients& gradients, Stream& stream) {
  const RowItems<T> grad = items_of(args.grad, row, args.classes, rounds.head);
  for (int taken = 0; taken < rounds.count; ++taken) {
    Pack<T> packs[kSlotsOfRound];
    stream.wait(0);
    if (kPlain) {
#pragma unroll
      for (int s = 0; s < kSlotsOfRound; ++s) {
        packs[s] = stream.logits(s, 0);
      }
      stream.next();
    }
#pragma unroll kPlain ? kSlotsOfRound : 2  // coefficients take registers too
    for (int s = 0; s < kSlotsOfRound; ++s) {
      const int slot = rounds.slot(team, round, s);
      if (slot < rounds.end) {
        const int first = rounds.first(slot);
        Pack<T> pack{};
        if (gradients.flows) {
          pack = kPlain ? gradients.of(first, packs[s], packs[s])
                        : gradients.of(first, stream.logits(s, 0), stream.probabilities(s, 0));
        }
        grad.store(first, pack);
      }
    }
    if (!kPlain) {
      stream.next();
    }
    round = round + 1 < rounds.count ? round + 1 : 0;
  }
}

}  // namespace
}  // namespace softreg
