// Matrix products as ATen has them, or by the other library in it where that one is faster.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace softreg {

// kAten: at::mm's, which is MKL for float32 on x86. kOnednn: half the time on some processors.
enum class Library { kAten, kOnednn };

// Of a layer's products; `factor`: of the type that they are computed in.
Library fastest_library(int64_t classes, int64_t features, const at::Tensor& factor);
// For tests, on any processor and of any size; none: as before. Returns what was set.
std::optional<bool> set_onednn(std::optional<bool> is_taken);

// a b^T + bias, where there is a bias.
at::Tensor product(Library library, const at::Tensor& a, const at::Tensor& b,
                   const at::Tensor& bias = {});
void product_out(at::Tensor output, Library library, const at::Tensor& a, const at::Tensor& b,
                 const at::Tensor& bias = {});

}  // namespace softreg
