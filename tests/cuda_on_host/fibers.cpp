// A block's threads, in turns on one thread of the host: each runs until it waits. Those that wait
// for the same thing go on in another order every time, so that a missing barrier shows.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 64 * 1024;

enum class State { kRuns, kWaitsForWarp, kWaitsForBlock, kEnded };

// Started once by its context, then switched to by longjmp: unlike swapcontext it calls no kernel.
struct Fiber {
  State state = State::kEnded;
  bool started = false;
  jmp_buf resume;
  ucontext_t start;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

struct Block {
  std::deque<Fiber> fibers;  // as many as the largest block needed
  std::deque<Slot> slots;
  size_t threads;
  Fiber* current;
  jmp_buf scheduler;
  void (*body)(void*);
  void* arguments;
};

Block block;

void wait(State state) {
  block.current->state = state;
  if (_setjmp(block.current->resume) == 0) {
    _longjmp(block.scheduler, 1);
  }
}

void fiber_main() {
  for (;;) {
    block.body(block.arguments);
    wait(State::kEnded);
  }
}

void run_until_it_waits(Fiber& fiber) {
  block.current = &fiber;
  if (_setjmp(block.scheduler) != 0) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.resume, 1);
  }
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack = {fiber.stack.get(), 0, kStackBytes};
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// Lets the threads of [begin, end) go on if all of them, but for those that have ended, wait for it.
bool release(size_t begin, size_t end, State reason) {
  const auto first = block.fibers.begin() + begin, last = block.fibers.begin() + end;
  const auto waits = [&](const Fiber& fiber) { return fiber.state == reason; };
  const auto waits_or_ended = [&](const Fiber& fiber) {
    return waits(fiber) || fiber.state == State::kEnded;
  };
  if (!std::all_of(first, last, waits_or_ended) || !std::any_of(first, last, waits)) {
    return false;
  }
  std::for_each(first, last, [&](Fiber& fiber) {
    fiber.state = waits(fiber) ? State::kRuns : fiber.state;
  });
  return true;
}

void run_block() {
  static unsigned random = 1;
  for (bool moves = true; moves;) {
    random = random * 1664525u + 1013904223u;
    const size_t flipped = (random >> 16) & (block.threads - 1);  // a power of two, less 1
    for (size_t i = 0; i < block.threads; ++i) {
      Fiber& fiber = block.fibers[i ^ flipped];
      if (fiber.state == State::kRuns) {
        threadIdx = dim3(i ^ flipped, 0, 0);
        run_until_it_waits(fiber);
      }
    }
    moves = release(0, block.threads, State::kWaitsForBlock);
    for (size_t warp = 0; warp < block.threads; warp += kWarp) {
      moves |= release(warp, std::min(block.threads, warp + kWarp), State::kWaitsForWarp);
    }
  }
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

void run_kernel(dim3 blocks, dim3 threads, void (*body)(void*), void* arguments) {
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
      }
      run_block();
    }
  }
}

}  // namespace cuda_on_host
