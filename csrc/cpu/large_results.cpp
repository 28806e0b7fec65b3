#include "cpu/large_results.h"

#include <c10/core/CPUAllocator.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <memory>
#include <mutex>
#include <utility>

#include "parts.h"

namespace softreg {

#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE)
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
// Below, malloc keeps memory by itself, as a rule.
constexpr size_t kKept = size_t(1) << 18;
// From here on in whole huge pages.
constexpr size_t kLarge = 2 * kHugePage;
// From here on what is kept is the system's to take. To tell it interrupts the other cores, once a
// huge page, and small pages are faulted in again: on two virtual cores, a fifth of a pass over
// 16 MB.
constexpr size_t kReclaimed = 16 * kHugePage;

struct Mapping {
  void* data = nullptr;
  size_t bytes = 0;

  bool is_large() const { return bytes >= kLarge; }
  bool serves(size_t wanted) const { return bytes >= wanted && bytes / 2 <= wanted; }
};

void unmap(Mapping mapping) {
  if (mapping.data) {
    munmap(mapping.data, mapping.bytes);
  }
}

// Empty where the system has no more.
Mapping map(size_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return mapped == MAP_FAILED ? Mapping() : Mapping{mapped, bytes};
}

Mapping map_huge_pages(size_t bytes) {
  bytes = rounded_up(bytes, kHugePage);
  const Mapping mapped = map(bytes + kHugePage);
  if (!mapped.data) {
    return {};
  }
  char* const begin = static_cast<char*>(mapped.data);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  unmap({before > 0 ? begin : nullptr, before});
  unmap({begin + before + bytes, kHugePage - before});
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return {begin + before, bytes};
}

// The last results that were freed. Nobody ever waits for it: who finds it in use does without.
template <int kMost>
class Kept {
 public:
  Mapping take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      for (Mapping& mapping : newest_first_) {
        if (mapping.serves(bytes)) {
          return std::exchange(mapping, {});
        }
      }
    }
    return {};
  }

  void put(Mapping mapping) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      for (Mapping& older : newest_first_) {  // each moves on, up to a place that is free
        std::swap(mapping, older);
        if (!mapping.data) {
          return;
        }
      }
    }
    unmap(mapping);
  }

  int64_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t bytes = 0;
    for (Mapping& mapping : newest_first_) {
      bytes += static_cast<int64_t>(mapping.bytes);
      unmap(std::exchange(mapping, {}));
    }
    return bytes;
  }

 private:
  std::mutex mutex_;
  Mapping newest_first_[kMost];
};

// Of large ones four: a linear layer has logits, their gradients' sum in float32, and gradients of
// its input and its weight.
struct AllKept {
  Kept<4> small;
  Kept<4> large;
};

AllKept& kept() {
  static AllKept& all = *new AllKept;  // never destroyed: tensors may outlive the library's statics
  return all;
}

void free_result(void* context) {
  const std::unique_ptr<Mapping> mapping(static_cast<Mapping*>(context));
  c10::profiledCPUMemoryReporter().Delete(mapping->data);
  if (!mapping->is_large()) {
    kept().small.put(*mapping);
  } else if (mapping->bytes < kReclaimed ||
             madvise(mapping->data, mapping->bytes, MADV_FREE) == 0) {
    kept().large.put(*mapping);
  } else {
    unmap(*mapping);
  }
}

}  // namespace

at::Tensor on_kept_memory(at::Tensor fresh) {
  const size_t bytes = fresh.is_cpu() ? fresh.storage().nbytes() : 0;
  if (bytes < kKept) {
    return fresh;
  }
  const bool is_large = bytes >= kLarge;
  Mapping mapping = is_large ? kept().large.take(bytes) : kept().small.take(bytes);
  if (!mapping.data) {
    mapping = is_large ? map_huge_pages(bytes) : map(bytes);
  }
  if (mapping.data) {
    c10::profiledCPUMemoryReporter().New(mapping.data, bytes);  // as of any tensor
    fresh.storage().set_data_ptr_noswap(
        {mapping.data, new Mapping(mapping), free_result, fresh.device()});
  }
  return fresh;
}

int64_t release_memory() { return kept().small.release() + kept().large.release(); }

#else

at::Tensor on_kept_memory(at::Tensor fresh) { return fresh; }

int64_t release_memory() { return 0; }

#endif

}  // namespace softreg
