// What the ops' autograd nodes have in common.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include "args.h"

namespace softreg {

// A torch.func transform is running, or x carries a forward-mode tangent.
bool needs_composite(const at::Tensor& x);

bool needs_grad(const at::Tensor& x);

// Memory on a CPU or a GPU and nothing else: no subclass, no fake.
bool is_ordinary(const at::Tensor& x);
bool has_modes();  // of Python, which see every op
bool is_traced();  // to make a graph of the ops, as torch.compile does
// Who packs what is saved, to offload it or to compute it anew, expects it to be little.
bool packs_what_is_saved();

void save(torch::autograd::AutogradContext* ctx, const CrossEntropyOptions& options);
// What was saved in double, of which hooks may have packed less.
at::Tensor unpacked_double(const at::Tensor& saved);
// A tensor that was put into ctx->saved_data, for once; undefined where there is none.
at::Tensor take(torch::autograd::AutogradContext* ctx, const char* name);
CrossEntropyOptions saved_options(torch::autograd::AutogradContext* ctx);

}  // namespace softreg
