// A tile of a matrix product on a block of threads: 16-bit factors on tensor cores, fp32 by multiplication and addition
// (never TF32). Whoever calls says where an element of either matrix comes from; nothing needs to exist in memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <type_traits>

#include "cuda/patch_embed_kernel.h"

namespace misplace::patch_embed {

constexpr int threads = 256, tile_rows = 128, tile_columns = 64;
constexpr int padding = 8;  // keeps rows of a tile on different banks

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(uint8_t v) { return static_cast<float>(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <class Scalar>
__device__ __forceinline__ Scalar from_float(float v) {
  if constexpr (std::is_same_v<Scalar, __nv_bfloat16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<Scalar, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<Scalar, float>) return v;
}

template <class Scalar>
struct Tiles {
  union {
    struct {
      Scalar left[tile_rows][chunk + padding], right[tile_columns][chunk + padding];
    };
    float sums[tile_rows][tile_columns + 4];
  };
};

template <class Scalar>
struct TensorCores {
  using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;
  Sums sums[2][2];  // a warp owns 32 x 32; eight warps lie four by two

  __device__ TensorCores() {
    for (auto& row : sums) {
      for (auto& sum : row) nvcuda::wmma::fill_fragment(sum, 0.0f);
    }
  }

  __device__ void add(const Tiles<Scalar>& tiles) {
    namespace wmma = nvcuda::wmma;
    const int row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 32;
#pragma unroll
    for (int k = 0; k < chunk; k += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, Scalar, wmma::row_major> left[2];
      wmma::fragment<wmma::matrix_b, 16, 16, 16, Scalar, wmma::col_major> right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        wmma::load_matrix_sync(left[i], &tiles.left[row + 16 * i][k], chunk + padding);
        wmma::load_matrix_sync(right[i], &tiles.right[column + 16 * i][k], chunk + padding);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) wmma::mma_sync(sums[i][j], left[i], right[j], sums[i][j]);
      }
    }
  }

  __device__ void write(Tiles<Scalar>& tiles) const {
    const int row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        nvcuda::wmma::store_matrix_sync(&tiles.sums[row + 16 * i][column + 16 * j], sums[i][j], tile_columns + 4,
                                        nvcuda::wmma::mem_row_major);
      }
    }
  }
};

struct PlainProduct {
  float sums[8][4] = {};  // a thread owns every sixteenth row and column

  __device__ void add(const Tiles<float>& tiles) {
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
    for (int k = 0; k < chunk; ++k) {
      float left[8], right[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) left[i] = tiles.left[row + 16 * i][k];
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j] = tiles.right[column + 16 * j][k];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
      }
    }
  }

  __device__ void write(Tiles<float>& tiles) const {
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tiles.sums[row + 16 * i][column + 16 * j] = sums[i][j];
    }
  }
};

template <class Scalar>
using Product = std::conditional_t<std::is_same_v<Scalar, float>, PlainProduct, TensorCores<Scalar>>;

// One matrix's share of a chunk into shared memory: element(line, k), where k or the line runs fastest in memory.
template <int lines, bool k_is_fastest, class Scalar, class Element>
__device__ __forceinline__ void fill(Scalar (*tile)[chunk + padding], const Element& element) {
#pragma unroll 4
  for (int i = threadIdx.x; i < lines * chunk; i += threads) {
    const int line = k_is_fastest ? i / chunk : i % lines, k = k_is_fastest ? i % chunk : i / lines;
    tile[line][k] = from_float<Scalar>(element(line, k));
  }
}

}  // namespace misplace::patch_embed
