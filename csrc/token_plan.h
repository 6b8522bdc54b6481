// misplace::token_plan. The schema lives in kernels/token_plan/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <tuple>

#include "shared/token_plan.h"

namespace misplace::token_plan {

using Plan = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // src int32, pos int32, wrong bool: [B, K]

inline void check(const at::Tensor& index, int64_t num_patches, int64_t num_kept, int64_t wrong_threshold) {
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "token_plan: index must be int64, not ",
                   index.scalar_type());
  TORCH_CHECK_VALUE(index.dim() == 1, "token_plan: index must be [B], not ", index.dim(), "-dimensional");
  TORCH_CHECK_VALUE(1 <= num_kept && num_kept <= num_patches && num_patches <= max_patches,
                    "token_plan: need 1 <= num_kept <= num_patches <= ", max_patches);
  TORCH_CHECK_VALUE(0 <= wrong_threshold && wrong_threshold <= (int64_t{1} << 32),
                    "token_plan: wrong_threshold must be in [0, 2^32]");
}

}  // namespace misplace::token_plan
