// How many threads share a row, and how many blocks there are: arithmetic on sizes, for the host.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parts.h"

namespace softreg {

constexpr int kSlotBytes = 16;
// Slots (row_slots.cuh) that a thread takes up at a time, a round: enough bytes on their way.
constexpr int kSlotsOfRound = 4;
constexpr int64_t kRoundBytes = kSlotsOfRound * kSlotBytes;
// Rounds on their way, or in use, where a row is read once.
constexpr int kPlacesOfStream = 2;

constexpr int kWarp = 32;
// Of a block, where rows do not ask for more.
constexpr int kThreads = 128;
// Of a block that adds up what others left.
constexpr int kManyThreads = 512;

// Threads that a multiprocessor has registers for.
template <typename T>
constexpr int kResidentThreads = sizeof(T) == 8 ? 256 : 512;

struct GpuLimits {
  int64_t multiprocessors;
  int64_t shared_bytes;  // of a multiprocessor
  int64_t l2_bytes;
};

struct LaunchPlan {
  int team;         // threads that share a row: a power of two up to 32, or the whole block
  int threads;      // of a block
  int64_t blocks;   // each takes up `threads / team` rows at a time, until none is left
  int64_t columns;  // blocks that share a row
  int sources;      // of what comes through shared memory: logits, or probabilities too
  int places;       // for rounds that are on their way, or kept

  int64_t shared_bytes() const { return places * sources * kRoundBytes * threads; }
};

struct LaunchShape {
  int64_t rows;
  int64_t classes;
  // Where it is false, rows are: adjacent threads take up adjacent rows, each all classes of its
  // own.
  bool classes_adjacent;
  int64_t slot_items;
  int resident_threads;  // of a multiprocessor
  int sources;

  int64_t slots() const { return parts_of(classes, slot_items); }
  int64_t rounds(int64_t team) const {
    return std::max<int64_t>(1, parts_of(slots(), team * kSlotsOfRound));
  }
};

// Of a block's shared memory, what is not for rounds.
constexpr int64_t kOtherBytes = 4096;

// For rounds that a thread keeps, or has on their way.
inline int places_for(const LaunchShape& shape, const GpuLimits& limits, int threads) {
  constexpr int64_t kMostPlaces = 8;
  const int64_t of_block = limits.shared_bytes * threads / shape.resident_threads;
  const int64_t places = (of_block - kOtherBytes) / (threads * shape.sources * kRoundBytes);
  return static_cast<int>(std::clamp<int64_t>(places, 1, kMostPlaces));
}

// Of a block: all that are resident, where there is room for a stream of theirs.
inline int most_threads(const LaunchShape& shape, const GpuLimits& limits) {
  int threads = shape.resident_threads;
  const int64_t bytes_of_thread = kPlacesOfStream * shape.sources * kRoundBytes;
  while (threads > kThreads && threads * bytes_of_thread > limits.shared_bytes - kOtherBytes) {
    threads /= 2;
  }
  return threads;
}

// `stays(team)`: whether what is read again, if anything is, is found in a cache.
template <typename Stays>
LaunchPlan plan_rows(const LaunchShape& shape, const GpuLimits& limits, const Stays& stays) {
  int team = 1;
  if (shape.classes_adjacent) {
    while (team < kWarp && shape.rounds(team) > 1) {
      team *= 2;
    }
    // Then no more threads than it takes: what comes once a row costs each of them as much.
    const auto is_enough = [&](int64_t size) {
      constexpr int64_t kFewRounds = 4;
      const bool all_busy = shape.rows * size >= limits.multiprocessors * shape.resident_threads;
      return shape.rounds(size) <= kFewRounds || (all_busy && stays(size));
    };
    while (team >= kWarp && team < most_threads(shape, limits) && !is_enough(team)) {
      team = std::max(2 * team, kThreads);
    }
  }
  // As many blocks as are resident together: while one row is summed up, the next is on its way.
  const int threads = std::max(team, kThreads), rows_at_once = threads / team;
  const int64_t wanted = parts_of(shape.rows, rows_at_once);
  const int64_t resident = limits.multiprocessors * (shape.resident_threads / threads);
  LaunchPlan plan{team, threads,       std::clamp<int64_t>(wanted, 1, resident),
                  1,    shape.sources, kPlacesOfStream};
  // Few long rows are split over columns.
  if (team > kWarp && plan.blocks < resident) {
    plan.columns = std::min(parts_of(resident, plan.blocks), shape.rounds(team));
  }
  return plan;
}

// The same teams, and so the same bits, whether or not gradients are written too. Rows then stay
// in shared memory, but for so few rounds that they do in the L2. Each block leaves a partial sum
// behind; one where all rows fit, for then no second launch adds up.
inline LaunchPlan plan_forward(const LaunchShape& shape, const GpuLimits& limits) {
  const int64_t rounds_bytes =
      limits.multiprocessors * shape.resident_threads * shape.sources * kRoundBytes;
  LaunchPlan plan = plan_rows(shape, limits, [&](int64_t team) {
    const int places = places_for(shape, limits, std::max<int64_t>(team, kThreads));
    return (shape.rounds(team) - places) * rounds_bytes <= limits.l2_bytes / 4;
  });
  const int64_t threads = std::max<int64_t>(1, shape.rows * plan.team);
  if (plan.team <= kWarp && threads <= most_threads(shape, limits)) {
    plan.threads = static_cast<int>(rounded_up(threads, kWarp));
    plan.blocks = 1;
  }
  return plan;
}

inline LaunchPlan plan_forward_with_gradient(const LaunchShape& shape, const GpuLimits& limits) {
  LaunchPlan plan = plan_forward(shape, limits);
  plan.places = places_for(shape, limits, plan.threads);
  return plan;
}

// Its rows are read once: a warp needs no barrier.
inline LaunchPlan plan_gradient(const LaunchShape& shape, const GpuLimits& limits) {
  constexpr int64_t kMostRounds = 8;
  return plan_rows(shape, limits, [&](int64_t team) { return shape.rounds(team) <= kMostRounds; });
}

}  // namespace softreg
