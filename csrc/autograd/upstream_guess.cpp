#include "autograd/upstream_guess.h"

#include <ATen/ops/empty.h>
#include <c10/util/bit_cast.h>
#include <pthread.h>

#include <algorithm>
#include <mutex>

namespace softreg {
namespace {

// Gradients that may wait for a backward pass before no more are computed early; threads that
// record losses at the same time may each add one.
constexpr size_t kMostWaiting = 2;
constexpr int kWrong = 0, kRight = 1;
constexpr int kMissAdds = 2, kMostDistrust = 12, kLongestPause = 64;

// In passes. One miss may be the first of many alike.
int pause_after(int distrust) {
  return distrust <= kMissAdds ? 0 : std::min(1 << distrust / 2, kLongestPause);
}

// Of all guesses: backward passes run in threads of their own. A process that forks holds it, for
// in its child nobody else would let go of it. Never destroyed: threads may outlive statics.
std::mutex& mutex() {
  static std::mutex& of_all = *[] {
    pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); }, [] { mutex().unlock(); });
    return new std::mutex;
  }();
  return of_all;
}

}  // namespace

std::optional<double> UpstreamGuess::upstream() {
  const std::lock_guard<std::mutex> lock(mutex());
  learn();
  if (pause_ > 0) {
    --pause_;
    return std::nullopt;
  }
  if (waiting_.size() >= kMostWaiting) {
    return std::nullopt;
  }
  if (distrust_ > 0) {  // one at a time, whose report ends the pause
    pause_ = kLongestPause;
  }
  return upstream_;
}

void UpstreamGuess::add_waiting(const at::Tensor& gradient) {
  const std::lock_guard<std::mutex> lock(mutex());
  waiting_.emplace_back(gradient.getIntrusivePtr());
}

void UpstreamGuess::remove_waiting(const at::Tensor& taken) {
  const std::lock_guard<std::mutex> lock(mutex());
  const auto waits_no_more = [&](const Waiting& gradient) {
    return gradient.expired() || gradient._unsafe_get_target() == taken.unsafeGetTensorImpl();
  };
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), waits_no_more), waiting_.end());
}

void UpstreamGuess::was_wrong() {
  const std::lock_guard<std::mutex> lock(mutex());
  add_miss();
}

void UpstreamGuess::came(double upstream, bool was_right) {
  const std::lock_guard<std::mutex> lock(mutex());
  was_right ? learn_right() : learn_wrong(upstream);
}

const at::Tensor& UpstreamGuess::report() {
  const std::lock_guard<std::mutex> lock(mutex());
  if (!report_.defined()) {
    const bool is_far = device_ != c10::kCPU;
    report_ = at::empty({2}, at::TensorOptions(at::kDouble).pinned_memory(is_far));
    taken(kWrong);
    taken(kRight);
  }
  return report_;
}

// What has been reported since this was asked last.
std::optional<double> UpstreamGuess::taken(int index) {
  constexpr int64_t kNothing = 0x7ff8'0000'5055'4e45;  // a NaN that no arithmetic makes
  auto nothing = c10::bit_cast<double>(kNothing), reported = nothing;
  __atomic_exchange(report_.mutable_data_ptr<double>() + index, &nothing, &reported,
                    __ATOMIC_RELAXED);
  return c10::bit_cast<int64_t>(reported) == kNothing ? std::nullopt : std::make_optional(reported);
}

void UpstreamGuess::learn() {
  if (!report_.defined()) {
    return;
  }
  const auto wrong = taken(kWrong), right = taken(kRight);
  if (wrong) {
    learn_wrong(*wrong);
  } else if (right) {
    learn_right();
  }
}

void UpstreamGuess::learn_wrong(double upstream) {
  add_miss();
  if (upstream != 0 && upstream == upstream) {  // 0 has two signs
    upstream_ = upstream;
  }
}

void UpstreamGuess::learn_right() {
  distrust_ = std::max(distrust_ - 1, 0);
  pause_ = pause_after(distrust_);
}

void UpstreamGuess::add_miss() {
  distrust_ = std::min(distrust_ + kMissAdds, kMostDistrust);
  pause_ = pause_after(distrust_);
}

}  // namespace softreg
