#include "autograd/early_gradient.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "ops.h"
#include "row_matrix.h"

namespace softreg {
namespace {

// Gradients that may wait for a backward pass before no more are computed early; threads that
// record losses at the same time may each add one.
constexpr size_t kMostWaiting = 2;
constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

// What is expected on one type of device. Process-wide: backward passes run in threads of their
// own.
class Guess {
 public:
  explicit Guess(c10::DeviceType device) : device_(device) {}

  std::optional<double> upstream() {
    const std::lock_guard<std::mutex> lock(mutex_);
    learn();
    if (passes_to_skip_ > 0) {
      --passes_to_skip_;
      return std::nullopt;
    }
    return waiting_.size() < kMostWaiting ? std::make_optional(upstream_) : std::nullopt;
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

  // Where a device writes what came, when it gets there: the host never waits for it.
  const at::Tensor& came() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!came_.defined()) {
      const bool is_far = device_ != c10::kCPU;
      came_ = at::empty({}, at::TensorOptions(at::kDouble).pinned_memory(is_far));
      *came_.mutable_data_ptr<double>() = kNothing;
    }
    return came_;
  }

 private:
  using Waiting = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  void learn() {
    if (!came_.defined()) {
      return;
    }
    double came, nothing = kNothing;
    __atomic_exchange(came_.mutable_data_ptr<double>(), &nothing, &came, __ATOMIC_RELAXED);
    if (std::isnan(came)) {
      return;
    }
    if (came == upstream_) {
      misses_ = 0;
      return;
    }
    add_miss();
    if (came != 0) {  // which has two signs
      upstream_ = came;
    }
  }

  // One may be the first of many alike. After two, 4 passes go without a guess, then 8, up to 64.
  void add_miss() {
    constexpr int kMost = 10;
    misses_ = misses_ < kMost ? misses_ + 1 : kMost - 1;
    passes_to_skip_ = misses_ % 2 == 0 ? 2 << misses_ / 2 : 0;
  }

  c10::DeviceType device_;
  std::mutex mutex_;
  at::Tensor came_;
  double upstream_ = 1;
  int misses_ = 0;  // since a guess was right
  int passes_to_skip_ = 0;
  std::vector<Waiting> waiting_;  // those freed unused count until a backward pass comes
};

// What a type of device asks for.
struct Device {
  c10::DispatchKeySet plain;  // of tensors that are memory there and nothing else
  int64_t fewest_bytes;       // of the logits
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
                                   int64_t(256) << 10, Guess(c10::kCPU)};
  static Device& cuda = *new Device{keys(Key::CUDA, Key::AutogradCUDA, Key::AutocastCUDA),
                                    int64_t(32) << 20, Guess(c10::kCUDA)};
  switch (logits.device().type()) {
    case c10::kCPU:
      return &cpu;
    case c10::kCUDA:
      return &cuda;
    default:
      return nullptr;
  }
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

bool note_backward(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
                   const at::Tensor& early_gradient) {
  Device* device = device_that_gains(args);
  if (!device || !device->plain.isSupersetOf(grad.grad_loss.key_set())) {
    return false;
  }
  device->guess.remove_waiting(early_gradient);
  if (!early_gradient.defined()) {
    return false;
  }
  const bool is_one_number = is_expanded_scalar(grad.grad_loss);
  if (!is_one_number) {
    device->guess.was_wrong();
  }
  return is_one_number;
}

void correct(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
             const at::Tensor& early_gradient, double upstream) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  cross_entropy_correction(args, grad, early_gradient, upstream,
                           this_device(args.logits)->guess.came());
}

}  // namespace softreg
