// misplace::patch_mse. The schema lives in kernels/patch_mse/native.py; every device checks with `check`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <tuple>

namespace misplace::patch_mse {

// Sums of whole numbers over a patch are exact in 32 bits up to here.
constexpr int64_t max_channels = 4, max_patch_size = 128;

// loss scalar and d_prediction [B, M, p * p * C]: the gradient of the loss itself, empty where it is not wanted.
using Result = std::tuple<at::Tensor, at::Tensor>;

struct Inputs {
  const at::Tensor &prediction, &images, &index;
  int64_t patch_size;
  at::ArrayRef<double> mean, std;
  bool normalise;
  double eps;

  int64_t batch() const { return index.size(0); }
  int64_t predicted() const { return index.size(1); }
  int64_t channels() const { return images.size(3); }
  int64_t columns() const { return images.size(2) / patch_size; }
  int64_t num_patches() const { return images.size(1) / patch_size * columns(); }
  int64_t pixels() const { return patch_size * patch_size * channels(); }  // numbers in a patch
};

inline void check(const Inputs& in) {
  TORCH_CHECK_TYPE(in.images.scalar_type() == at::kByte && in.index.scalar_type() == at::kInt,
                   "patch_mse: images must be uint8 and index int32, not ", in.images.scalar_type(), " and ",
                   in.index.scalar_type());
  TORCH_CHECK_VALUE(in.images.dim() == 4 && in.index.dim() == 2 && in.images.size(0) == in.batch(),
                    "patch_mse: images must be [B, H, W, C] and index [B, M], not ", in.images.sizes(), " and ",
                    in.index.sizes());
  TORCH_CHECK_VALUE(1 <= in.channels() && in.channels() <= max_channels && 1 <= in.patch_size &&
                        in.patch_size <= max_patch_size,
                    "patch_mse: need 1 to ", max_channels, " channels and patches of 1 to ", max_patch_size, " a side");
  TORCH_CHECK_VALUE(in.images.size(1) % in.patch_size == 0 && in.images.size(2) % in.patch_size == 0,
                    "patch_mse: the images are no grid of patches");
  const int64_t shape[] = {in.batch(), in.predicted(), in.pixels()};
  TORCH_CHECK_VALUE(in.prediction.sizes() == at::IntArrayRef(shape) && in.index.numel() > 0,
                    "patch_mse: prediction must be [B, M, p * p * C] with B and M from 1, not ", in.prediction.sizes());
  TORCH_CHECK_VALUE(!in.normalise || in.pixels() > 1, "patch_mse: a patch of one number has no variance");
  const auto channels = static_cast<size_t>(in.channels());
  TORCH_CHECK_VALUE(in.mean.size() == channels && in.std.size() == channels,
                    "patch_mse: mean and std need one number per channel");
}

}  // namespace misplace::patch_mse
