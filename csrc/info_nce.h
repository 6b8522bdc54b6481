// misplace::info_nce. The schema lives in kernels/info_nce/native.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace misplace::info_nce {

// loss fp32 scalar, d_query [N, D], d_key [M, D]: gradients of the loss itself, empty where they are not asked for.
// Without a key the queries are their own keys, and d_query is the sum of both gradients.
using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

inline void check(const at::Tensor& query, const at::Tensor& key, double temperature, int64_t first_row, bool pairs) {
  TORCH_CHECK_TYPE(query.scalar_type() == at::kFloat || query.scalar_type() == at::kBFloat16,
                   "info_nce: native takes float32 or bfloat16, not ", query.scalar_type());
  TORCH_CHECK_TYPE(key.scalar_type() == query.scalar_type(), "info_nce: query and key must have one dtype");
  TORCH_CHECK_VALUE(query.dim() == 2 && key.dim() == 2 && query.size(1) == key.size(1) && query.numel() > 0,
                    "info_nce: query ", query.sizes(), " and key ", key.sizes(), " must be [N, D] and [M, D]");
  TORCH_CHECK_VALUE(first_row >= 0 && first_row + query.size(0) <= key.size(0), "info_nce: first_row ", first_row,
                    " + ", query.size(0), " queries leaves the ", key.size(0), " keys");
  TORCH_CHECK_VALUE(!pairs || query.size(0) % 2 == 0, "info_nce: pairs of ", query.size(0), " rows");
  TORCH_CHECK_VALUE(temperature > 0, "info_nce: temperature must be above 0, not ", temperature);
}

}  // namespace misplace::info_nce
