// What the host code of misplace::token_bce asks of its kernels. No torch header: a .cu file compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shared/token_bce.h"

namespace misplace::token_bce {

enum class Kind { float32, bfloat16, float16 };

constexpr int max_width = 1024;
constexpr int rows_per_block = 8, most_blocks = 528;  // a warp each; four on each of 132 multiprocessors
// the number of a row and one step of the loop over rows fit an int
constexpr int64_t max_rows = (int64_t{1} << 31) - 2 * most_blocks * rows_per_block;

struct Parameters {
  const float *norm_weight, *norm_bias, *weight, *bias;
};

struct Batch {
  const void* tokens;  // [B, offset + K, D], last dimension contiguous
  int64_t image_stride, token_stride;
  int num_rows, kept, offset, width;
  float eps;
  Parameters parameters;
  const bool* flags;   // the target: either these
  const float* targets;  // or these
  const float* token_weight;  // null: all 1
  const float* weight_sum;
  float* logits;
  void* d_tokens;  // contiguous; null: only the values are wanted
  float* direction;  // [blocks, D]
  float* totals;     // [2, blocks]: slopes, losses
};

// Depends on the shape alone.
int blocks_for(int num_rows);

// Logits, gradients of tokens of `kind` (of float16 in float32), and every block's sums.
void launch_rows(Kind kind, const Batch& batch, cudaStream_t stream);

// From those sums the loss and, where d_parameters [3 D + 1] is not null, the parameters' gradients.
void launch_finish(const Batch& batch, float* loss, float* d_parameters, cudaStream_t stream);

// values *= *scale; kind is float32 or bfloat16.
void launch_rescale(Kind kind, void* values, const float* scale, int64_t size, cudaStream_t stream);

}  // namespace misplace::token_bce
