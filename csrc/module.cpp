// The Python module misplace.kernels._C: what it was built with, and settings of the process for training on the CPU.
// Ops register through TORCH_LIBRARY_IMPL.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <map>
#include <string>

#include "render_views.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

// As a text, commas and all: the compiler is given names without quotes.
#define TEXT_OF(...) #__VA_ARGS__
#define TEXT(...) TEXT_OF(__VA_ARGS__)

// ATen's vector width, and the matrix instructions that kernels look for when they run.
static std::string cpu_capability() {
  std::string found = at::get_cpu_capability();
#if defined(__x86_64__) && defined(__GNUC__)
  constexpr unsigned avx512_bf16_in_eax = 1u << 5, amx_bf16_in_edx = 1u << 22;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avx512_bf16_in_eax)) found += " avx512_bf16";
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & amx_bf16_in_edx)) found += " amx_bf16";
#endif
  return found;
}

// A device type that is missing here has no native kernels; kernels/impl.py asks for it by its name.
static std::map<std::string, std::string> build_info() {
  return {
      {"torch", TORCH_VERSION},
      {"compiler", __VERSION__},
      {"cpu", cpu_capability()},
#ifdef MISPLACE_CUDA_ARCHS
      {"cuda", TEXT(MISPLACE_CUDA_ARCHS)},
#endif
  };
}

// Freed memory stays with the process, so that the next step finds its pages in place; engine/cpu_training.py says
// what that costs. False where the C library has no such setting.
static bool keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int never = -1, at_once = 64 << 20;  // bytes by which the heap grows
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, never) && mallopt(M_TOP_PAD, at_once);
#else
  return false;
#endif
}

// torch.set_flush_denormal is of the calling thread alone: here of every thread that at::parallel_for gives work to.
static bool set_flush_denormal(bool on) {
  at::parallel_for(0, at::get_num_threads(), 1, [on](int64_t, int64_t) { at::Context::setFlushDenormal(on); });
  return at::Context::setFlushDenormal(on);
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of misplace; importing it registers torch.ops.misplace.*";
  module.def("build_info", &build_info, "What this extension was built with and for.");
  module.def("set_flush_denormal", &set_flush_denormal, "Denormals are zero, or not, in this and all compute threads.");
  module.def("render_views", &misplace::render_views, pybind11::call_guard<pybind11::gil_scoped_release>(),
             pybind11::arg("pictures"), pybind11::arg("parameters"), pybind11::arg("first"), pybind11::arg("last"),
             pybind11::arg("views"), pybind11::arg("isa") = "", "Writes rows first..last-1 of every view; see render_views.h.");
  module.def("keep_freed_memory", &keep_freed_memory, "Whether memory that is freed stays with the process from now on.");
}
