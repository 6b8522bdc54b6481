// What the host code of misplace::patch_embed asks of its kernels. No torch header: a .cu file compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shared/patch_embed.h"

namespace misplace::patch_embed {

enum class Kind { uint8, float32, bfloat16, float16 };

struct Batch {
  int64_t images;
  int32_t kept, dim, num_patches;
  const int32_t *src, *pos;  // [images, kept]
};

struct PixelSource {
  const void* data;
  Kind kind;
  Pixels pixels;
  float scale[max_channels], shift[max_channels];
};

// Matrices of `kind` (not uint8); pixels of the weight in walking order; tables in fp32.
struct Forward {
  const void* weight;  // [D, P]
  const float *bias, *table, *class_token, *no_position;
  void* out;  // [B, 1 + K, D]
};

constexpr int chunk = 32;  // of the dimension that a product adds up

void launch_forward(Kind kind, const Batch& batch, const PixelSource& from, const Forward& to, cudaStream_t stream);

// parts[split, d, walked]: one split's share of the weight's gradient; each sums `tokens_each` tokens.
void launch_weight(Kind kind, const Batch& batch, const PixelSource& from, const void* gradient, float* parts,
                   int32_t splits, int64_t tokens_each, cudaStream_t stream);

// parts[split, row, d]: row 0 class tokens, 1 + pos (without has_table: 1 for any), the last one without position.
void launch_tables(Kind kind, const Batch& batch, const void* gradient, float* parts, int32_t splits, int32_t rows,
                   bool has_table, bool only_class, cudaStream_t stream);

// Writes every pixel of `images` (fp32, placed as pixels says): zero where no token was made from it.
void launch_image(Kind kind, const Batch& batch, const Pixels& pixels, const float* scale, const void* gradient,
                  const void* weight, float* images, cudaStream_t stream);

}  // namespace misplace::patch_embed
