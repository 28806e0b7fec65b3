// The forward pass of a row: one walk over it, whatever the loss asks for.
#pragma once

#include "cuda/row_stream.cuh"
#include "cuda/totals.cuh"

namespace softreg {
namespace {

// `state` and what slots of a row hold, from `slot` on: logits, and probabilities where the target
// is made of them. A single slot may reach beyond the row.
template <bool kPlain, int kCount, typename T>
__device__ __forceinline__ RowState<Accumulator<T>> add_slots(
    RowState<Accumulator<T>> state, const CrossEntropyRows<T, Accumulator<T>>& args, Team team,
    const RowRounds<T>& rounds, int slot, Pack<T> (&packs)[kCount],
    const Pack<T> (&probabilities)[kCount]) {
  using A = Accumulator<T>;
  constexpr int kWidth = Pack<T>::kItems;
  const bool weighted = !kPlain && args.all_classes_count();
  const auto logits_of = [&](int s) {
    WidePack<T> x(packs[s]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (!kPlain && !args.transform.is_identity) {
        x.items[i] = transform_logit(args.transform, x.items[i]).value;
      }
      if (!kPlain && kCount == 1 && !args.holds(rounds.first(slot) + i)) {
        x.items[i] = -static_cast<A>(INFINITY);
      }
    }
    return x;
  };
  A max = state.exp.max;
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    const WidePack<T> x = logits_of(s);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      max = vmax(max, x.items[i]);
    }
    forget(packs[s]);
  }
  state = relative_to(state, max, weighted);
  const A common = shift(max);
  A sum = 0;
#pragma unroll
  for (int s = 0; s < kCount; ++s) {
    WidePack<T> x = logits_of(s), exps;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x.items[i] -= common;
      exps.items[i] = exp_beside_logits<T>(x.items[i]);
    }
    sum += exps.sum();
    if (weighted) {
      const int first = rounds.first(slot + s * team.size);
      SlotItems<A, kWidth> of_class = coefficients(args, first, rounds.head, probabilities[s]);
      WidePack<T> coefficient;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const bool counts = kCount > 1 || args.holds(first + i);
        coefficient.items[i] = counts ? of_class[i] : A(0);
        x.items[i] = counts ? of_class[i] * x.items[i] : A(0);
      }
      state.coefficient += coefficient.sum();
      state.logit += x.sum();
    }
  }
  state.exp.sum += sum;
  return state;
}

template <typename T, typename A>
__device__ __forceinline__ A label_logit(const ForwardArgs<T, A>& args, int64_t row,
                                         RowTarget target) {
  if (args.has_probabilities() || !target.counts) {
    return 0;
  }
  const A logit = static_cast<A>(args.logits.row(row)[target.label * args.logits.class_stride]);
  return args.transform.is_identity ? logit : transform_logit(args.transform, logit).value;
}

// Ends a row, from the state of all of its logits. By one thread.
template <typename T, typename A>
__device__ __forceinline__ void finish_row(const ForwardArgs<T, A>& args, int64_t row,
                                           const RowState<A>& state, ForwardTotals& totals) {
  const RowTarget target = checked_target(args, row);
  const A of_label = label_logit(args, row, target);
  const A max = shift(state.exp.max), log_sum = vlog(state.exp.sum);
  args.row_max[row] = max;
  args.sum[row] = state.exp.sum;
  if (args.lse) {
    args.lse[row] = max + log_sum;
  }
  if (args.has_probabilities()) {
    args.coefficient_sum[row] = static_cast<A>(state.coefficient);
  }
  A loss = 0;
  if (target.counts) {
    A weighted_nll = 0;
    if (args.all_classes_count()) {
      weighted_nll = static_cast<A>(
          weighted_negative_log_likelihood<double>(state.coefficient, log_sum, state.logit));
    }
    const A weight = row_weight(args, target);
    loss = loss_of_row(args, weight, of_label, max, log_sum, weighted_nll);
    totals.weight.add(weight);
  }
  totals.loss.add(loss);
  if (args.loss) {
    args.loss[row] = static_cast<T>(loss);
  }
}

// States of rows, until each thread of the team has one: then they finish theirs together.
template <typename A>
struct PendingRows {
  RowState<A> state;  // of this thread's row
  int count = 0;

  __device__ __forceinline__ void add(Team team, const RowState<A>& of_row) {
    if (team.lane() == count) {
      state = of_row;
    }
    ++count;
  }

  // `end`: the row after the last one, `stride` apart.
  template <typename T>
  __device__ __forceinline__ void finish(const ForwardArgs<T, A>& args, Team team, int64_t end,
                                         int stride, ForwardTotals& totals) {
    if (team.lane() < count) {
      const int64_t back = count - team.lane();
      finish_row(args, end - back * stride, state, totals);
    }
    count = 0;
  }
};

// The state of a round and those before it. A round that is kept stays where it is, `ahead` rounds
// after the oldest; else the oldest makes room as soon as it is read.
template <bool kPlain, typename T, typename A, typename Stream>
__device__ __forceinline__ RowState<A> add_round(RowState<A> state, const ForwardArgs<T, A>& args,
                                                 Team team, bool is_read,
                                                 const RowRounds<T>& rounds, int round,
                                                 Stream& stream, bool keep, int ahead) {
  const auto slot = [&](int s) { return rounds.slot(team, round, s); };
  const auto logits = [&](int s) { return stream.logits(s, ahead); };
  const auto probabilities = [&](int s) { return stream.probabilities(s, ahead); };
  const bool full = rounds.is_full(team, round, args.classes);
  stream.wait(ahead);
  Pack<T> packs[kSlotsOfRound];
  if (kPlain && is_read) {
    if (!full) {
      stream.pad(rounds, round, ahead);
    }
#pragma unroll
    for (int s = 0; s < kSlotsOfRound; ++s) {
      packs[s] = logits(s);
    }
  } else if (!kPlain && kCopiesAreAsynchronous && is_read && full) {
#pragma unroll 1
    for (int s = 0; s < kSlotsOfRound; s += 2) {  // coefficients take registers too
      Pack<T> two[2] = {logits(s), logits(s + 1)};
      const Pack<T> target[2] = {probabilities(s), probabilities(s + 1)};
      state = add_slots<kPlain>(state, args, team, rounds, slot(s), two, target);
    }
  } else if (!kPlain && is_read) {
#pragma unroll 1
    for (int s = 0; s < kSlotsOfRound && slot(s) < rounds.end; ++s) {
      Pack<T> one[1] = {logits(s)};
      const Pack<T> target[1] = {probabilities(s)};
      state = add_slots<kPlain>(state, args, team, rounds, slot(s), one, target);
    }
  }
  if (!keep) {
    stream.next();
  }
  if (kPlain && is_read) {
    state = add_slots<kPlain>(state, args, team, rounds, slot(0), packs, packs);
  }
  return state;
}

// use(row, target, state, rounds, stream) for each row of the block, by every thread of the row's
// team: the state of the block's share of it. kTwice: use() takes each round from the stream once
// more. Rows that no other block has a share of are finished.
template <bool kPlain, bool kTwice, typename T, typename A, typename Use>
__device__ __forceinline__ ForwardTotals walk_rows(const ForwardArgs<T, A>& args, Team team,
                                                   Share share, int sources, int places,
                                                   const Use& use) {
  __shared__ RowState<A> shared[2][kMostWarps];
  TeamMerge<A> merge_team{shared};
  const bool weighted = !kPlain && args.all_classes_count();
  const int rows_at_once = team.per_block(), stride = gridDim.x * rows_at_once;
  int64_t row = static_cast<int64_t>(blockIdx.x) * rows_at_once + team.index();
  RowStream<ForwardArgs<T, A>, kPlain, kTwice> stream(args, team, share, row, stride, sources,
                                                      places);
  ForwardTotals totals;
  PendingRows<A> pending;
  RowRounds<T> rounds;
  int64_t label = label_of(args, row);
  // Threads beyond the last row keep step with the others of their warp.
  for (int64_t begin = row - team.index(); begin < args.rows; begin += stride, row += stride) {
    const int64_t next_label = label_of(args, row + stride);  // on its way meanwhile
    const RowTarget target(args, label);
    const bool exists = row < args.rows;
    RowState<A> state = RowState<A>::empty();
    if (exists) {
      rounds.move_to(args, row, team, share);
      const bool wanted = is_read(args, target);
      const int kept_from = rounds.count - stream.kept(rounds);
      for (int round = 0; round < rounds.count; ++round) {
        const bool keep = round >= kept_from;
        state = add_round<kPlain>(state, args, team, wanted, rounds, round, stream, keep,
                                  keep ? round - kept_from : 0);
      }
    }
    state = merge_team(state, team, weighted);
    if (exists) {
      use(row, target, state, rounds, stream);
      pending.add(team, state);
    }
    if (share.count == 1 && (pending.count == team.size || begin + stride >= args.rows)) {
      pending.finish(args, team, exists ? row + stride : row, stride, totals);
    }
    label = next_label;
  }
  return totals;
}

}  // namespace
}  // namespace softreg
