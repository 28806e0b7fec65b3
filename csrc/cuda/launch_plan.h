// How many threads share a row, and how many blocks there are: arithmetic on sizes, for the host.
#pragma once

#include <algorithm>
#include <cstdint>

namespace softreg {

// Slots (row_slots.cuh) that a thread loads before it uses the first of them: enough bytes on their
// way, few enough logits for the registers. The gradients write as much as they read.
template <typename T>
constexpr int kForwardSlots = sizeof(T) == 4 ? 4 : 2;
template <typename T>
constexpr int kGradientSlots = sizeof(T) == 8 ? 1 : 2;
// Beside the forward pass there are fewer registers.
template <typename T>
constexpr int kSecondReadSlots = sizeof(T) == 4 ? 2 : 1;

// Blocks of 512 threads that a multiprocessor has registers for: of two, one loads while the other
// waits for its barrier.
template <typename T, bool kPlain>
constexpr int kResidentBlocks = kPlain && sizeof(T) <= 4 ? 2 : 1;

struct LaunchPlan {
  int team;         // threads that share a row: a power of two up to 32, or the whole block
  int threads;      // of a block
  int64_t blocks;   // each takes up `threads / team` rows at a time, until none is left
  int64_t columns;  // blocks that share a row
};

struct LaunchShape {
  int64_t rows;
  int64_t classes;
  // Where it is false, rows are: adjacent threads take up adjacent rows, each all classes of its
  // own.
  bool classes_adjacent;
  int64_t slot_items;  // logits in 16 bytes
  int slots_at_once;

  int64_t slots() const { return (classes + slot_items - 1) / slot_items; }
  // How many times a team takes up as many slots as it can.
  int64_t rounds(int team) const { return slots() / (static_cast<int64_t>(team) * slots_at_once); }
};

inline LaunchPlan plan_rows(const LaunchShape& shape) {
  constexpr int kWarp = 32, kThreads = 128, kMostThreads = 512;
  // A warp for up to four rounds, for it needs no barrier; above, a block, for two rounds or more.
  int team = 1;
  if (shape.classes_adjacent) {
    const bool by_warp = shape.slots() <= 4 * kWarp * shape.slots_at_once;
    const int least_slots = by_warp ? shape.slots_at_once : 2 * shape.slots_at_once;
    team = by_warp ? 1 : kThreads;
    while (team < (by_warp ? kWarp : kMostThreads) && team * least_slots < shape.slots()) {
      team *= 2;
    }
  }
  const int threads = std::max(team, kThreads), rows_at_once = threads / team;
  return {team, threads, (shape.rows + rows_at_once - 1) / rows_at_once, 1};
}

// Each block leaves a partial sum behind: enough of them to fill the GPU several times over, and
// one where all rows fit, for then no second launch adds up. Few long rows are split over columns.
inline LaunchPlan plan_forward(const LaunchShape& shape, int64_t multiprocessors) {
  constexpr int64_t kWarp = 32, kMostThreads = 512;
  LaunchPlan plan = plan_rows(shape);
  const int64_t threads = std::max<int64_t>(1, shape.rows * plan.team);
  const int64_t rounds = shape.rounds(plan.team), wanted = 2 * multiprocessors;
  plan.blocks = std::clamp<int64_t>(plan.blocks, 1, 64 * multiprocessors);
  if (plan.team <= kWarp && threads <= kMostThreads && rounds <= 4) {
    plan.threads = static_cast<int>((threads + kWarp - 1) / kWarp * kWarp);
    plan.blocks = 1;
  } else if (plan.blocks < wanted) {
    plan.columns = std::min((wanted + plan.blocks - 1) / plan.blocks, std::max<int64_t>(1, rounds));
  }
  return plan;
}

// Many blocks, for nothing has to be summed, but eight rounds to each: what a block must know of
// its row before it starts costs a few round trips to memory.
inline LaunchPlan plan_gradient(const LaunchShape& shape) {
  constexpr int64_t kMostBlocks = INT32_MAX, kMostColumns = 65535, kRounds = 8;
  LaunchPlan plan = plan_rows(shape);
  plan.columns = std::clamp<int64_t>(shape.rounds(plan.team) / kRounds, 1, kMostColumns);
  plan.blocks = std::min(plan.blocks, kMostBlocks);
  return plan;
}

// For a gradient that is there already, as a rule: few blocks, whose start is all they cost then.
inline LaunchPlan plan_correction(const LaunchShape& shape, int64_t multiprocessors) {
  LaunchPlan plan = plan_forward(shape, multiprocessors);
  plan.blocks = std::min(plan.blocks, 4 * multiprocessors);
  return plan;
}

}  // namespace softreg
