// misplace::patch_embed and its backward. The schemas live in kernels/patch_embed/operators.py; reference.py is the
// specification. What every device checks and derives from the arguments is here.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "shared/patch_embed.h"

namespace misplace::patch_embed {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
enum Gradient { of_weight, of_bias, of_table, of_class_token, of_no_position, of_images, num_gradients };
using Wanted = std::array<bool, num_gradients>;
using Gradients = std::array<Tensor, num_gradients>;  // empty where not wanted
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Results as_tuple(const Gradients& g) { return {g[0], g[1], g[2], g[3], g[4], g[5]}; }

inline at::ScalarType accumulation(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// `images` may be replaced by a contiguous copy, where the pixels of a row of a patch have gaps between them.
inline Pixels pixels_of(Tensor& images, int64_t patch_size, bool channels_last) {
  TORCH_CHECK_VALUE(images.dim() == 4, "patch_embed: images must have 4 dimensions, not ", images.dim());
  const int height = channels_last ? 1 : 2, width = height + 1, channel = channels_last ? 3 : 1;
  const int64_t channels = images.size(channel), columns = images.size(width) / patch_size;
  TORCH_CHECK_VALUE(1 <= channels && channels <= max_channels, "patch_embed: need 1 to 4 channels, not ", channels);
  TORCH_CHECK_VALUE(columns * patch_size == images.size(width) && images.size(height) % patch_size == 0,
                    "patch_embed: the images are no grid of patches");
  const auto is_interleaved = [&] { return images.stride(channel) == 1 && images.stride(width) == channels; };
  if (!is_interleaved() && images.stride(width) != 1) images = images.contiguous();
  return {images.stride(0),
          images.stride(height),
          images.stride(width),
          images.stride(channel),
          static_cast<int32_t>(patch_size),
          static_cast<int32_t>(channels),
          static_cast<int32_t>(columns),
          is_interleaved()};
}

inline void check_plan(const Tensor& src, const Tensor& pos, int64_t batch) {
  TORCH_CHECK_VALUE(src.dim() == 2 && src.size(0) == batch && src.size(1) > 0,
                    "patch_embed: src must be [B, K] with K > 0, not ", src.sizes());
  TORCH_CHECK_VALUE(pos.sizes() == src.sizes(), "patch_embed: pos must be as src, not ", pos.sizes());
}

// Of weight in dtype of the gradient, the others in the accumulation dtype; the twin of operators.py's empty_gradients.
inline Gradients empty_gradients(const Tensor& gradient, int64_t patch_size, int64_t height, int64_t width,
                                 int64_t channels, bool channels_last, const Wanted& wanted) {
  const int64_t batch = gradient.size(0), dim = gradient.size(2);
  const int64_t num_patches = (height / patch_size) * (width / patch_size);
  using Shape = std::vector<int64_t>;
  const Shape image = channels_last ? Shape{batch, height, width, channels} : Shape{batch, channels, height, width};
  const std::array<Shape, num_gradients> shapes = {
      Shape{dim, channels, patch_size, patch_size}, {dim}, {1 + num_patches, dim}, {dim}, {dim}, image};
  const auto wide = gradient.options().dtype(accumulation(gradient.scalar_type()));
  Gradients results;
  for (int of = 0; of < num_gradients; ++of) {
    results[of] = at::empty(wanted[of] ? shapes[of] : Shape{0}, of == of_weight ? gradient.options() : wide);
  }
  return results;
}

// bias, pos_table, class_token and no_position as contiguous rows in the accumulation dtype.
struct Tables {
  Tensor bias, positions, class_token, no_position;  // no_position: undefined where there is none
  int64_t num_patches;

  Tables(const Tensor& bias_, const Tensor& pos_table, const Tensor& class_token_, const OptionalTensor& no_position_,
         const Tensor& weight, int64_t patches)
      : num_patches(patches) {
    const auto wide = accumulation(weight.scalar_type());
    const auto rows = [&](const Tensor& t) { return t.to(wide).contiguous(); };
    TORCH_CHECK_VALUE(pos_table.dim() == 2 && pos_table.size(0) == 1 + patches && pos_table.size(1) == weight.size(0),
                      "patch_embed: pos_table must be [1 + L, D], not ", pos_table.sizes());
    TORCH_CHECK_VALUE(bias_.numel() == weight.size(0) && class_token_.numel() == weight.size(0),
                      "patch_embed: bias and class_token must be [D]");
    bias = rows(bias_), positions = rows(pos_table), class_token = rows(class_token_);
    if (no_position_) no_position = rows(*no_position_);
  }
};

}  // namespace misplace::patch_embed
