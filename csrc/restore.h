// misplace::restore and its backward. The schemas live in kernels/restore/autograd.py; every device checks with these.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <tuple>

namespace misplace::restore {

// d_tokens [B, 1 + K, D] in dtype of the gradient; in fp32 d_mask_token [D] and d_position [1 + L, D], the latter empty
// where it is not wanted.
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

inline void check_src(const at::Tensor& src, int64_t batch, int64_t num_patches) {
  TORCH_CHECK_TYPE(src.scalar_type() == at::kInt, "restore: src must be int32, not ", src.scalar_type());
  TORCH_CHECK_VALUE(src.dim() == 2 && src.size(0) == batch && 0 <= num_patches && src.size(1) <= num_patches,
                    "restore: src must be [B, K] with K up to ", num_patches, ", not ", src.sizes());
}

inline void check(const at::Tensor& tokens, const at::Tensor& src, const at::Tensor& mask_token,
                  const at::Tensor& position) {
  TORCH_CHECK_VALUE(tokens.dim() == 3 && tokens.size(2) > 0, "restore: tokens must be [B, 1 + K, D], not ",
                    tokens.sizes());
  TORCH_CHECK_VALUE(position.dim() == 2 && position.size(1) == tokens.size(2) && mask_token.dim() == 1 &&
                        mask_token.size(0) == tokens.size(2),
                    "restore: mask_token must be [D] and position [1 + L, D]; D = ", tokens.size(2));
  check_src(src, tokens.size(0), position.size(0) - 1);
  TORCH_CHECK_VALUE(tokens.size(1) == 1 + src.size(1), "restore: need a token for each entry of src, and one before");
}

inline void check_backward(const at::Tensor& gradient, const at::Tensor& src) {
  TORCH_CHECK_VALUE(gradient.dim() == 3 && gradient.size(2) > 0, "restore: the gradient must be [B, 1 + L, D], not ",
                    gradient.sizes());
  check_src(src, gradient.size(0), gradient.size(1) - 1);
}

}  // namespace misplace::restore
