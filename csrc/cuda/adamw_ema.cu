// AdamW, the EMA teacher and the bfloat16 copies on the GPU: one launch for up to max_tensors tensors.
//
// Addresses, sizes and decays travel as the kernel's parameters: there is no table to copy to the device or to keep
// alive, and a captured CUDA graph holds its own. Each block updates one piece of one tensor, 16 bytes a load.
// Scalars held in tensors are turned into coefficients on the device by one thread of a launch before.
#include "cuda/adamw_ema_kernel.h"
#include "cuda/adamw_ema_piece.h"

namespace misplace::adamw_ema {
namespace {

// The first tensor whose pieces end after this block's.
__device__ int tensor_of(const Batch& batch, uint32_t block) {
  int low = 0, high = batch.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (batch.end[middle] > block) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__global__ void __launch_bounds__(threads)
    adamw_ema_kernel(const __grid_constant__ Batch batch, const Coefficients given, const Coefficients* on_device) {
  if (on_device && on_device->found_inf != 0) return;
  const Coefficients c = on_device ? *on_device : given;
  const int tensor = tensor_of(batch, blockIdx.x);
  const uint32_t first_block = tensor ? batch.end[tensor - 1] : 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x - first_block) * piece_size;
  const int64_t end = min(begin + piece_size, batch.size[tensor]);
  if (batch.aligned[tensor] && end - begin == piece_size) {
    Piece<width> pieces[vectors];  // all loads are on their way before the first is used
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      load_piece(pieces[i], batch, tensor, begin + (i * threads + threadIdx.x) * width);
    }
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      update_piece(pieces[i], batch, tensor, begin + (i * threads + threadIdx.x) * width, c);
    }
    return;
  }
  for (int64_t at = begin + threadIdx.x; at < end; at += threads) {
    Piece<1> piece;
    load_piece(piece, batch, tensor, at);
    update_piece(piece, batch, tensor, at, c);
  }
}

__device__ double read(const Source& source) {
  if (!source.address) return source.number;
  if (source.type == NumberType::float32) return *static_cast<const float*>(source.address);
  if (source.type == NumberType::float64) return *static_cast<const double*>(source.address);
  return static_cast<double>(*static_cast<const int64_t*>(source.address));
}

__global__ void coefficients_kernel(const Sources sources, const Settings by, Coefficients* to) {
  const Numbers now{read(sources.of[0]), read(sources.of[1]), read(sources.of[2]), read(sources.of[3]),
                    read(sources.of[4]), read(sources.of[5])};
  *to = coefficients(now, by);
}

}  // namespace

void launch_coefficients(const Sources& sources, const Settings& by, Coefficients* to, cudaStream_t stream) {
  coefficients_kernel<<<1, 1, 0, stream>>>(sources, by, to);
}

void launch(const Batch& batch, const Coefficients& given, const Coefficients* on_device, cudaStream_t stream) {
  adamw_ema_kernel<<<batch.end[batch.count - 1], threads, 0, stream>>>(batch, given, on_device);
}

}  // namespace misplace::adamw_ema
