#include "autograd/early_gradient.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include "autograd/derivatives.h"
#include "autograd/upstream_guess.h"
#include "ops.h"
#include "row_matrix.h"

namespace softreg {
namespace {

// What a type of device asks for.
struct Device {
  int64_t fewest_bytes;  // of the logits
  bool in_place_only;    // what would have to be copied to be corrected is not worth it
  UpstreamGuess guess;
};

Device* this_device(const at::Tensor& logits) {
  // Never destroyed: threads may outlive the library's statics. With fewer bytes most of a step is
  // not the kernels', or on a GPU, the logits are still in its cache when the backward pass comes.
  static Device& cpu =
      *new Device{int64_t(256) << 10, /*in_place_only=*/false, UpstreamGuess(c10::kCPU)};
  static Device& cuda =
      *new Device{int64_t(32) << 20, /*in_place_only=*/true, UpstreamGuess(c10::kCUDA)};
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
  const bool gains = device && is_ordinary(args.logits) &&
                     static_cast<int64_t>(args.logits.nbytes()) >= device->fewest_bytes &&
                     !args.return_lse && is_ordinary(args.target) &&
                     (!args.has_weight() || is_ordinary(*args.weight)) &&
                     (!device->in_place_only || is_in_place(args)) && !has_modes();
  return gains ? device : nullptr;
}

}  // namespace

std::optional<double> expected_upstream(const CrossEntropyArgs& args) {
  Device* device = device_that_gains(args);
  return device && !packs_what_is_saved() ? device->guess.upstream() : std::nullopt;
}

void note_waiting(const CrossEntropyArgs& args, const at::Tensor& early_gradient) {
  this_device(args.logits)->guess.add_waiting(early_gradient);
}

bool correct(const CrossEntropyArgs& args, const CrossEntropyGradArgs& grad,
             const at::Tensor& early_gradient, double upstream) {
  Device* device = device_that_gains(args);
  if (!device || !is_ordinary(grad.grad_loss)) {
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
