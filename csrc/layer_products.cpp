#include "layer_products.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "parts.h"

namespace softreg {
namespace {

// Classes that a thread takes at a time, and their features: as much of the weight as its caches
// hold.
constexpr int64_t kMostClasses = 512;
constexpr int64_t kBlockItems = kMostClasses * 768;

// Of what is computed on the way to a result; on a CPU the caches hold it.
int64_t temporary_bytes(const at::Tensor& input) { return int64_t(input.is_cpu() ? 2 : 64) << 20; }

#ifdef __x86_64__
bool has_avx512_fp16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);
}
#endif

// What is multiplied in its place.
at::Tensor factor(const at::Tensor& x) {
  return x.defined() && has_slow_products(x) ? x.to(at::kFloat) : x;
}

struct Classes {
  int64_t first;
  int64_t count;

  at::Tensor of_rows(const at::Tensor& x) const {
    return x.defined() ? x.narrow(0, first, count) : x;
  }
  at::Tensor of_columns(const at::Tensor& x) const { return x.narrow(1, first, count); }
};

// Calls body(some) for so many classes at a time as temporary memory is for, `bytes_of_class` for
// each.
template <typename Body>
void for_each_temporary(const at::Tensor& input, int64_t classes, int64_t bytes_of_class,
                        const Body& body) {
  const int64_t fitting = temporary_bytes(input) / std::max<int64_t>(1, bytes_of_class);
  const int64_t most = std::max<int64_t>(1, fitting);
  for (int64_t first = 0; first < classes; first += most) {
    body(Classes{first, std::min(most, classes - first)});
  }
}

void product(at::Tensor output, const at::Tensor& input, const at::Tensor& weight,
             const at::Tensor& bias) {
  if (bias.defined()) {
    at::addmm_out(output, bias, input, weight.t());
  } else {
    at::mm_out(output, input, weight.t());
  }
}

// Each thread its own classes, a block at a time. MKL's own way takes up to twice as long for a
// hundred rows of input as for a thousand.
void product_in_blocks(at::Tensor output, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& bias) {
  const int64_t classes = weight.size(0);
  const int64_t of_cache = kBlockItems / std::max<int64_t>(1, weight.size(1));
  const int64_t most = std::clamp<int64_t>(of_cache, 64, kMostClasses);
  const int64_t blocks = rounded_up(parts_of(classes, most), at::get_num_threads());
  const int64_t in_block = std::max<int64_t>(1, parts_of(classes, std::max<int64_t>(1, blocks)));
  at::parallel_for(0, parts_of(classes, in_block), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // each thread has its own
    for (int64_t i = begin; i < end; ++i) {
      const Classes block{i * in_block, std::min(in_block, classes - i * in_block)};
      product(block.of_columns(output), input, block.of_rows(weight), block.of_rows(bias));
    }
  });
}

}  // namespace

bool has_slow_products(const at::Tensor& input) {
#ifdef __x86_64__
  static const bool has_avx512 = at::get_cpu_capability() == "AVX512";
  static const bool has_float16 = has_avx512 && has_avx512_fp16();
  const at::ScalarType type = input.scalar_type();
  return input.is_cpu() &&
         ((type == at::kBFloat16 && !has_avx512) || (type == at::kHalf && !has_float16));
#else
  return false;
#endif
}

at::Tensor layer_factor(const at::Tensor& grad_output, const at::Tensor& input) {
  return has_slow_products(input) ? grad_output : grad_output.to(input.scalar_type());
}

void layer_output(at::Tensor& output, const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& bias) {
  if (input.is_cpu() && !at::isReducedFloatingType(input.scalar_type())) {
    product_in_blocks(output, input, weight, bias);
    return;
  }
  const bool is_slow = has_slow_products(input);
  if (!is_slow && output.scalar_type() == input.scalar_type()) {
    product(output, input, weight, bias);
    return;
  }
  const at::Tensor input_factor = factor(input);
  const int64_t item_bytes = input_factor.element_size();
  const int64_t bytes_of_class = (input.size(0) + (is_slow ? input.size(1) : 0)) * item_bytes;
  for_each_temporary(input, weight.size(0), bytes_of_class, [&](const Classes& classes) {
    const at::Tensor of_classes = at::empty({input.size(0), classes.count}, input_factor.options());
    (is_slow ? product_in_blocks : product)(
        of_classes, input_factor, factor(classes.of_rows(weight)), factor(classes.of_rows(bias)));
    classes.of_columns(output).copy_(of_classes);
  });
}

void layer_grad_input(at::Tensor& grad_input, const at::Tensor& grad_output,
                      const at::Tensor& weight) {
  if (!has_slow_products(weight)) {
    at::mm_out(grad_input, grad_output, weight);
    return;
  }
  at::Tensor sum = at::zeros(grad_input.sizes(), grad_input.options().dtype(at::kFloat));
  const int64_t bytes_of_class = (weight.size(1) + grad_output.size(0)) * int64_t(sizeof(float));
  for_each_temporary(weight, weight.size(0), bytes_of_class, [&](const Classes& classes) {
    sum.addmm_(factor(classes.of_columns(grad_output)), factor(classes.of_rows(weight)));
  });
  grad_input.copy_(sum);
}

void layer_grad_weight(at::Tensor& grad_weight, const at::Tensor& grad_output,
                       const at::Tensor& input, bool is_first) {
  const bool is_slow = has_slow_products(input);
  if (!is_slow && grad_weight.scalar_type() == input.scalar_type()) {
    grad_weight.addmm_(grad_output.t(), input, /*beta=*/is_first ? 0 : 1);
    return;
  }
  const at::Tensor input_factor = factor(input);
  const int64_t item_bytes = input_factor.element_size();
  const int64_t bytes_of_class = (input.size(1) + (is_slow ? input.size(0) : 0)) * item_bytes;
  for_each_temporary(input, grad_weight.size(0), bytes_of_class, [&](const Classes& classes) {
    const at::Tensor of_classes = at::mm(factor(classes.of_columns(grad_output)).t(), input_factor);
    at::Tensor sum = classes.of_rows(grad_weight);
    is_first ? sum.copy_(of_classes) : sum.add_(of_classes);
  });
}

}  // namespace softreg
