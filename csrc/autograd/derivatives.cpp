#include "autograd/derivatives.h"

#include <ATen/FuncTorchTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

namespace softreg {

bool needs_composite(const at::Tensor& x) {
  if (x._fw_grad(/*level=*/0).defined()) {
    return true;
  }
  const auto& functorch = at::functorch::functorchTLSAccessor();
  if (!functorch) {
    return false;
  }
  try {
    functorch->checkSupportsCppAutogradFunction();
    return false;
  } catch (const c10::Error&) {  // functorch has no other way to say that a transform is running
    return true;
  }
}

bool needs_grad(const at::Tensor& x) { return at::GradMode::is_enabled() && x.requires_grad(); }

bool is_ordinary(const at::Tensor& x) {
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet cpu{Key::CPU, Key::AutogradCPU, Key::ADInplaceOrView,
                                    Key::AutocastCPU};
  constexpr c10::DispatchKeySet cuda{Key::CUDA, Key::AutogradCUDA, Key::ADInplaceOrView,
                                     Key::AutocastCUDA};
  return cpu.isSupersetOf(x.key_set()) || cuda.isSupersetOf(x.key_set());
}

bool has_modes() { return c10::impl::TorchDispatchModeTLS::any_modes_set(); }

bool is_traced() {
  using Mode = c10::impl::TorchDispatchModeKey;
  const auto& get_mode = c10::impl::TorchDispatchModeTLS::get_mode;
  return get_mode(Mode::PROXY).has_value() || get_mode(Mode::FUNCTIONAL).has_value();
}

bool packs_what_is_saved() { return at::SavedTensorDefaultHooks::get_hooks().has_value(); }

void save(torch::autograd::AutogradContext* ctx, const CrossEntropyOptions& options) {
  ctx->saved_data["reduction"] = static_cast<int64_t>(options.reduction);
  ctx->saved_data["ignore_index"] = options.ignore_index;
  ctx->saved_data["label_smoothing"] = options.label_smoothing;
  ctx->saved_data["z_loss"] = options.z_loss;
  ctx->saved_data["logit_scale"] = options.logit_scale;
  ctx->saved_data["softcap"] = options.softcap;
}

at::Tensor unpacked_double(const at::Tensor& saved) {
  return saved.scalar_type() == at::kDouble ? saved : saved.to(at::kDouble);
}

at::Tensor take(torch::autograd::AutogradContext* ctx, const char* name) {
  at::Tensor taken;
  const auto saved = ctx->saved_data.find(name);
  if (saved != ctx->saved_data.end()) {
    taken = std::move(saved->second).toTensor();
    ctx->saved_data.erase(saved);
  }
  return taken;
}

CrossEntropyOptions saved_options(torch::autograd::AutogradContext* ctx) {
  return {static_cast<Reduction>(ctx->saved_data["reduction"].toInt()),
          ctx->saved_data["ignore_index"].toSymInt(),
          ctx->saved_data["label_smoothing"].toDouble(),
          ctx->saved_data["z_loss"].toDouble(),
          ctx->saved_data["logit_scale"].toDouble(),
          ctx->saved_data["softcap"].toDouble()};
}

}  // namespace softreg
