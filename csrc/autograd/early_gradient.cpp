#include "autograd/early_gradient.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/bit_cast.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "ops.h"
#include "row_matrix.h"

namespace softreg {
namespace {

// Gradients that may wait for a backward pass before no more are computed early; threads that
// record losses at the same time may each add one.
constexpr size_t kMostWaiting = 2;

// What is expected on one type of device. Process-wide: backward passes run in threads of their
// own. Devices report late whether a guess was right, so that those in flight are guesses too.
class Guess {
 public:
  explicit Guess(c10::DeviceType device) : device_(device) {}

  std::optional<double> upstream() {
    const std::lock_guard<std::mutex> lock(mutex_);
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

  void add_waiting(const at::Tensor& gradient) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.emplace_back(gradient.getIntrusivePtr());
  }

  void remove_waiting(const at::Tensor& taken) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto waits_no_more = [&](const Waiting& gradient) {
      return gradient.expired() || gradient._unsafe_get_target() == taken.unsafeGetTensorImpl();
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), waits_no_more), waiting_.end());
  }

  void was_wrong() {
    const std::lock_guard<std::mutex> lock(mutex_);
    add_miss();
  }

  // For the correction to write to, when a device gets there: the host never waits for it.
  const at::Tensor& report() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!report_.defined()) {
      const bool is_far = device_ != c10::kCPU;
      report_ = at::empty({2}, at::TensorOptions(at::kDouble).pinned_memory(is_far));
      taken(kWrong);
      taken(kRight);
    }
    return report_;
  }

 private:
  using Waiting = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;
  static constexpr int kWrong = 0, kRight = 1;
  static constexpr int kMissAdds = 2, kMostDistrust = 12, kLongestPause = 64;

  // What has been reported since this was asked last.
  std::optional<double> taken(int index) {
    constexpr int64_t kNothing = 0x7ff8'0000'5055'4e45;  // a NaN that no arithmetic makes
    auto* reported = reinterpret_cast<int64_t*>(report_.mutable_data_ptr<double>()) + index;
    const int64_t bits = __atomic_exchange_n(reported, kNothing, __ATOMIC_RELAXED);
    return bits == kNothing ? std::nullopt : std::make_optional(c10::bit_cast<double>(bits));
  }

  void learn() {
    if (!report_.defined()) {
      return;
    }
    const auto wrong = taken(kWrong), right = taken(kRight);
    if (wrong) {
      add_miss();
      if (*wrong != 0 && *wrong == *wrong) {  // 0 has two signs
        upstream_ = *wrong;
      }
    } else if (right) {
      distrust_ = std::max(distrust_ - 1, 0);
      pause_ = pause_after(distrust_);
    }
  }

  void add_miss() {
    distrust_ = std::min(distrust_ + kMissAdds, kMostDistrust);
    pause_ = pause_after(distrust_);
  }

  // In passes. One miss may be the first of many alike.
  static int pause_after(int distrust) {
    return distrust <= kMissAdds ? 0 : std::min(1 << distrust / 2, kLongestPause);
  }

  c10::DeviceType device_;
  std::mutex mutex_;
  at::Tensor report_;
  double upstream_ = 1;
  int distrust_ = 0;
  int pause_ = 0;
  std::vector<Waiting> waiting_;  // those freed unused count until a backward pass comes
};

// What a type of device asks for.
struct Device {
  c10::DispatchKeySet plain;  // of tensors that are memory there and nothing else
  int64_t fewest_bytes;       // of the logits
  bool in_place_only;         // what would have to be copied to be corrected is not worth it
  Guess guess;
};

Device* this_device(const at::Tensor& logits) {
  using Key = c10::DispatchKey;
  const auto keys = [](Key device, Key autograd, Key autocast) {
    return c10::DispatchKeySet{device, autograd, Key::ADInplaceOrView, autocast};
  };
  // Never destroyed: threads may outlive the library's statics. With fewer bytes most of a step is
  // not the kernels', or on a GPU, the logits are still in its cache when the backward pass comes.
  static Device& cpu = *new Device{keys(Key::CPU, Key::AutogradCPU, Key::AutocastCPU),
                                   int64_t(256) << 10, /*in_place_only=*/false, Guess(c10::kCPU)};
  static Device& cuda = *new Device{keys(Key::CUDA, Key::AutogradCUDA, Key::AutocastCUDA),
                                    int64_t(32) << 20, /*in_place_only=*/true, Guess(c10::kCUDA)};
  switch (logits.device().type()) {
    case c10::kCPU:
      return &cpu;
    case c10::kCUDA:
      return &cuda;
    default:
      return nullptr;
  }
}

bool is_in_place(const CrossEntropyArgs& args) {
  return args.result_type() == args.logits.scalar_type() && row_strides(args.logits).has_value();
}

// Null where nothing is gained.
Device* device_that_gains(const CrossEntropyArgs& args) {
  Device* device = this_device(args.logits);
  const auto is_plain = [&](const at::Tensor& x) {
    return device->plain.isSupersetOf(x.key_set());
  };
  const bool gains = device && is_plain(args.logits) &&
                     static_cast<int64_t>(args.logits.nbytes()) >= device->fewest_bytes &&
                     !args.return_lse && is_plain(args.target) &&
                     (!args.has_weight() || is_plain(*args.weight)) &&
                     (!device->in_place_only || is_in_place(args)) &&
                     !c10::impl::TorchDispatchModeTLS::any_modes_set();
  return gains ? device : nullptr;
}

}  // namespace

std::optional<double> expected_upstream(const CrossEntropyArgs& args) {
  Device* device = device_that_gains(args);
  // Who packs what is saved, to offload it or to compute it anew, expects it to be little.
  if (!device || at::SavedTensorDefaultHooks::get_hooks().has_value()) {
    return std::nullopt;
  }
  return device->guess.upstream();
}

void note_waiting(const CrossEntropyArgs& args, const at::Tensor& early_gradient) {
  this_device(args.logits)->guess.add_waiting(early_gradient);
}

bool correct(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
             const at::Tensor& early_gradient, double upstream) {
  Device* device = device_that_gains(args);
  if (!device || !device->plain.isSupersetOf(grad.grad_loss.key_set())) {
    return false;
  }
  device->guess.remove_waiting(early_gradient);
  if (!early_gradient.defined()) {
    return false;
  }
  if (!is_expanded_scalar(grad.grad_loss)) {
    device->guess.was_wrong();
    return false;
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  cross_entropy_correction(args, grad, early_gradient, upstream, device->guess.report());
  return true;
}

}  // namespace softreg
