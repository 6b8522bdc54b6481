// misplace::patch_embed and its backward on CUDA tensors: checks, allocation, launches. The kernels are patch_embed.cu.
#include "patch_embed.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda/patch_embed_kernel.h"

namespace misplace::patch_embed {
namespace {

constexpr int64_t programs = 264;  // of a split sum: two for each of 132 multiprocessors
constexpr int64_t most_splits = 64;

Kind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kByte: return Kind::uint8;
    case at::kFloat: return Kind::float32;
    case at::kBFloat16: return Kind::bfloat16;
    case at::kHalf: return Kind::float16;
    default:
      C10_THROW_ERROR(TypeError, "patch_embed: impl=native on CUDA takes no " + std::string(tensor.dtype().name()));
  }
}

Batch batch_of(const Tensor& src, const Tensor& pos, int64_t dim, int64_t num_patches) {
  return {src.size(0),
          static_cast<int32_t>(src.size(1)),
          static_cast<int32_t>(dim),
          static_cast<int32_t>(num_patches),
          src.const_data_ptr<int32_t>(),
          pos.const_data_ptr<int32_t>()};
}

PixelSource source_of(const Tensor& images, const Pixels& pixels, at::ArrayRef<double> scale,
                      at::ArrayRef<double> shift) {
  PixelSource source{images.const_data_ptr(), kind_of(images), pixels, {}, {}};
  std::copy(scale.begin(), scale.end(), source.scale);
  std::copy(shift.begin(), shift.end(), source.shift);
  return source;
}

Tensor as_int(const Tensor& index) { return index.to(at::kInt).contiguous(); }

// The kernels read uint8 and fp32; other floating images are widened, which a batch of pixels seldom is.
Tensor readable(const Tensor& images) {
  return images.scalar_type() == at::kByte ? images : images.to(at::kFloat);
}

Tensor in_walking_order(const Tensor& weight, const Pixels& pixels) {
  return pixels.interleaved ? weight.permute({0, 2, 3, 1}).contiguous() : weight.contiguous();
}

Tensor patch_embed_cuda(const Tensor& images_, const Tensor& weight_, const Tensor& bias, const Tensor& pos_table,
                        const Tensor& class_token, const OptionalTensor& no_position, const Tensor& src_,
                        const Tensor& pos_, at::ArrayRef<double> scale, at::ArrayRef<double> shift,
                        bool channels_last) {
  const c10::cuda::CUDAGuard on_its_device(images_.device());
  const Kind kind = kind_of(weight_);
  Tensor images = readable(images_);
  const int64_t patch_size = weight_.size(-1);
  const Pixels pixels = pixels_of(images, patch_size, channels_last);
  check_plan(src_, pos_, images.size(0));
  const Tensor src = as_int(src_), pos = as_int(pos_), weight = in_walking_order(weight_, pixels);
  const int64_t num_patches = pixels.columns * (images.size(channels_last ? 1 : 2) / patch_size);
  const Tables tables(bias, pos_table, class_token, no_position, weight_, num_patches);
  const Tensor unknown = no_position ? tables.no_position : tables.class_token;
  Tensor out = at::empty({src.size(0), 1 + src.size(1), weight.size(0)}, weight.options());
  if (out.numel() == 0) return out;
  launch_forward(kind, batch_of(src, pos, weight.size(0), num_patches), source_of(images, pixels, scale, shift),
                 {weight.const_data_ptr(), tables.bias.const_data_ptr<float>(),
                  tables.positions.const_data_ptr<float>(), tables.class_token.const_data_ptr<float>(), unknown.const_data_ptr<float>(),
                  out.mutable_data_ptr()},
                 c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

void weight_gradient(const Tensor& gradient, const Tensor& images_, const Batch& batch, at::ArrayRef<double> scale,
                     at::ArrayRef<double> shift, bool channels_last, Tensor& result) {
  Tensor images = readable(images_);
  const int64_t patch_size = result.size(-1), num_pixels = result.numel() / result.size(0);
  const Pixels pixels = pixels_of(images, patch_size, channels_last);
  const int64_t tokens = batch.images * batch.kept, chunks = (tokens + chunk - 1) / chunk;
  const int64_t tiles = (batch.dim + 127) / 128 * ((num_pixels + 63) / 64);
  const int64_t each = (chunks + std::clamp<int64_t>(programs / tiles, 1, most_splits) - 1) /
                       std::clamp<int64_t>(programs / tiles, 1, most_splits) * chunk;
  const int64_t splits = (tokens + each - 1) / each;
  Tensor parts = at::empty({splits, batch.dim, num_pixels}, gradient.options().dtype(at::kFloat));
  launch_weight(kind_of(gradient), batch, source_of(images, pixels, scale, shift), gradient.const_data_ptr(),
                parts.mutable_data_ptr<float>(), static_cast<int32_t>(splits), each,
                c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  Tensor sum = at::sum(parts, 0);
  if (pixels.interleaved) sum = sum.view({batch.dim, patch_size, patch_size, -1}).permute({0, 3, 1, 2});
  result.copy_(sum.reshape(result.sizes()));
}

void table_gradients(const Tensor& gradient, const Batch& batch, const Wanted& wanted, Gradients& results) {
  const bool only_class = !wanted[of_bias] && !wanted[of_table] && !wanted[of_no_position];
  if (only_class && !wanted[of_class_token]) return;
  const int64_t rows = only_class ? 1 : wanted[of_table] ? 2 + batch.num_patches : 3;
  const int64_t splits = std::min(batch.images, most_splits);
  Tensor parts = at::empty({splits, rows, batch.dim}, gradient.options().dtype(at::kFloat));
  launch_tables(kind_of(gradient), batch, gradient.const_data_ptr(), parts.mutable_data_ptr<float>(),
                static_cast<int32_t>(splits), static_cast<int32_t>(rows), wanted[of_table], only_class,
                c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor sums = at::sum(parts, 0);
  if (wanted[of_bias]) results[of_bias].copy_(sums.slice(0, 1).sum(0));
  if (wanted[of_table]) results[of_table].copy_(sums.slice(0, 0, rows - 1));
  if (wanted[of_class_token]) results[of_class_token].copy_(sums[0]);
  if (wanted[of_no_position]) results[of_no_position].copy_(sums[rows - 1]);
}

void image_gradient(const Tensor& gradient, const Tensor& weight, const Batch& batch, at::ArrayRef<double> scale,
                    bool channels_last, Tensor& result) {
  const Pixels pixels = pixels_of(result, weight.size(-1), channels_last);
  std::array<float, max_channels> scales{};
  std::copy(scale.begin(), scale.end(), scales.begin());
  const Tensor walked = in_walking_order(weight, pixels);
  launch_image(kind_of(gradient), batch, pixels, scales.data(), gradient.const_data_ptr(), walked.const_data_ptr(),
               result.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

Results patch_embed_backward_cuda(const Tensor& gradient_, const OptionalTensor& images, const OptionalTensor& weight,
                                  const Tensor& src_, const Tensor& pos_, at::ArrayRef<double> scale,
                                  at::ArrayRef<double> shift, bool channels_last, int64_t patch_size, int64_t height,
                                  int64_t width, Wanted wanted) {
  const c10::cuda::CUDAGuard on_its_device(gradient_.device());
  const Tensor gradient = gradient_.contiguous(), src = as_int(src_), pos = as_int(pos_);
  check_plan(src, pos, gradient.size(0));
  Gradients results =
      empty_gradients(gradient, patch_size, height, width, static_cast<int64_t>(scale.size()), channels_last, wanted);
  if (gradient.numel() == 0) {
    for (Tensor& result : results) result.zero_();
    return as_tuple(results);
  }
  const Batch batch = batch_of(src, pos, gradient.size(2), (height / patch_size) * (width / patch_size));
  if (wanted[of_weight]) {
    weight_gradient(gradient, images.value(), batch, scale, shift, channels_last, results[of_weight]);
  }
  table_gradients(gradient, batch, wanted, results);
  if (wanted[of_images]) {
    image_gradient(gradient, weight.value(), batch, scale, channels_last, results[of_images]);
  }
  return as_tuple(results);
}

}  // namespace
}  // namespace misplace::patch_embed

TORCH_LIBRARY_IMPL(misplace, CUDA, m) {
  m.impl("patch_embed", &misplace::patch_embed::patch_embed_cuda);
  m.impl("patch_embed_backward", &misplace::patch_embed::patch_embed_backward_cuda);
}
