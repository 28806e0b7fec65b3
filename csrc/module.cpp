// The Python module softreg_ext._C: the eager entry, and what the build knows about itself.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/active_kernels.h"
#include "cpu/large_results.h"
#include "linear_cross_entropy.h"
#include "ops.h"

namespace softreg {
namespace {

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Where nothing is traced all integers are known; pybind11 has a quicker way to them, whose errors
// are the expected ones.
template <typename T>
using Eager = std::conditional_t<std::is_same_v<T, c10::SymInt>, int64_t, T>;

// The loss of `entry`, or the loss and lse where its last argument asks for both. The same
// dispatcher op as that of torch.ops, without the several microseconds that torch.ops spends on
// matching arguments to a schema.
template <typename... Args>
auto eager(Outputs (*entry)(Args...)) {
  return [entry](Eager<Args>... args) {
    const Outputs out = [&] {
      const pybind11::gil_scoped_release no_gil;
      return entry(args...);
    }();
    const bool return_lse = std::get<sizeof...(Args) - 1>(std::tie(args...));
    const auto& [loss, lse, state, total_weight] = out;
    return return_lse ? pybind11::cast(std::tie(loss, lse)) : pybind11::cast(loss);
  };
}

pybind11::dict build_info() {
  std::vector<std::string> kernels;
  for (const KernelSet& compiled : compiled_kernels()) {
    kernels.emplace_back(compiled.name);
  }
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["cxx_standard"] = __cplusplus;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = pybind11::none();
#endif
  info["cpu_kernels"] = kernels;
  info["active_cpu_kernels"] = active_kernels().name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cross_entropy", eager(&forward_entry<cross_entropy_forward>));
  m.def("linear_cross_entropy", eager(&linear_forward_entry<linear_cross_entropy>));
  m.def("build_info", &build_info);
  m.def("release_memory", &release_memory);
  m.def("set_chunk_bytes", &set_chunk_bytes);
}

}  // namespace softreg
