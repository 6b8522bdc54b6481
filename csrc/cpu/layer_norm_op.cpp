// The registered ops misplace::layer_norm and misplace::add_layer_norm on the CPU: what they check.
#include <torch/library.h>

#include <tuple>

#include "cpu/layer_norm.h"

namespace misplace::layer_norm {
namespace {

using at::Tensor;

void check(const char* op, const Input& in) {
  TORCH_CHECK_TYPE(in.x.scalar_type() == at::kFloat || in.x.scalar_type() == at::kBFloat16, op,
                   ": native takes float32 or bfloat16, not ", in.x.scalar_type());
  TORCH_CHECK_VALUE(
      in.x.dim() > 0 && in.x.size(-1) > 0 && in.weight.dim() == 1 && in.weight.size(0) == in.x.size(-1), op,
      ": need x [..., D] and weight [D], not ", in.x.sizes(), " and ", in.weight.sizes());
  TORCH_CHECK_VALUE(in.bias.sizes() == in.weight.sizes(), op, ": bias must be as weight");
}

void check_branch(const Input& in) {
  check("add_layer_norm", in);
  TORCH_CHECK_VALUE(in.branch->sizes() == in.x.sizes() && in.branch->scalar_type() == in.x.scalar_type(),
                    "add_layer_norm: branch must be as x");
  if (!in.branch_scale) return;
  TORCH_CHECK_VALUE(in.x.dim() == 3 && in.branch_scale->dim() == 1 && in.branch_scale->size(0) == in.x.size(0) &&
                        in.branch_scale->scalar_type() == at::kFloat,
                    "add_layer_norm: need branch_scale fp32 [B] with x [B, N, D]");
}

void check_backward(const char* op, const Tensor& gradient, const Tensor& sum, const Tensor& mean, const Tensor& rstd) {
  TORCH_CHECK_VALUE(gradient.sizes() == sum.sizes() && gradient.scalar_type() == sum.scalar_type(), op,
                    ": the gradient of the output must be as x");
  const int64_t rows = sum.numel() / sum.size(-1);
  TORCH_CHECK_VALUE(mean.numel() == rows && rstd.numel() == rows, op, ": need the statistics of every row");
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                                              bool save, c10::string_view isa) {
  const Input in{x, {}, {}, weight, bias, eps};
  check("layer_norm", in);
  const Forward out = forward(in, save, false, isa_named(isa));
  return {out.normed, out.mean, out.rstd};
}

std::tuple<Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                               const Tensor& mean, const Tensor& rstd, c10::string_view isa) {
  check("layer_norm", {x, {}, {}, weight, weight, 0});
  check_backward("layer_norm", dy, x, mean, rstd);
  const Gradients out = backward({}, dy, x, {}, weight, mean, rstd, isa_named(isa));
  return {out.dx, out.daffine};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight,
                                                          const Tensor& bias, const Maybe& branch_scale, double eps,
                                                          bool save, c10::string_view isa) {
  const Input in{x, branch, branch_scale, weight, bias, eps};
  check_branch(in);
  const Forward out = forward(in, save, false, isa_named(isa));
  return {out.sum, out.normed, out.mean, out.rstd};
}

Tensor add_layer_norm_(const Tensor& x, const Tensor& branch, const Tensor& weight, const Tensor& bias,
                       const Maybe& branch_scale, double eps, c10::string_view isa) {
  const Input in{x, branch, branch_scale, weight, bias, eps};
  check_branch(in);
  TORCH_CHECK_VALUE(x.is_contiguous(), "add_layer_norm: in place needs a contiguous x");
  return forward(in, false, true, isa_named(isa)).normed;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_backward(const Maybe& dsum, const Tensor& dnormed,
                                                           const Tensor& sum, const Tensor& weight,
                                                           const Tensor& mean, const Tensor& rstd,
                                                           const Maybe& branch_scale, c10::string_view isa) {
  check_branch({sum, sum, branch_scale, weight, weight, 0});
  for (const Tensor& gradient : {dnormed, dsum.value_or(dnormed)}) {
    check_backward("add_layer_norm", gradient, sum, mean, rstd);
  }
  const Gradients out = backward(dsum, dnormed, sum, branch_scale, weight, mean, rstd, isa_named(isa));
  return {out.dx, out.dbranch, out.daffine};
}

}  // namespace
}  // namespace misplace::layer_norm

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("layer_norm", &misplace::layer_norm::layer_norm);
  m.impl("layer_norm_backward", &misplace::layer_norm::layer_norm_backward);
  m.impl("add_layer_norm", &misplace::layer_norm::add_layer_norm);
  m.impl("add_layer_norm_", &misplace::layer_norm::add_layer_norm_);
  m.impl("add_layer_norm_backward", &misplace::layer_norm::add_layer_norm_backward);
}
