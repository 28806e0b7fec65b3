// The Python module softreg_ext._C: the eager entry, and what the build knows about itself.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/active_kernels.h"
#include "cpu/large_results.h"
#include "float_products.h"
#include "layer_rows.h"
#include "ops.h"

namespace softreg {
namespace {

// What pybind11 takes for a float, but for tensors that require grad, which would get none.
struct Number {
  double value = 0;

  operator double() const { return value; }
};

}  // namespace
}  // namespace softreg

namespace pybind11::detail {

template <>
struct type_caster<softreg::Number> {
  PYBIND11_TYPE_CASTER(softreg::Number, const_name("float"));

  bool load(handle source, bool convert) {
    if (THPVariable_Check(source.ptr()) && THPVariable_Unpack(source.ptr()).requires_grad()) {
      return false;
    }
    make_caster<double> number;
    const bool is_number = number.load(source, convert);
    value.value = is_number ? cast_op<double>(number) : 0;
    return is_number;
  }
};

}  // namespace pybind11::detail

namespace softreg {
namespace {

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// What Python is asked for in the place of an entry's argument. Where nothing is traced all
// integers are known; pybind11 has a quicker way to them, whose errors are the expected ones.
template <typename T>
struct EagerOf {
  using type = T;
};
template <>
struct EagerOf<c10::SymInt> {
  using type = int64_t;
};
template <>
struct EagerOf<double> {
  using type = Number;
};
template <>
struct EagerOf<std::optional<double>> {
  using type = std::optional<Number>;
};
template <typename T>
using Eager = typename EagerOf<T>::type;

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
  m.def("set_onednn", &set_onednn);
}

}  // namespace softreg
