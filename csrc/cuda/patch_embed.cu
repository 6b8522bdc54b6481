// patch_embed on the GPU: a block makes a tile of tokens straight from the pixels of their patches.
//
// Formula       kernels/patch_embed/reference.py. Bytes, operations and why it beats eager: triton.py beside it.
// Saved         nothing: the backward reads the patches again.
// Sums          in an order that shapes alone decide: splits of the tokens whose parts the host adds, no atomics.
#include "cuda/patch_embed_product.h"

namespace misplace::patch_embed {
namespace {

// By selection: an index that is not known would put the numbers into local memory.
__device__ __forceinline__ float of_channel(const float (&number)[max_channels], int channel) {
  return channel == 0 ? number[0] : channel == 1 ? number[1] : channel == 2 ? number[2] : number[3];
}

// Where the walked pixels of one chunk or tile lie, and their normalisation: divisions once, not for every token.
template <int count>
struct Offsets {
  int64_t offset[count];
  float scale[count], shift[count];

  __device__ void fill(const PixelSource& from, int first, int num_pixels) {
    for (int i = threadIdx.x; i < count; i += threads) {
      const bool inside = first + i < num_pixels;
      const Place at = place_of(from.pixels, inside ? first + i : 0);
      offset[i] = pixel_offset(from.pixels, at);
      scale[i] = inside ? of_channel(from.scale, at.channel) : 0.0f;
      shift[i] = inside ? of_channel(from.shift, at.channel) : 0.0f;
    }
  }

  template <class Pixel>
  __device__ float pixel(const Pixel* patch, int i) const {
    return scale[i] == 0.0f ? 0.0f : fmaf(to_float(patch[offset[i]]), scale[i], shift[i]);
  }
};

template <int count>
struct Starts {
  int64_t start[count];

  __device__ void fill(const Pixels& pixels, const Batch& batch, int64_t first) {
    const int64_t last = batch.images * batch.kept - 1;
    for (int i = threadIdx.x; i < count; i += threads) {
      const int64_t token = min(first + i, last);
      start[i] = token / batch.kept * pixels.image_stride + patch_start(pixels, batch.src[token]);
    }
  }
};

template <class Scalar, class Pixel>
__global__ void __launch_bounds__(threads, 2) forward_kernel(Batch batch, PixelSource from, Forward to) {
  __shared__ Tiles<Scalar> tiles;
  __shared__ Offsets<chunk> pixels;
  __shared__ Starts<tile_rows> patches;
  const int num_pixels = from.pixels.patch_size * from.pixels.patch_size * from.pixels.channels;
  const int column_blocks = (batch.dim + tile_columns - 1) / tile_columns;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x / column_blocks) * tile_rows;
  const int first_d = static_cast<int>(blockIdx.x % column_blocks) * tile_columns;
  const Pixel* images = static_cast<const Pixel*>(from.data);
  const Scalar* weight = static_cast<const Scalar*>(to.weight);
  patches.fill(from.pixels, batch, first_token);
  Product<Scalar> product;
  for (int first = 0; first < num_pixels; first += chunk) {
    pixels.fill(from, first, num_pixels);
    __syncthreads();
    fill<tile_rows, true>(tiles.left, [&](int row, int k) { return pixels.pixel(images + patches.start[row], k); });
    fill<tile_columns, true>(tiles.right, [&](int column, int k) {
      const bool inside = first_d + column < batch.dim && first + k < num_pixels;
      return inside ? to_float(weight[static_cast<int64_t>(first_d + column) * num_pixels + first + k]) : 0.0f;
    });
    __syncthreads();
    product.add(tiles);
    __syncthreads();
  }
  product.write(tiles);
  __syncthreads();
  Scalar* out = static_cast<Scalar*>(to.out);
  for (int i = threadIdx.x; i < tile_rows * tile_columns; i += threads) {
    const int64_t token = first_token + i / tile_columns;
    const int d = first_d + i % tile_columns;
    if (token >= batch.images * batch.kept || d >= batch.dim) continue;
    const int32_t pos = batch.pos[token];
    const int64_t image = token / batch.kept, row = token + image + 1;
    const float position = pos < 0 ? to.no_position[d] : to.table[static_cast<int64_t>(1 + pos) * batch.dim + d];
    const float sum = tiles.sums[i / tile_columns][i % tile_columns];
    out[row * batch.dim + d] = from_float<Scalar>(sum + (to.bias[d] + position));
    // whoever has an image's first token writes its class token, too
    if (token == image * batch.kept) {
      out[(row - 1) * batch.dim + d] = from_float<Scalar>(to.class_token[d] + to.table[d]);
    }
  }
}

template <class Scalar, class Pixel>
__global__ void __launch_bounds__(threads, 2)
    weight_kernel(Batch batch, PixelSource from, const Scalar* gradient, float* parts, int64_t tokens_each) {
  __shared__ Tiles<Scalar> tiles;
  __shared__ Offsets<tile_columns> pixels;
  __shared__ Starts<chunk> patches;
  const int num_pixels = from.pixels.patch_size * from.pixels.patch_size * from.pixels.channels;
  const int first_d = blockIdx.x * tile_rows, first_pixel = blockIdx.y * tile_columns;
  const int64_t begin = blockIdx.z * tokens_each, end = min(begin + tokens_each, batch.images * batch.kept);
  const Pixel* images = static_cast<const Pixel*>(from.data);
  pixels.fill(from, first_pixel, num_pixels);
  Product<Scalar> product;
  for (int64_t first = begin; first < end; first += chunk) {
    patches.fill(from.pixels, batch, first);
    __syncthreads();
    fill<tile_rows, false>(tiles.left, [&](int row, int k) {
      const int64_t token = first + k;
      if (token >= end || first_d + row >= batch.dim) return 0.0f;
      return to_float(gradient[(token + token / batch.kept + 1) * batch.dim + first_d + row]);
    });
    fill<tile_columns, false>(tiles.right,
                              [&](int column, int k) { return pixels.pixel(images + patches.start[k], column); });
    __syncthreads();
    product.add(tiles);
    __syncthreads();
  }
  product.write(tiles);
  __syncthreads();
  for (int i = threadIdx.x; i < tile_rows * tile_columns; i += threads) {
    const int d = first_d + i / tile_columns, walked = first_pixel + i % tile_columns;
    if (d >= batch.dim || walked >= num_pixels) continue;
    const int64_t row = static_cast<int64_t>(blockIdx.z) * batch.dim + d;
    parts[row * num_pixels + walked] = tiles.sums[i / tile_columns][i % tile_columns];
  }
}

constexpr int lanes = 32;
constexpr int shared_rows = 380;  // of 32 columns, in the 48 KB that every block may have

// A warp owns 32 columns of some images' tokens; its part lies in shared memory, or in `parts` where it is too large.
template <class Scalar, bool in_shared>
__global__ void __launch_bounds__(lanes) table_kernel(Batch batch, const Scalar* gradient, float* parts, int32_t rows,
                                                      int64_t images_each, bool has_table, bool only_class) {
  __shared__ float board[in_shared ? shared_rows * lanes : 1];
  const int d = blockIdx.x * lanes + threadIdx.x;
  if (d >= batch.dim) return;
  float* part = parts + static_cast<int64_t>(blockIdx.y) * rows * batch.dim + d;
  float* sums = in_shared ? board + threadIdx.x : part;
  const int64_t stride = in_shared ? lanes : batch.dim;
  for (int row = 0; row < rows; ++row) sums[row * stride] = 0.0f;
  const int64_t begin = blockIdx.y * images_each, end = min(begin + images_each, batch.images);
  for (int64_t image = begin; image < end; ++image) {
    const Scalar* token = gradient + image * (1 + batch.kept) * batch.dim + d;
    sums[0] += to_float(token[0]);
    if (only_class) continue;
#pragma unroll 4
    for (int k = 0; k < batch.kept; ++k) {
      const int32_t pos = batch.pos[image * batch.kept + k];
      const int row = pos < 0 ? rows - 1 : has_table ? 1 + pos : 1;
      sums[row * stride] += to_float(token[static_cast<int64_t>(1 + k) * batch.dim]);
    }
  }
  if constexpr (in_shared) {
    for (int row = 0; row < rows; ++row) part[static_cast<int64_t>(row) * batch.dim] = sums[row * stride];
  }
}

// The first token made from a patch, and whether there are more: plans keep a patch once, callers need not.
struct Makers {
  int32_t first[tile_rows];
  bool more[tile_rows];

  __device__ void fill(const Batch& batch, int64_t image, int first_patch) {
    for (int i = threadIdx.x; i < tile_rows; i += threads) {
      first[i] = -1, more[i] = false;
      for (int k = 0; k < batch.kept; ++k) {
        if (batch.src[image * batch.kept + k] != first_patch + i) continue;
        more[i] = first[i] >= 0;
        if (more[i]) break;
        first[i] = k;
      }
    }
  }
};

template <class Scalar>
__global__ void __launch_bounds__(threads, 2) image_kernel(Batch batch, PixelSource from, const Scalar* gradient,
                                                           const Scalar* weight, float* images) {
  __shared__ Tiles<Scalar> tiles;
  __shared__ Offsets<tile_columns> pixels;
  __shared__ Makers makers;
  const int num_pixels = from.pixels.patch_size * from.pixels.patch_size * from.pixels.channels;
  const int64_t image = blockIdx.x;
  const int first_patch = blockIdx.y * tile_rows, first_pixel = blockIdx.z * tile_columns;
  const Scalar* tokens = gradient + (image * (1 + batch.kept) + 1) * batch.dim;
  makers.fill(batch, image, first_patch);
  pixels.fill(from, first_pixel, num_pixels);
  Product<Scalar> product;
  for (int first = 0; first < batch.dim; first += chunk) {
    __syncthreads();
    fill<tile_rows, true>(tiles.left, [&](int row, int k) {
      const int d = first + k, maker = makers.first[row];
      if (d >= batch.dim || maker < 0) return 0.0f;
      float sum = to_float(tokens[static_cast<int64_t>(maker) * batch.dim + d]);
      for (int other = maker + 1; makers.more[row] && other < batch.kept; ++other) {
        const bool made = batch.src[image * batch.kept + other] == first_patch + row;
        if (made) sum += to_float(tokens[static_cast<int64_t>(other) * batch.dim + d]);
      }
      return sum;
    });
    fill<tile_columns, false>(tiles.right, [&](int column, int k) {
      const bool inside = first + k < batch.dim && first_pixel + column < num_pixels;
      return inside ? to_float(weight[static_cast<int64_t>(first + k) * num_pixels + first_pixel + column]) : 0.0f;
    });
    __syncthreads();
    product.add(tiles);
  }
  __syncthreads();
  product.write(tiles);
  __syncthreads();
  for (int i = threadIdx.x; i < tile_rows * tile_columns; i += threads) {
    const int patch = first_patch + i / tile_columns, column = i % tile_columns;
    if (patch >= batch.num_patches || first_pixel + column >= num_pixels) continue;
    images[image * from.pixels.image_stride + patch_start(from.pixels, patch) + pixels.offset[column]] =
        tiles.sums[i / tile_columns][column] * pixels.scale[column];
  }
}

template <class Function>
void with_scalar(Kind kind, Function function) {
  if (kind == Kind::bfloat16) return function(__nv_bfloat16{});
  if (kind == Kind::float16) return function(__half{});
  function(float{});
}

template <class Function>
void with_pixel(Kind kind, Function function) {
  kind == Kind::uint8 ? function(uint8_t{}) : function(float{});
}

unsigned blocks_of(int64_t size, int64_t block) { return static_cast<unsigned>((size + block - 1) / block); }

int32_t pixels_of_patch(const Pixels& p) { return p.patch_size * p.patch_size * p.channels; }

}  // namespace

void launch_forward(Kind kind, const Batch& batch, const PixelSource& from, const Forward& to, cudaStream_t stream) {
  const unsigned blocks = blocks_of(batch.images * batch.kept, tile_rows) * blocks_of(batch.dim, tile_columns);
  with_scalar(kind, [&](auto scalar) {
    with_pixel(from.kind, [&](auto pixel) {
      forward_kernel<decltype(scalar), decltype(pixel)><<<blocks, threads, 0, stream>>>(batch, from, to);
    });
  });
}

void launch_weight(Kind kind, const Batch& batch, const PixelSource& from, const void* gradient, float* parts,
                   int32_t splits, int64_t tokens_each, cudaStream_t stream) {
  const dim3 blocks(blocks_of(batch.dim, tile_rows), blocks_of(pixels_of_patch(from.pixels), tile_columns), splits);
  with_scalar(kind, [&](auto scalar) {
    using Scalar = decltype(scalar);
    with_pixel(from.kind, [&](auto pixel) {
      weight_kernel<Scalar, decltype(pixel)><<<blocks, threads, 0, stream>>>(
          batch, from, static_cast<const Scalar*>(gradient), parts, tokens_each);
    });
  });
}

void launch_tables(Kind kind, const Batch& batch, const void* gradient, float* parts, int32_t splits, int32_t rows,
                   bool has_table, bool only_class, cudaStream_t stream) {
  const dim3 blocks(blocks_of(batch.dim, lanes), splits);
  const int64_t each = (batch.images + splits - 1) / splits;
  with_scalar(kind, [&](auto scalar) {
    using Scalar = decltype(scalar);
    const auto kernel = rows <= shared_rows ? table_kernel<Scalar, true> : table_kernel<Scalar, false>;
    kernel<<<blocks, lanes, 0, stream>>>(batch, static_cast<const Scalar*>(gradient), parts, rows, each, has_table,
                                         only_class);
  });
}

void launch_image(Kind kind, const Batch& batch, const Pixels& pixels, const float* scale, const void* gradient,
                  const void* weight, float* images, cudaStream_t stream) {
  PixelSource place{nullptr, Kind::float32, pixels, {}, {}};
  for (int c = 0; c < pixels.channels; ++c) place.scale[c] = scale[c];
  const dim3 blocks(static_cast<unsigned>(batch.images), blocks_of(batch.num_patches, tile_rows),
                    blocks_of(pixels_of_patch(pixels), tile_columns));
  with_scalar(kind, [&](auto scalar) {
    using Scalar = decltype(scalar);
    image_kernel<Scalar><<<blocks, threads, 0, stream>>>(batch, place, static_cast<const Scalar*>(gradient),
                                                         static_cast<const Scalar*>(weight), images);
  });
}

}  // namespace misplace::patch_embed
