// misplace::token_bce on CUDA tensors: checks, allocation, launches. The kernels are token_bce.cu.
#include "token_bce.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/token_bce_kernel.h"

namespace misplace::token_bce {
namespace {

Kind kind_of(const at::Tensor& tokens) {
  switch (tokens.scalar_type()) {
    case at::kFloat: return Kind::float32;
    case at::kBFloat16: return Kind::bfloat16;
    case at::kHalf: return Kind::float16;
    default: TORCH_CHECK_TYPE(false, "token_bce: impl=native takes bfloat16, float16 or float32 tokens on a GPU, not ",
                              tokens.scalar_type());
  }
}

at::Tensor as_float(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

Result compute(const Inputs& in, Kind kind, bool gradients) {
  const c10::cuda::CUDAGuard guard(in.tokens.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto options = in.tokens.options().dtype(at::kFloat);
  const int64_t width = in.width();
  const int num_rows = static_cast<int>(in.num_rows());
  const int blocks = blocks_for(num_rows);
  at::Tensor loss = at::empty({}, options), logits = at::empty({in.batch(), in.kept()}, options);
  at::Tensor d_tokens = at::empty({0}, kind == Kind::bfloat16 ? in.tokens.options() : options);
  at::Tensor d_parameters = at::empty({0}, options), direction = d_parameters, totals = at::empty({2, blocks}, options);
  if (gradients) {
    d_tokens = at::empty(in.tokens.sizes(), d_tokens.options());
    d_parameters = at::empty({3 * width + 1}, options);
    direction = at::empty({blocks, width}, options);
  }
  const at::Tensor tokens = in.tokens.stride(2) == 1 || width == 1 ? in.tokens : in.tokens.contiguous();
  const at::Tensor norm_weight = as_float(in.norm_weight), norm_bias = as_float(in.norm_bias);
  const at::Tensor weight = as_float(in.weight), bias = as_float(in.bias);
  const bool is_flag = in.target.scalar_type() == at::kBool;
  const at::Tensor target = is_flag ? in.target.contiguous() : as_float(in.target);
  const at::Tensor token_weight = in.token_weight ? as_float(*in.token_weight) : at::Tensor();
  const at::Tensor weight_sum = in.token_weight ? at::sum(token_weight) : at::Tensor();
  const Parameters parameters{norm_weight.const_data_ptr<float>(), norm_bias.const_data_ptr<float>(),
                              weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
  const Batch batch{
      .tokens = tokens.const_data_ptr(),
      .image_stride = tokens.stride(0),
      .token_stride = tokens.stride(1),
      .num_rows = num_rows,
      .kept = static_cast<int>(in.kept()),
      .offset = static_cast<int>(in.offset),
      .width = static_cast<int>(width),
      .eps = static_cast<float>(in.eps),
      .parameters = parameters,
      .flags = is_flag ? target.const_data_ptr<bool>() : nullptr,
      .targets = is_flag ? nullptr : target.const_data_ptr<float>(),
      .token_weight = in.token_weight ? token_weight.const_data_ptr<float>() : nullptr,
      .weight_sum = in.token_weight ? weight_sum.const_data_ptr<float>() : nullptr,
      .logits = logits.mutable_data_ptr<float>(),
      .d_tokens = gradients ? d_tokens.mutable_data_ptr() : nullptr,
      .direction = gradients ? direction.mutable_data_ptr<float>() : nullptr,
      .totals = totals.mutable_data_ptr<float>(),
  };
  launch_rows(kind, batch, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  launch_finish(batch, loss.mutable_data_ptr<float>(), gradients ? d_parameters.mutable_data_ptr<float>() : nullptr,
                stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, logits, d_tokens, d_parameters};
}

Result token_bce_cuda(const at::Tensor& tokens, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                      const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& target,
                      const std::optional<at::Tensor>& token_weight, int64_t offset, double eps, bool gradients) {
  const Inputs in{tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps};
  check(in);
  TORCH_CHECK_VALUE(in.width() <= max_width, "token_bce: impl=native takes widths up to ", max_width,
                    " on a GPU, not ", in.width());
  TORCH_CHECK_VALUE(in.num_rows() <= max_rows, "token_bce: impl=native takes up to ", max_rows, " patch tokens, not ",
                    in.num_rows());
  return compute(in, kind_of(tokens), gradients);
}

void rescale(const at::Tensor& values, Kind kind, const at::Tensor& scale) {
  launch_rescale(kind, values.mutable_data_ptr(), scale.const_data_ptr<float>(), values.numel(),
                 c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void rescale_cuda(const at::Tensor& d_tokens, const at::Tensor& d_parameters, const at::Tensor& scale) {
  const c10::cuda::CUDAGuard guard(d_tokens.device());
  rescale(d_tokens, kind_of(d_tokens), scale);
  rescale(d_parameters, Kind::float32, scale);
}

}  // namespace
}  // namespace misplace::token_bce

TORCH_LIBRARY_IMPL(misplace, CUDA, m) {
  m.impl("token_bce", &misplace::token_bce::token_bce_cuda);
  m.impl("token_bce_rescale_", &misplace::token_bce::rescale_cuda);
}
