// A block's threads, in turns on one thread of the host: each runs until it waits, and each warp
// until it waits for the block, as far ahead of the others as it may get. Who comes first changes
// every time, which is what shows a missing barrier: ThreadSanitizer would see one thread, in
// order.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 64 * 1024;

// Of a stack that is not in use, what AddressSanitizer keeps; it knows but one a thread unless
// told.
struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* frames = nullptr;

  void leave_for(const Stack& next) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&frames, next.bottom, next.bytes);
#endif
  }
  void arrive_from(Stack& last) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(frames, &last.bottom, &last.bytes);
#endif
  }
};

enum class State { kRuns, kWaitsForWarp, kWaitsForBlock, kEnded };

// Started once by its context, then switched to by longjmp: unlike swapcontext it calls no kernel.
struct Fiber {
  State state = State::kEnded;
  bool started = false;
  jmp_buf resume;
  ucontext_t start;
  std::unique_ptr<char[]> memory{new char[kStackBytes]};
  Stack stack{memory.get(), kStackBytes};
  std::deque<std::vector<Copy>> copies;  // groups, the last of which has not ended
};

struct Block {
  std::deque<Fiber> fibers;  // as many as the largest block needed
  std::deque<Slot> slots;
  std::vector<uint4> memory;
  size_t threads;
  Fiber* current;
  jmp_buf scheduler;
  Stack scheduler_stack;
  void (*body)(void*);
  void* arguments;
};

Block block;

void wait(State state) {
  Fiber& fiber = *block.current;
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) {
    fiber.stack.leave_for(block.scheduler_stack);
    _longjmp(block.scheduler, 1);
  }
  fiber.stack.arrive_from(block.scheduler_stack);
}

void fiber_main() {
  block.current->stack.arrive_from(block.scheduler_stack);
  for (;;) {
    block.body(block.arguments);
    wait(State::kEnded);
  }
}

void run_until_it_waits(Fiber& fiber) {
  block.current = &fiber;
  if (_setjmp(block.scheduler) != 0) {
    block.scheduler_stack.arrive_from(fiber.stack);
    return;
  }
  block.scheduler_stack.leave_for(fiber.stack);
  if (fiber.started) {
    _longjmp(fiber.resume, 1);
  }
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack = {fiber.memory.get(), 0, kStackBytes};
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// Lets the threads of [begin, end) go on if all of them, but for those that have ended, wait for
// it.
bool release(size_t begin, size_t end, State reason) {
  const auto first = block.fibers.begin() + begin, last = block.fibers.begin() + end;
  const auto waits = [&](const Fiber& fiber) { return fiber.state == reason; };
  const auto waits_or_ended = [&](const Fiber& fiber) {
    return waits(fiber) || fiber.state == State::kEnded;
  };
  if (!std::all_of(first, last, waits_or_ended) || !std::any_of(first, last, waits)) {
    return false;
  }
  std::for_each(first, last,
                [&](Fiber& fiber) { fiber.state = waits(fiber) ? State::kRuns : fiber.state; });
  return true;
}

// The numbers below `count`, in another order every time.
template <typename Body>
void for_each_below(size_t count, Body body) {
  static unsigned random = 1;
  random = random * 1664525u + 1013904223u;
  size_t power_of_two = 1;
  while (power_of_two < count) {
    power_of_two *= 2;
  }
  const size_t flipped = (random >> 16) & (power_of_two - 1);
  for (size_t i = 0; i < power_of_two; ++i) {
    if ((i ^ flipped) < count) {
      body(i ^ flipped);
    }
  }
}

void run_warp(size_t begin, size_t count) {
  do {
    for_each_below(count, [&](size_t lane) {
      Fiber& fiber = block.fibers[begin + lane];
      if (fiber.state == State::kRuns) {
        threadIdx = dim3(begin + lane, 0, 0);
        run_until_it_waits(fiber);
      }
    });
  } while (release(begin, begin + count, State::kWaitsForWarp));
}

void run_block() {
  const size_t in_warp = std::min<size_t>(block.threads, kWarp);
  do {
    for_each_below(block.threads / in_warp,
                   [&](size_t warp) { run_warp(warp * in_warp, in_warp); });
  } while (release(0, block.threads, State::kWaitsForBlock));
  for (size_t i = 0; i < block.threads; ++i) {
    if (block.fibers[i].state != State::kEnded) {
      fprintf(stderr, "cuda_on_host: thread %zu waits for others that never come\n", i);
      abort();
    }
  }
}

}  // namespace

void wait_for_block() { wait(State::kWaitsForBlock); }
void wait_for_warp() { wait(State::kWaitsForWarp); }

Slot& slot_of_lane(int lane) { return block.slots[threadIdx.x / kWarp * kWarp + lane]; }

uint4* block_memory() { return block.memory.data(); }

void copy_later(Copy copy) { block.current->copies.back().push_back(copy); }
void end_group_of_copies() { block.current->copies.emplace_back(); }
void wait_for_copies(size_t but) {
  for (auto& copies = block.current->copies; copies.size() > but + 1; copies.pop_front()) {
    for (const Copy& copy : copies.front()) {
      memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

void run_kernel(dim3 blocks, dim3 threads, size_t shared_bytes, void (*body)(void*),
                void* arguments) {
  block.threads = threads.x;
  block.body = body;
  block.arguments = arguments;
  while (block.fibers.size() < threads.x) {
    block.fibers.emplace_back();
    block.slots.emplace_back();
  }
  gridDim = blocks;
  blockDim = threads;
  for (unsigned y = 0; y < blocks.y; ++y) {
    for (unsigned x = 0; x < blocks.x; ++x) {
      blockIdx = dim3(x, y, 0);
      for (size_t i = 0; i < block.threads; ++i) {
        block.fibers[i].state = State::kRuns;
        block.fibers[i].copies.assign(1, {});
      }
      block.memory.assign(shared_bytes / sizeof(uint4), {~0u, ~0u, ~0u, ~0u});
      run_block();
    }
  }
}

}  // namespace cuda_on_host
