// The Python module softreg_ext._C: the eager entry, and what the build knows about itself.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/large_results.h"
#include "linear_cross_entropy.h"
#include "ops.h"

namespace softreg {
namespace {

pybind11::object loss_or_both(const ForwardOutputs& out, bool return_lse) {
  return return_lse ? pybind11::cast(std::make_tuple(out.loss, out.lse)) : pybind11::cast(out.loss);
}

// The loss, or the loss and lse. The same dispatcher op as
// torch.ops.softreg_ext.cross_entropy_forward, without the several microseconds that torch.ops
// spends on matching arguments to a schema.
pybind11::object cross_entropy(const at::Tensor& input, const at::Tensor& target,
                               const std::optional<at::Tensor>& weight, int64_t reduction,
                               int64_t ignore_index, double label_smoothing, double z_loss,
                               double logit_scale, std::optional<double> softcap, bool return_lse) {
  ForwardOutputs out;
  {
    const pybind11::gil_scoped_release no_gil;
    out = cross_entropy_forward(
        {packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap),
         input, target, weight, return_lse});
  }
  return loss_or_both(out, return_lse);
}

pybind11::object linear_entry(const at::Tensor& input, const at::Tensor& linear_weight,
                              const std::optional<at::Tensor>& linear_bias,
                              const at::Tensor& target, const std::optional<at::Tensor>& weight,
                              int64_t reduction, int64_t ignore_index, double label_smoothing,
                              double z_loss, double logit_scale, std::optional<double> softcap,
                              bool return_lse) {
  ForwardOutputs out;
  {
    const pybind11::gil_scoped_release no_gil;
    out = linear_cross_entropy(
        {packed_options(reduction, ignore_index, label_smoothing, z_loss, logit_scale, softcap),
         input, linear_weight, linear_bias, target, weight, return_lse});
  }
  return loss_or_both(out, return_lse);
}

pybind11::dict build_info() {
  std::vector<std::string> kernels = {kernels_generic.name};
#ifdef SOFTREG_KERNELS_AVX2
  kernels.emplace_back(kernels_avx2.name);
#endif
#ifdef SOFTREG_KERNELS_AVX512
  kernels.emplace_back(kernels_avx512.name);
#endif
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
  m.def("cross_entropy", &cross_entropy, pybind11::arg("input"), pybind11::arg("target"),
        pybind11::arg("weight"), pybind11::arg("reduction"), pybind11::arg("ignore_index"),
        pybind11::arg("label_smoothing"), pybind11::arg("z_loss"), pybind11::arg("logit_scale"),
        pybind11::arg("softcap"), pybind11::arg("return_lse"));
  m.def("linear_cross_entropy", &linear_entry);
  m.def("build_info", &build_info);
  m.def("release_memory", &release_memory);
  m.def("set_chunk_bytes", &set_chunk_bytes);
}

}  // namespace softreg
