// The Python module misplace.kernels._C: build_info() only. Ops register through TORCH_LIBRARY_IMPL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <map>
#include <string>

static std::map<std::string, std::string> build_info() {
  return {{"torch", TORCH_VERSION}, {"compiler", __VERSION__}};
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of misplace; importing it registers torch.ops.misplace.*";
  module.def("build_info", &build_info, "What this extension was built with.");
}
