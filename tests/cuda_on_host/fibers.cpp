// A block's threads, in turns on one thread of the host: each runs until it waits. Those that wait for
// the same thing go on in another order every time, so that a missing barrier shows.
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {
namespace {

constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  enum { kRuns, kWaitsForWarp, kWaitsForBlock, kEnded } state;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Slot> slots;
  ucontext_t scheduler;
  Fiber* current;
  void (*body)(void*);
  void* arguments;
};

Block block;

void fiber_main() {
  block.body(block.arguments);
  block.current->state = Fiber::kEnded;
  swapcontext(&block.current->context, &block.scheduler);
}

void wait(decltype(Fiber::state) reason) {
  block.current->state = reason;
  swapcontext(&block.current->context, &block.scheduler);
}

// Lets those in [begin, end) go on that wait for `reason`, if all that have not ended do.
bool release(size_t begin, size_t end, decltype(Fiber::state) reason) {
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    const auto state = block.fibers[i].state;
    if (state != reason && state != Fiber::kEnded) {
      return false;
    }
    any |= state == reason;
  }
  for (size_t i = begin; any && i < end; ++i) {
    if (block.fibers[i].state == reason) {
      block.fibers[i].state = Fiber::kRuns;
    }
  }
  return any;
}

void run_block() {
  static unsigned order = 1;
  const size_t count = block.fibers.size();
  for (bool alive = true; alive;) {
    order = order * 1664525u + 1013904223u;
    const size_t flip = order >> 22 & (count - 1);  // the counts are powers of two
    for (size_t i = 0; i < count; ++i) {
      block.current = &block.fibers[i ^ flip];
      threadIdx.x = i ^ flip;
      if (block.current->state == Fiber::kRuns) {
        swapcontext(&block.scheduler, &block.current->context);
      }
    }
    bool moved = release(0, count, Fiber::kWaitsForBlock);
    for (size_t warp = 0; warp < count; warp += kWarp) {
      moved |= release(warp, std::min(count, warp + kWarp), Fiber::kWaitsForWarp);
    }
    alive = false;
    for (const Fiber& fiber : block.fibers) {
      alive |= fiber.state != Fiber::kEnded;
    }
    if (alive && !moved) {
      fprintf(stderr, "cuda_on_host: threads of a block wait for each other forever\n");
      abort();
    }
  }
}

}  // namespace

void wait_for_block() { wait(Fiber::kWaitsForBlock); }
void wait_for_warp() { wait(Fiber::kWaitsForWarp); }

Slot& slot_of_lane(int lane) {
  return block.slots[threadIdx.x / kWarp * kWarp + lane];
}

void run_kernel(dim3 blocks, dim3 threads, void (*body)(void*), void* arguments) {
  block.body = body;
  block.arguments = arguments;
  block.fibers.resize(threads.x);
  block.slots.resize(threads.x);
  gridDim = blocks;
  blockDim = threads;
  for (unsigned y = 0; y < blocks.y; ++y) {
    for (unsigned x = 0; x < blocks.x; ++x) {
      for (unsigned t = 0; t < threads.x; ++t) {
        Fiber& fiber = block.fibers[t];
        fiber.state = Fiber::kRuns;
        if (!fiber.stack) {
          fiber.stack.reset(new char[kStack]);
        }
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
      }
      blockIdx = dim3(x, y);
      run_block();
    }
  }
}

}  // namespace cuda_on_host
