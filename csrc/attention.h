// misplace::attention. The schemas live in kernels/attention/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <tuple>

namespace misplace::attention {

// out [B, N, H, d]; statistics fp32 [B, H, 2, N]: a query's largest score (its smallest, negated, where scale is
// negative), and one over the sum of e^(scale * score - that). The backward makes the probabilities from them.
// With cu_seqlens, int32 [S + 1], sequences of mixed lengths lie one behind the other: q, k, v and out [T, H, d].
using Forward = std::tuple<at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of q, k and v

inline void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const std::optional<at::Tensor>& cu_seqlens) {
  TORCH_CHECK_TYPE(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16,
                   "attention: native takes float32 or bfloat16, not ", q.scalar_type());
  TORCH_CHECK_TYPE(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                   "attention: q, k and v must have one dtype");
  if (cu_seqlens) {
    TORCH_CHECK_TYPE(cu_seqlens->scalar_type() == at::kInt, "attention: cu_seqlens must be int32, not ",
                     cu_seqlens->scalar_type());
    TORCH_CHECK_VALUE(cu_seqlens->dim() == 1 && cu_seqlens->numel() > 0 && cu_seqlens->device() == q.device(),
                      "attention: cu_seqlens must be [S + 1], on the device of q");
    TORCH_CHECK_VALUE(q.dim() == 3 && k.sizes() == q.sizes() && v.sizes() == q.sizes(),
                      "attention: with cu_seqlens need q, k, v [T, H, d]");
    return;
  }
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes(), "attention: need q [B, N, H, d] and k, ",
                    "v [B, M, H, d]");
  TORCH_CHECK_VALUE(q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3) && k.size(1) > 0,
                    "attention: q ", q.sizes(), " and k ", k.sizes(), " do not fit");
}

}  // namespace misplace::attention
