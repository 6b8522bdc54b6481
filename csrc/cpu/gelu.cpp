// gelu on the CPU: one pass each way, fp32 inside. Which elements a thread takes changes no bit.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#define MISPLACE_OP gelu
#define MISPLACE_BODY "cpu/gelu_body.h"
#include "cpu/each_isa.h"

namespace misplace::gelu {
namespace {

constexpr int64_t elements_per_task = 16384;

template <class T>
struct Kernels {
  void (*forward)(const T*, T*, int64_t) = plain::forward<T>;
  void (*backward)(const T*, const T*, T*, int64_t) = plain::backward<T>;

  explicit Kernels(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) forward = avx2::forward<T>, backward = avx2::backward<T>;
    if (isa >= Isa::avx512) forward = avx512::forward<T>, backward = avx512::backward<T>;
    if (isa >= Isa::avx512_bf16) forward = avx512_bf16::forward<T>, backward = avx512_bf16::backward<T>;
#endif
  }
};

template <class Run>
void each_task(int64_t count, const Run& run) {
  const int64_t tasks = (count + elements_per_task - 1) / elements_per_task;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    run(begin * elements_per_task, std::min(end * elements_per_task, count));
  });
}

template <class T>
void run_forward(const at::Tensor& x, at::Tensor& y, Isa isa) {
  const auto kernel = Kernels<T>(isa).forward;
  const T* x_in = static_cast<const T*>(x.const_data_ptr());
  T* y_out = static_cast<T*>(y.mutable_data_ptr());
  each_task(x.numel(), [&](int64_t begin, int64_t end) { kernel(x_in + begin, y_out + begin, end - begin); });
}

template <class T>
void run_backward(const at::Tensor& dy, const at::Tensor& x, at::Tensor& dx, Isa isa) {
  const auto kernel = Kernels<T>(isa).backward;
  const T *dy_in = static_cast<const T*>(dy.const_data_ptr()), *x_in = static_cast<const T*>(x.const_data_ptr());
  T* dx_out = static_cast<T*>(dx.mutable_data_ptr());
  each_task(x.numel(), [&](int64_t begin, int64_t end) {
    kernel(dy_in + begin, x_in + begin, dx_out + begin, end - begin);
  });
}

void check(const at::Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                   "gelu: native takes float32 or bfloat16, not ", x.scalar_type());
}

at::Tensor gelu(const at::Tensor& x, c10::string_view isa_name) {
  check(x);
  const Isa isa = isa_named(isa_name);
  at::Tensor y = at::empty(x.sizes(), x.options());
  if (x.scalar_type() == at::kFloat) {
    run_forward<float>(x.contiguous(), y, isa);
  } else {
    run_forward<uint16_t>(x.contiguous(), y, isa);
  }
  return y;
}

at::Tensor gelu_backward(const at::Tensor& dy, const at::Tensor& x, c10::string_view isa_name) {
  check(x);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(),
                    "gelu: the gradient of the output must be as x");
  const Isa isa = isa_named(isa_name);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  if (x.scalar_type() == at::kFloat) {
    run_backward<float>(dy.contiguous(), x.contiguous(), dx, isa);
  } else {
    run_backward<uint16_t>(dy.contiguous(), x.contiguous(), dx, isa);
  }
  return dx;
}

}  // namespace
}  // namespace misplace::gelu

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("gelu", &misplace::gelu::gelu);
  m.impl("gelu_backward", &misplace::gelu::gelu_backward);
}
