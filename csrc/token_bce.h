// misplace::token_bce. The schema lives in kernels/token_bce/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "shared/token_bce.h"

namespace misplace::token_bce {

// loss scalar, logits [B, K], d_tokens [B, offset + K, D], d_parameters [3 D + 1]: norm_weight, norm_bias, weight,
// bias. Gradients of the loss itself; without `gradients` the last two are empty.
using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct Inputs {
  const at::Tensor &tokens, &norm_weight, &norm_bias, &weight, &bias, &target;
  const std::optional<at::Tensor>& token_weight;
  int64_t offset;
  double eps;

  int64_t batch() const { return tokens.size(0); }
  int64_t kept() const { return tokens.size(1) - offset; }
  int64_t width() const { return tokens.size(2); }
  int64_t num_rows() const { return batch() * kept(); }
};

inline void check(const Inputs& in) {
  TORCH_CHECK_VALUE(in.tokens.dim() == 3, "token_bce: tokens must be [B, offset + K, D], not ", in.tokens.sizes());
  TORCH_CHECK_VALUE(in.offset >= 0 && in.kept() > 0 && in.batch() > 0 && in.width() > 0,
                    "token_bce: no patch tokens in tokens ", in.tokens.sizes(), " with offset ", in.offset);
  const int64_t width = in.width();
  TORCH_CHECK_VALUE(in.norm_weight.sizes() == at::IntArrayRef({width}) &&
                        in.norm_bias.sizes() == at::IntArrayRef({width}) &&
                        in.weight.sizes() == at::IntArrayRef({1, width}) && in.bias.sizes() == at::IntArrayRef({1}),
                    "token_bce: norm_weight and norm_bias must be [D], weight [1, D] and bias [1]; D = ", width);
  const int64_t of_tokens[] = {in.batch(), in.kept()};
  TORCH_CHECK_VALUE(in.target.sizes() == at::IntArrayRef(of_tokens) &&
                        (!in.token_weight || in.token_weight->sizes() == at::IntArrayRef(of_tokens)),
                    "token_bce: target and token_weight must be [B, K] = ", at::IntArrayRef(of_tokens));
  TORCH_CHECK_TYPE(in.target.scalar_type() == at::kBool || at::isFloatingType(in.target.scalar_type()),
                   "token_bce: target must be bool or floating point, not ", in.target.scalar_type());
}

}  // namespace misplace::token_bce
