#include "autograd/early_gradient.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "row_matrix.h"

namespace softreg {
namespace {

// Of the logits; with fewer, most of a step is not the kernels'.
constexpr int64_t kFewestBytes = int64_t(256) << 10;
// Gradients that may wait for a backward pass before no more are computed early; threads that
// record losses at the same time may each add one.
constexpr size_t kMostWaiting = 2;

// Process-wide: backward passes run in threads of their own.
class Guess {
 public:
  std::optional<double> expected() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return repeats_ && waiting_.size() < kMostWaiting ? std::make_optional(last_) : std::nullopt;
  }

  void add_waiting(const at::Tensor& gradient) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.emplace_back(gradient.getIntrusivePtr());
  }

  void learn(double upstream, const at::Tensor& taken) {
    const std::lock_guard<std::mutex> lock(mutex_);
    repeats_ = upstream == last_ && upstream != 0;  // 0 has two signs
    last_ = upstream;
    const auto waits_no_more = [&](const Waiting& gradient) {
      return gradient.expired() || gradient._unsafe_get_target() == taken.unsafeGetTensorImpl();
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), waits_no_more), waiting_.end());
  }

 private:
  using Waiting = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  mutable std::mutex mutex_;
  double last_ = 1;
  bool repeats_ = true;
  std::vector<Waiting> waiting_;  // those freed unused count until a backward pass comes
};

Guess& guess() {
  static Guess& the_one = *new Guess;  // never destroyed: threads may outlive the library's statics
  return the_one;
}

// Memory on the CPU and nothing else: no subclass, no transform.
bool is_plain(const at::Tensor& x) {
  constexpr c10::DispatchKeySet plain{c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                      c10::DispatchKey::ADInplaceOrView,
                                      c10::DispatchKey::AutocastCPU};
  return plain.isSupersetOf(x.key_set());
}

bool gains(const CrossEntropyArgs& args) {
  return is_plain(args.logits) && static_cast<int64_t>(args.logits.nbytes()) >= kFewestBytes &&
         !args.return_lse && is_plain(args.target) &&
         (!args.has_weight() || is_plain(*args.weight)) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

}  // namespace

std::optional<double> expected_upstream(const CrossEntropyArgs& args) {
  // Who packs what is saved, to offload it or to compute it anew, expects it to be little.
  if (!gains(args) || at::SavedTensorDefaultHooks::get_hooks().has_value()) {
    return std::nullopt;
  }
  return guess().expected();
}

void note_waiting(const at::Tensor& early_gradient) { guess().add_waiting(early_gradient); }

std::optional<double> upstream_that_came(const CrossEntropyArgs& args, const at::Tensor& grad_loss,
                                         const at::Tensor& early_gradient) {
  if (!gains(args) || !is_plain(grad_loss)) {
    return std::nullopt;
  }
  // One for each row is nothing to expect: NaN equals nothing.
  const double upstream = is_expanded_scalar(grad_loss)
                              ? at::_local_scalar_dense(grad_loss.as_strided({}, {})).toDouble()
                              : std::numeric_limits<double>::quiet_NaN();
  guess().learn(upstream, early_gradient);
  return upstream;
}

}  // namespace softreg
