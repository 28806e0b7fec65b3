#include "layer_products.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "float_products.h"
#include "parts.h"

namespace softreg {
namespace {

// Classes that a thread takes at a time, at most and at least, and their features: as much of the
// weight as its caches hold.
constexpr int64_t kMostClasses = 512;
constexpr int64_t kLeastClasses = 64;
constexpr int64_t kBlockItems = kMostClasses * 768;
// What all threads hold in float32 of half types, where it is not more than the least.
constexpr int64_t kWideItems = 1 << 21;
// Of fewer rows ATen's logits are as fast, or faster.
constexpr int64_t kLeastRows = 4;
// Below, a library that is faster is not worth what stands around its products.
constexpr int64_t kLeastMultiplications = 1 << 25;
// Features that a thread takes of the input's gradient.
constexpr int64_t kLeastFeatures = 32;

#ifdef __x86_64__
bool has_avx512_fp16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);
}
#endif

bool has_slow_products(const at::Tensor& x) {
#ifdef __x86_64__
  static const bool has_avx512 = at::get_cpu_capability() == "AVX512";
  static const bool has_float16 = has_avx512 && has_avx512_fp16();
  const at::ScalarType type = x.scalar_type();
  return x.is_cpu() &&
         ((type == at::kBFloat16 && !has_avx512) || (type == at::kHalf && !has_float16));
#else
  return false;
#endif
}

// Half types on a CPU that has no instructions for them, which ATen multiplies item by item, up to
// a hundred times as slowly as float32: whether they are multiplied as float32.
bool widens_products(int64_t classes, const at::Tensor& factor) {
  return classes >= kLeastClasses && has_slow_products(factor);
}

at::Tensor widened(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat) : x; }

struct Range {
  int64_t first;
  int64_t count;

  at::Tensor of_rows(const at::Tensor& x) const {
    return x.defined() ? x.narrow(0, first, count) : x;
  }
  at::Tensor of_columns(const at::Tensor& x) const { return x.narrow(1, first, count); }
};

// Calls body(range) for parts of `n` of at most `most`, one after the other.
template <typename Body>
void for_each_part(int64_t n, int64_t most, const Body& body) {
  for (int64_t first = 0; first < n; first += most) {
    body(Range{first, std::min(most, n - first)});
  }
}

// The same in parallel, each thread as many parts as any other, unless they were fewer than
// `least`.
template <typename Body>
void for_each_part_on_threads(int64_t n, int64_t least, int64_t most, const Body& body) {
  const int64_t parts = rounded_up(std::max<int64_t>(1, parts_of(n, most)), at::get_num_threads());
  const int64_t in_part = std::max(least, parts_of(n, parts));
  at::parallel_for(0, parts_of(n, in_part), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // each thread has its own
    for (int64_t i = begin; i < end; ++i) {
      body(Range{i * in_part, std::min(in_part, n - i * in_part)});
    }
  });
}

int64_t classes_in_cache(int64_t features) {
  const int64_t fitting = kBlockItems / std::max<int64_t>(1, features);
  return std::clamp(fitting, kLeastClasses, kMostClasses);
}

// Where each thread holds `items` in float32 for each class.
int64_t classes_to_widen(int64_t items) {
  const int64_t fitting = kWideItems / at::get_num_threads() / std::max<int64_t>(1, items);
  return std::clamp(fitting, kLeastClasses, kMostClasses);
}

// Of results in half types that are to be in float32.
int64_t classes_to_round(const at::Tensor& x, int64_t items) {
  const int64_t bytes = int64_t(x.is_cpu() ? 4 : 64) << 20;
  return std::max(kLeastClasses, bytes / std::max<int64_t>(1, items * x.element_size()));
}

void put(const at::Tensor& sum, const at::Tensor& x, bool is_first) {
  is_first ? sum.copy_(x) : sum.add_(x);
}

}  // namespace

bool gains_from_products(int64_t rows, int64_t classes, int64_t features,
                         const at::Tensor& factor) {
  return widens_products(classes, factor) ||
         (fastest_library(classes, features, factor) == Library::kOnednn &&
          rows * classes * features >= kLeastMultiplications);
}

int64_t product_row_bytes(const at::Tensor& input, const at::Tensor& weight, bool float_output) {
  if (widens_products(weight.size(0), input)) {
    // The input or its gradient, and a block of the output.
    return (input.size(1) + kLeastClasses) * int64_t(sizeof(float));
  }
  if (fastest_library(weight.size(0), weight.size(1), input) == Library::kOnednn) {
    return weight.size(1) * input.element_size();  // the input's gradient, before it is copied
  }
  // The gradient as it is multiplied, and perhaps a copy that the product makes.
  return float_output ? 2 * weight.size(0) * input.element_size() : 0;
}

at::Tensor layer_factor(const at::Tensor& grad_output, const at::Tensor& weight) {
  const bool is_widened = widens_products(weight.size(0), weight);
  return is_widened ? grad_output : grad_output.to(weight.scalar_type());
}

void layer_output(at::Tensor& output, const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& bias) {
  const int64_t rows = input.size(0), classes = weight.size(0), features = weight.size(1);
  const at::ScalarType type = input.scalar_type();
  if (rows >= kLeastRows && widens_products(classes, input)) {
    const at::Tensor wide_input = widened(input);
    const Library library = fastest_library(classes, features, wide_input);
    for_each_part_on_threads(
        classes, 1, classes_to_widen(rows + features), [&](const Range& block) {
          const at::Tensor wide = product(library, wide_input, widened(block.of_rows(weight)),
                                          widened(block.of_rows(bias)));
          block.of_columns(output).copy_(output.scalar_type() == type ? wide : wide.to(type));
        });
  } else if (output.scalar_type() != type) {
    for_each_part(classes, classes_to_round(input, rows), [&](const Range& some) {
      some.of_columns(output).copy_(
          product(Library::kAten, input, some.of_rows(weight), some.of_rows(bias)));
    });
  } else if (input.is_cpu() && !at::isReducedFloatingType(type)) {
    // MKL's own way takes up to twice as long for a hundred rows as for a thousand.
    const Library library = fastest_library(classes, features, input);
    for_each_part_on_threads(classes, 1, classes_in_cache(features), [&](const Range& block) {
      product_out(block.of_columns(output), library, input, block.of_rows(weight),
                  block.of_rows(bias));
    });
  } else {
    product_out(output, Library::kAten, input, weight, bias);
  }
}

void layer_grad_input(at::Tensor& grad_input, const at::Tensor& grad_output,
                      const at::Tensor& weight) {
  const int64_t rows = grad_output.size(0), classes = weight.size(0), features = weight.size(1);
  if (!widens_products(classes, weight)) {
    const Library library = fastest_library(classes, features, weight);
    product_out(grad_input, library, grad_output, weight.t());
    return;
  }
  const int64_t most = std::max<int64_t>(1, features);
  for_each_part_on_threads(features, kLeastFeatures, most, [&](const Range& some) {
    at::Tensor sum = at::zeros({rows, some.count}, grad_input.options().dtype(at::kFloat));
    const Library library = fastest_library(classes, features, sum);
    for_each_part(classes, classes_to_widen(rows + some.count), [&](const Range& block) {
      sum.add_(product(library, widened(block.of_columns(grad_output)),
                       widened(some.of_columns(block.of_rows(weight))).t()));
    });
    some.of_columns(grad_input).copy_(sum);
  });
}

void layer_grad_weight(at::Tensor& grad_weight, const at::Tensor& grad_output,
                       const at::Tensor& input, bool is_first) {
  const int64_t rows = input.size(0), classes = grad_weight.size(0), features = input.size(1);
  const bool is_widened = widens_products(classes, input);
  const at::Tensor factor = is_widened ? widened(input) : input;
  const Library library = fastest_library(classes, features, factor);
  if (is_widened || library == Library::kOnednn) {
    for_each_part_on_threads(
        classes, 1, classes_to_widen(rows + features), [&](const Range& block) {
          const at::Tensor grad = widened(block.of_columns(grad_output));
          put(block.of_rows(grad_weight), product(library, grad.t(), factor.t()), is_first);
        });
  } else if (grad_weight.scalar_type() != input.scalar_type()) {
    const int64_t most = std::min(classes, classes_to_round(input, features));
    const at::Tensor buffer = at::empty({most, features}, input.options());
    for_each_part(classes, most, [&](const Range& some) {
      at::Tensor rounded = buffer.narrow(0, 0, some.count);
      at::mm_out(rounded, some.of_columns(grad_output).t(), input);
      put(some.of_rows(grad_weight), rounded, is_first);
    });
  } else {
    grad_weight.addmm_(grad_output.t(), input, /*beta=*/is_first ? 0 : 1);
  }
}

}  // namespace softreg
