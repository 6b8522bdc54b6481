// layer_norm on the CPU: fp32 statistics and sums whatever x holds, one pass over memory each way.
//
// The gradients of weight and bias are summed by chunks of rows that are always the same, then chunk by chunk: the
// bits do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace misplace::layer_norm {

template <class T>
struct Rows {
  T* data;
  int64_t count, width;

  Rows part(int64_t begin, int64_t end) const { return {data + begin * width, end - begin, width}; }
};

struct Affine {
  const float *weight, *bias;
};

}  // namespace misplace::layer_norm

#define MISPLACE_OP layer_norm
#define MISPLACE_BODY "cpu/layer_norm_body.h"
#include "cpu/each_isa.h"

namespace misplace::layer_norm {
namespace {

constexpr int64_t rows_per_chunk = 64;
constexpr int64_t padding = 16;

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;    // y, mean and 1 / sqrt(variance + eps) fp32 [rows]
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of x, and of weight and bias in fp32

template <class T>
struct Kernels {
  decltype(&plain::forward<T>) forward = plain::forward<T>;
  decltype(&plain::backward<T>) backward = plain::backward<T>;

  explicit Kernels(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) forward = avx2::forward<T>, backward = avx2::backward<T>;
    if (isa >= Isa::avx512) forward = avx512::forward<T>, backward = avx512::backward<T>;
    if (isa >= Isa::avx512_bf16) forward = avx512_bf16::forward<T>, backward = avx512_bf16::backward<T>;
#endif
  }
};

int64_t padded(int64_t width) { return (width + padding - 1) / padding * padding; }

// fp32 with zeros up to whole vectors.
at::Tensor pad(const at::Tensor& x) {
  at::Tensor wide = at::zeros({padded(x.numel())}, x.options().dtype(at::kFloat));
  wide.narrow(0, 0, x.numel()).copy_(x);
  return wide;
}

template <class T>
Rows<const T> rows_of(const at::Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.numel() / x.size(-1), x.size(-1)};
}

template <class Run>
void each_chunk(int64_t rows, const Run& run) {
  const int64_t chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) run(i, i * rows_per_chunk, std::min((i + 1) * rows_per_chunk, rows));
  });
}

template <class T>
void run_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                 const Forward& to, Isa isa) {
  const auto kernel = Kernels<T>(isa).forward;
  const Rows<const T> rows = rows_of<T>(x);
  const Affine affine{weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
  T* y = static_cast<T*>(std::get<0>(to).mutable_data_ptr());
  float *mean = std::get<1>(to).mutable_data_ptr<float>(), *scale = std::get<2>(to).mutable_data_ptr<float>();
  each_chunk(rows.count, [&](int64_t, int64_t begin, int64_t end) {
    kernel(rows.part(begin, end), affine, eps, y + begin * rows.width, mean + begin, scale + begin);
  });
}

template <class T>
void run_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& means,
                  const at::Tensor& scales, at::Tensor& dx, at::Tensor& sums, Isa isa) {
  const auto kernel = Kernels<T>(isa).backward;
  const Rows<const T> rows = rows_of<T>(x);
  const T* dy_in = static_cast<const T*>(dy.const_data_ptr());
  T* dx_out = static_cast<T*>(dx.mutable_data_ptr());
  const float *mean = means.const_data_ptr<float>(), *scale = scales.const_data_ptr<float>();
  const float* weights = weight.const_data_ptr<float>();
  float* partial = sums.mutable_data_ptr<float>();
  const int64_t width = padded(rows.width);
  each_chunk(rows.count, [&](int64_t chunk, int64_t begin, int64_t end) {
    float* dweight = partial + 2 * width * chunk;
    kernel(rows.part(begin, end), dy_in + begin * rows.width, weights, mean + begin, scale + begin,
           dx_out + begin * rows.width, dweight, dweight + width);
  });
}

void check(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                   "layer_norm: native takes float32 or bfloat16, not ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) > 0 && weight.dim() == 1 && weight.size(0) == x.size(-1),
                    "layer_norm: need x [..., D] and weight [D], not ", x.sizes(), " and ", weight.sizes());
}

Forward layer_norm(const at::Tensor& x_in, const at::Tensor& weight, const at::Tensor& bias, double eps,
                   c10::string_view isa_name) {
  check(x_in, weight);
  TORCH_CHECK_VALUE(bias.sizes() == weight.sizes(), "layer_norm: bias must be as weight");
  const Isa isa = isa_named(isa_name);
  const at::Tensor x = x_in.contiguous();
  const int64_t rows = x.numel() / x.size(-1);
  const auto fp32 = x.options().dtype(at::kFloat);
  const Forward to{at::empty(x.sizes(), x.options()), at::empty({rows}, fp32), at::empty({rows}, fp32)};
  if (x.scalar_type() == at::kFloat) {
    run_forward<float>(x, pad(weight), pad(bias), eps, to, isa);
  } else {
    run_forward<uint16_t>(x, pad(weight), pad(bias), eps, to, isa);
  }
  return to;
}

Gradients layer_norm_backward(const at::Tensor& dy, const at::Tensor& x_in, const at::Tensor& weight,
                              const at::Tensor& means, const at::Tensor& scales, c10::string_view isa_name) {
  check(x_in, weight);
  TORCH_CHECK_VALUE(dy.sizes() == x_in.sizes() && dy.scalar_type() == x_in.scalar_type(),
                    "layer_norm: the gradient of the output must be as x");
  const Isa isa = isa_named(isa_name);
  const at::Tensor x = x_in.contiguous();
  const int64_t rows = x.numel() / x.size(-1);
  TORCH_CHECK_VALUE(means.numel() == rows && scales.numel() == rows, "layer_norm: need the statistics of every row");
  at::Tensor dx = at::empty(x.sizes(), x.options());
  const int64_t chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  at::Tensor sums = at::zeros({std::max<int64_t>(chunks, 1), 2, padded(x.size(-1))}, means.options());
  if (x.scalar_type() == at::kFloat) {
    run_backward<float>(dy.contiguous(), x, pad(weight), means, scales, dx, sums, isa);
  } else {
    run_backward<uint16_t>(dy.contiguous(), x, pad(weight), means, scales, dx, sums, isa);
  }
  at::Tensor total = sums[0];
  for (int64_t chunk = 1; chunk < chunks; ++chunk) total += sums[chunk];
  const auto of = [&](int64_t i) { return total[i].narrow(0, 0, x.size(-1)).clone(); };
  return {dx, of(0), of(1)};
}

}  // namespace
}  // namespace misplace::layer_norm

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("layer_norm", &misplace::layer_norm::layer_norm);
  m.impl("layer_norm_backward", &misplace::layer_norm::layer_norm_backward);
}
