// gelu on the CPU: one pass each way, fp32 inside; a bias before it is added, and its gradient summed, in that pass.
//
// Which elements a thread takes changes no bit: the gradient of the bias is summed by chunks of rows that are always
// the same, then chunk by chunk.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#define MISPLACE_OP gelu
#define MISPLACE_BODY "cpu/gelu_body.h"
#include "cpu/each_isa.h"

namespace misplace::gelu {
namespace {

using Maybe = std::optional<at::Tensor>;

constexpr int64_t elements_per_task = 16384, most_chunks = 64;

template <class T>
struct Kernels {
  decltype(&plain::forward<T>) forward = plain::forward<T>;
  decltype(&plain::backward<T>) backward = plain::backward<T>;
  decltype(&plain::add_parts) add_parts = plain::add_parts;

  explicit Kernels(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) {
      forward = avx2::forward<T>, backward = avx2::backward<T>, add_parts = avx2::add_parts;
    }
    if (isa >= Isa::avx512) {
      forward = avx512::forward<T>, backward = avx512::backward<T>, add_parts = avx512::add_parts;
    }
    if (isa >= Isa::avx512_bf16) {
      forward = avx512_bf16::forward<T>, backward = avx512_bf16::backward<T>, add_parts = avx512_bf16::add_parts;
    }
#endif
  }
};

// Rows that a task takes at a time, a function of the shape alone. Without a bias a row is any stretch of memory.
struct Tasks {
  int64_t count, width, rows_each;

  Tasks(const at::Tensor& x, bool has_bias) {
    width = has_bias ? x.size(-1) : elements_per_task;
    count = x.numel();
    const int64_t rows = (count + width - 1) / width;
    rows_each = has_bias ? std::max((rows + most_chunks - 1) / most_chunks, elements_per_task / width + 1) : 1;
  }

  int64_t number() const { return (count + rows_each * width - 1) / (rows_each * width); }

  // run(number of the task, first element, rows, their width)
  template <class Run>
  void each(const Run& run) const {
    at::parallel_for(0, number(), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i * rows_each * width, size = std::min(rows_each * width, count - begin);
        run(i, begin, std::max<int64_t>(size / width, 1), std::min(size, width));
      }
    });
  }
};

Maybe fp32(const Maybe& bias) { return bias ? Maybe(bias->to(at::kFloat).contiguous()) : bias; }

const float* read(const Maybe& bias) { return bias ? bias->const_data_ptr<float>() : nullptr; }

template <class T>
const T* read(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
void run_forward(const at::Tensor& x, const Maybe& bias_in, at::Tensor& y, Isa isa) {
  const auto kernel = Kernels<T>(isa).forward;
  const Maybe bias = fp32(bias_in);
  const T* from = read<T>(x);
  T* to = static_cast<T*>(y.mutable_data_ptr());
  Tasks(x, bias.has_value()).each([&](int64_t, int64_t begin, int64_t rows, int64_t width) {
    kernel(from + begin, read(bias), to + begin, rows, width);
  });
}

template <class T>
void run_backward(const at::Tensor& dy, const at::Tensor& x, const Maybe& bias_in, at::Tensor& dx, at::Tensor& dbias,
                  Isa isa) {
  const Kernels<T> kernels(isa);
  const Maybe bias = fp32(bias_in);
  const Tasks tasks(x, bias.has_value());
  const at::Tensor parts = at::empty({bias ? tasks.number() : 0, dbias.numel()}, dbias.options());
  float* part = parts.mutable_data_ptr<float>();
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  tasks.each([&](int64_t i, int64_t begin, int64_t rows, int64_t width) {
    kernels.backward(read<T>(dy) + begin, read<T>(x) + begin, read(bias), to + begin, bias ? part + i * width : part,
                     rows, width);
  });
  if (bias) kernels.add_parts(part, tasks.number(), tasks.width, dbias.mutable_data_ptr<float>());
}

void check(const at::Tensor& x, const Maybe& bias) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                   "gelu: native takes float32 or bfloat16, not ", x.scalar_type());
  TORCH_CHECK_VALUE(!bias || (x.dim() > 0 && bias->dim() == 1 && bias->size(0) == x.size(-1) && x.size(-1) > 0),
                    "gelu: need x [..., D] with bias [D]");
}

at::Tensor gelu(const at::Tensor& x, const Maybe& bias, c10::string_view isa_name) {
  check(x, bias);
  const Isa isa = isa_named(isa_name);
  at::Tensor y = at::empty(x.sizes(), x.options());
  const auto run = x.scalar_type() == at::kFloat ? run_forward<float> : run_forward<uint16_t>;
  run(x.contiguous(), bias, y, isa);
  return y;
}

std::tuple<at::Tensor, at::Tensor> gelu_backward(const at::Tensor& dy, const at::Tensor& x, const Maybe& bias,
                                                 c10::string_view isa_name) {
  check(x, bias);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(),
                    "gelu: the gradient of the output must be as x");
  const Isa isa = isa_named(isa_name);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  at::Tensor dbias = at::empty({bias ? x.size(-1) : 0}, x.options().dtype(at::kFloat));
  const auto run = x.scalar_type() == at::kFloat ? run_backward<float> : run_backward<uint16_t>;
  run(dy.contiguous(), x.contiguous(), bias, dx, dbias, isa);
  return {dx, dbias};
}

}  // namespace
}  // namespace misplace::gelu

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("gelu", &misplace::gelu::gelu);
  m.impl("gelu_backward", &misplace::gelu::gelu_backward);
}
