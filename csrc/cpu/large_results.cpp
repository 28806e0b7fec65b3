#include "cpu/large_results.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

namespace softreg {

#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE)
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
// Below, malloc keeps memory by itself.
constexpr size_t kLarge = 2 * kHugePage;

struct Mapping {
  void* data = nullptr;
  size_t bytes = 0;

  bool serves(size_t wanted) const { return bytes >= wanted && bytes / 2 <= wanted; }
};

void unmap(Mapping mapping) {
  if (mapping.data) {
    munmap(mapping.data, mapping.bytes);
  }
}

// Empty where the system has no more.
Mapping map(size_t bytes) {
  constexpr size_t kPage = 65536;  // the largest that Linux has: what is unmapped begins at one
  bytes = (bytes + kPage - 1) / kPage * kPage;
  void* mapped =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return {};
  }
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  unmap({before > 0 ? begin : nullptr, before});
  unmap({begin + before + bytes, kHugePage - before});
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return {begin + before, bytes};
}

// The last results that were freed: two, for logits and a target may both want a gradient. Nobody
// ever waits for it: who finds it in use does without.
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
    if (madvise(mapping.data, mapping.bytes, MADV_FREE) == 0) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        std::swap(mapping, newest_first_[0]);
        if (mapping.data) {  // else the second is as new as it was
          std::swap(mapping, newest_first_[1]);
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
  Mapping newest_first_[2];
};

Kept& kept() {
  static Kept& the_one = *new Kept;  // never destroyed: tensors may outlive the library's statics
  return the_one;
}

void free_result(void* context) {
  Mapping* const mapping = static_cast<Mapping*>(context);
  kept().put(*mapping);
  delete mapping;
}

}  // namespace

at::Tensor on_kept_memory(at::Tensor fresh) {
  const size_t bytes = fresh.storage().nbytes();
  if (bytes < kLarge) {
    return fresh;
  }
  Mapping mapping = kept().take(bytes);
  if (!mapping.data) {
    mapping = map(bytes);
  }
  if (mapping.data) {
    fresh.storage().set_data_ptr_noswap(
        {mapping.data, new Mapping(mapping), free_result, fresh.device()});
  }
  return fresh;
}

int64_t release_memory() { return kept().release(); }

#else

at::Tensor on_kept_memory(at::Tensor fresh) { return fresh; }

int64_t release_memory() { return 0; }

#endif

}  // namespace softreg
