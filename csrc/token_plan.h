// misplace::token_plan. The schema lives in kernels/token_plan/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

inline Plan empty_plan(const at::Tensor& index, int64_t num_kept) {
  const at::Tensor src = at::empty({index.size(0), num_kept}, index.options().dtype(at::kInt));
  return {src, at::empty_like(src), at::empty_like(src, src.options().dtype(at::kBool))};
}

// An op's integers are int64; here they get the widths that Philox counts in.
inline Draw make_draw(int64_t seed, int64_t epoch, int64_t view, int64_t wrong_threshold) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch), static_cast<uint32_t>(view),
          static_cast<uint64_t>(wrong_threshold)};
}

}  // namespace misplace::token_plan
