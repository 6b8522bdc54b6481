// What the forward and the backward share on the CPU: which factor type a dtype multiplies in, and the table's rows.
#pragma once

#include <ATen/Dispatch.h>

#include "cpu/patch_embed_matmul.h"
#include "cpu/patch_embed_pixels.h"
#include "patch_embed.h"

#define MISPLACE_DISPATCH_PIXELS(dtype, ...)                                                        \
  AT_DISPATCH_SWITCH(dtype, "patch_embed images",                                                   \
                     AT_DISPATCH_CASE(at::kByte, __VA_ARGS__) AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) \
                         AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__) AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__) \
                             AT_DISPATCH_CASE(at::kDouble, __VA_ARGS__))

namespace misplace::patch_embed {

// Calls with a value of the type that matrices of `Scalar` are multiplied in here.
template <class Scalar, class Function>
void with_factor(Function function) {
  if constexpr (std::is_same_v<Scalar, double>) {
    function(double{});
  } else if constexpr (std::is_same_v<Scalar, c10::BFloat16>) {
    multiplies_bf16() ? function(c10::BFloat16{}) : function(float{});
  } else {
    function(float{});
  }
}

inline void check_range(const Tensor& src, const Tensor& pos, int64_t num_patches, bool has_no_position) {
  const int32_t *sources = src.const_data_ptr<int32_t>(), *positions = pos.const_data_ptr<int32_t>();
  const int32_t lowest = has_no_position ? -1 : 0;
  for (int64_t i = 0; i < src.numel(); ++i) {
    TORCH_CHECK_INDEX(0 <= sources[i] && sources[i] < num_patches, "patch_embed: src must be in [0, ", num_patches,
                      "), found ", sources[i]);
    TORCH_CHECK_INDEX(lowest <= positions[i] && positions[i] < num_patches, "patch_embed: pos must be in [", lowest,
                      ", ", num_patches, "), found ", positions[i]);
  }
}

// The row that a token of a position adds.
template <class Wide>
struct Rows {
  const Wide *bias, *positions, *no_position;
  int64_t dim;

  explicit Rows(const Tables& tables)
      : bias(tables.bias.const_data_ptr<Wide>()),
        positions(tables.positions.const_data_ptr<Wide>()),
        no_position(tables.no_position.defined() ? tables.no_position.const_data_ptr<Wide>() : nullptr),
        dim(tables.bias.numel()) {}

  const Wide* operator()(int32_t pos) const { return pos < 0 ? no_position : positions + (1 + pos) * dim; }
};

template <class Scalar, class Wide>
MISPLACE_HOST_DEVICE void token_body(const Wide* product, const Wide* bias, const Wide* row, int64_t count,
                                     Scalar* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rounded<Scalar>(product[i] + (bias[i] + row[i]));
}

#ifdef MISPLACE_AVX512
template <class Scalar, class Wide>
MISPLACE_AVX512 void token_avx512(const Wide* product, const Wide* bias, const Wide* row, int64_t count, Scalar* out) {
  token_body(product, bias, row, count, out);
}
#endif

template <class Scalar, class Wide>
void write_token(const Wide* product, const Wide* bias, const Wide* row, int64_t count, Scalar* out) {
#ifdef MISPLACE_AVX512
  if (has_avx512()) return token_avx512(product, bias, row, count, out);
#endif
  token_body(product, bias, row, count, out);
}

}  // namespace misplace::patch_embed
