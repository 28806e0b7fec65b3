#include "float_products.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <atomic>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace softreg {
namespace {

// Below, in classes or features, what oneDNN does before and after is not worth it.
constexpr int64_t kLeast = 64;

std::atomic<std::optional<bool>> is_onednn_chosen{};

// AMD's with vector units of 512 bits, Zen 5 on: MKL has its code for AVX2 run there.
bool is_mkl_slow() {
#ifdef __x86_64__
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) {
    return false;
  }
  __get_cpuid(1, &a, &b, &c, &d);
  const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
  return family >= 0x1a;
#else
  return false;
#endif
}

// What inductor multiplies by; none where this torch has no such op.
const std::optional<c10::OperatorHandle>& onednn_op() {
  static const auto found = [] {
    auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return op && op->schema().arguments().size() == 6 ? op : std::nullopt;
  }();
  return found;
}

at::Tensor onednn_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias) {
  const bool is_dense = b.is_contiguous() || b.t().is_contiguous();  // else it takes item by item
  const c10::IValue no_algorithm;
  torch::jit::Stack stack{a,
                          is_dense ? b : b.contiguous(),
                          bias.defined() ? c10::IValue(bias) : c10::IValue(),
                          "none",
                          c10::List<std::optional<at::Scalar>>(),
                          no_algorithm};
  onednn_op()->callBoxed(stack);
  return std::move(stack.front()).toTensor();
}

}  // namespace

Library fastest_library(int64_t classes, int64_t features, const at::Tensor& factor) {
  static const bool is_faster = at::hasMKL() && is_mkl_slow();
  const bool is_taken =
      is_onednn_chosen.load().value_or(is_faster && classes >= kLeast && features >= kLeast);
  const bool is_float = factor.is_cpu() && factor.scalar_type() == at::kFloat;
  const bool is_there = at::globalContext().userEnabledMkldnn() && onednn_op();
  return is_taken && is_float && is_there ? Library::kOnednn : Library::kAten;
}

std::optional<bool> set_onednn(std::optional<bool> is_taken) {
  return is_onednn_chosen.exchange(is_taken);
}

at::Tensor product(Library library, const at::Tensor& a, const at::Tensor& b,
                   const at::Tensor& bias) {
  if (library == Library::kOnednn) {
    return onednn_product(a, b, bias);
  }
  return bias.defined() ? at::addmm(bias, a, b.t()) : at::mm(a, b.t());
}

void product_out(at::Tensor output, Library library, const at::Tensor& a, const at::Tensor& b,
                 const at::Tensor& bias) {
  if (library == Library::kOnednn) {
    output.copy_(onednn_product(a, b, bias));
  } else if (bias.defined()) {
    at::addmm_out(output, bias, a, b.t());
  } else {
    at::mm_out(output, a, b.t());
  }
}

}  // namespace softreg
