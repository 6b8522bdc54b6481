// token_bce on CUDA: one warp a row, the row in registers, so a token is read once and its gradient written once.
//
// A warp keeps h and its running direction in registers too; a block adds its warps' sums in their order, a second
// kernel the blocks', and the number of blocks depends on the shape alone: a run repeats to the bit.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "cuda/token_bce_kernel.h"

namespace misplace::token_bce {
namespace {

constexpr int lanes = 32, warps = rows_per_block, threads = lanes * warps;
constexpr int finish_columns = 32, finish_parts = 8;
constexpr int64_t rescale_blocks = 1056;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(v);
  else return v;
}

__device__ __forceinline__ float sum_over_warp(float value) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// One access of V numbers; the compiler makes it one instruction where V numbers are 4, 8 or 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

// The columns that a lane holds: N packs of V, 32 V columns apart. Without EXACT the width may end anywhere and V
// is 1.
template <int V, int N, bool EXACT>
struct Columns {
  int lane, width;

  __device__ __forceinline__ int of(int n) const { return (n * lanes + lane) * V; }
  __device__ __forceinline__ bool has(int n) const { return EXACT || of(n) < width; }

  template <class T>
  __device__ __forceinline__ void load(const T* from, float (&into)[N * V]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Pack<T, V> pack{};
      if (has(n)) pack = *reinterpret_cast<const Pack<T, V>*>(from + of(n));
#pragma unroll
      for (int v = 0; v < V; ++v) into[n * V + v] = to_float(pack.values[v]);
    }
  }

  template <class T>
  __device__ __forceinline__ void store(T* to, const float (&values)[N * V]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.values[v] = from_float<T>(values[n * V + v]);
      if (has(n)) *reinterpret_cast<Pack<T, V>*>(to + of(n)) = pack;
    }
  }
};

// h into the lane's registers; returns the logit of a row of zeros.
template <int V, int N, bool EXACT>
__device__ float prepare(const Parameters& parameters, const Columns<V, N, EXACT>& columns, float (&h)[N * V]) {
  float head[N * V], at_zero = 0, sum = 0;
  columns.load(parameters.norm_bias, h);
  columns.load(parameters.weight, head);
#pragma unroll
  for (int i = 0; i < N * V; ++i) at_zero += h[i] * head[i];
  columns.load(parameters.norm_weight, h);
#pragma unroll
  for (int i = 0; i < N * V; ++i) sum += h[i] *= head[i];
  const float mean = sum_over_warp(sum) / columns.width;
#pragma unroll
  for (int i = 0; i < N * V; ++i) h[i] = columns.has(i / V) ? h[i] - mean : 0;
  return sum_over_warp(at_zero) + *parameters.bias;
}

template <class T, class G, int V, int N, bool EXACT>
__global__ void __launch_bounds__(threads) rows_kernel(const Batch batch) {
  extern __shared__ __align__(16) float shared[];  // [warps, D]
  __shared__ float shared_slopes[warps], shared_losses[warps];
  const int warp = threadIdx.x / lanes, lane = threadIdx.x % lanes, width = batch.width;
  const Columns<V, N, EXACT> columns{lane, width};
  float h[N * V], direction[N * V] = {}, slopes = 0, losses = 0;
  const float constant = prepare(batch.parameters, columns, h);
  const float share = 1 / (batch.weight_sum ? *batch.weight_sum : static_cast<float>(batch.num_rows));

  for (int row = blockIdx.x * warps + warp; row < batch.num_rows; row += gridDim.x * warps) {
    const int64_t image = row / batch.kept, token = row % batch.kept;
    float x[N * V], sum = 0, squares = 0, products = 0;
    const int64_t start = image * batch.image_stride + (batch.offset + token) * batch.token_stride;
    columns.load(static_cast<const T*>(batch.tokens) + start, x);
#pragma unroll
    for (int i = 0; i < N * V; ++i) sum += x[i];
    const float mean = sum_over_warp(sum) / width;
#pragma unroll
    for (int i = 0; i < N * V; ++i) {
      x[i] = columns.has(i / V) ? x[i] - mean : 0;
      squares += x[i] * x[i];
      products += x[i] * h[i];
    }
    const float rstd = 1 / sqrtf(sum_over_warp(squares) / width + batch.eps);
    const float projected = rstd * sum_over_warp(products), logit = projected + constant;
    if (lane == 0) batch.logits[row] = logit;
    const float target = batch.flags ? static_cast<float>(batch.flags[row]) : batch.targets[row];
    const float token_weight = batch.token_weight ? batch.token_weight[row] : 1;
    const Bce<float> bce = bce_with_logits(logit, target);
    losses += bce.loss * token_weight;
    if (!batch.d_tokens) continue;

    const float slope = bce.slope * token_weight * share;
    const RowGradient<float> d = row_gradient(slope, rstd, projected, 1.0f / width);
    slopes += slope;
#pragma unroll
    for (int i = 0; i < N * V; ++i) {
      direction[i] += d.toward_h * x[i];
      x[i] = d.toward_h * h[i] - d.toward_x * x[i];
    }
    G* of_image = static_cast<G*>(batch.d_tokens) + image * (batch.offset + batch.kept) * width;
    columns.store(of_image + (batch.offset + token) * width, x);
    if (token == 0) {
      for (int i = lane; i < batch.offset * width; i += lanes) of_image[i] = from_float<G>(0.0f);
    }
  }

  if (lane == 0) shared_slopes[warp] = slopes, shared_losses[warp] = losses;
  if (batch.d_tokens) columns.store(shared + warp * width, direction);
  __syncthreads();
  if (batch.d_tokens) {
    for (int i = threadIdx.x; i < width; i += threads) {
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += shared[w * width + i];
      batch.direction[int64_t{blockIdx.x} * width + i] = sum;
    }
  }
  if (threadIdx.x == 0) {
    float all_slopes = 0, all_losses = 0;
    for (int w = 0; w < warps; ++w) all_slopes += shared_slopes[w], all_losses += shared_losses[w];
    batch.totals[blockIdx.x] = all_slopes;
    batch.totals[gridDim.x + blockIdx.x] = all_losses;
  }
}

// All `count` numbers by one warp, in an order that depends on the count alone.
__device__ float sum_by_warp(const float* values, int count, int lane) {
  float sum = 0;
  for (int i = lane; i < count; i += lanes) sum += values[i];
  return sum_over_warp(sum);
}

// Block of 32 columns x 8 parts: every part adds each eighth partial sum.
__global__ void finish_kernel(const float* direction, const float* totals, Parameters parameters,
                              const float* weight_sum, float* loss, float* d_parameters, int blocks, int num_rows,
                              int width) {
  __shared__ float shared[finish_parts][finish_columns];
  const int lane = threadIdx.x % finish_columns, part = threadIdx.x / finish_columns;
  if (blockIdx.x == 0 && part == 0) {
    const float losses = sum_by_warp(totals + blocks, blocks, lane);
    if (lane == 0) *loss = losses / (weight_sum ? *weight_sum : static_cast<float>(num_rows));
  }
  if (!d_parameters) return;
  const int column = blockIdx.x * finish_columns + lane;
  float sum = 0;
  for (int block = part; column < width && block < blocks; block += finish_parts) {
    sum += direction[int64_t{block} * width + column];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part != 0) return;
  const float slopes = sum_by_warp(totals, blocks, lane);
  if (blockIdx.x == 0 && lane == 0) d_parameters[3 * width] = slopes;
  if (column >= width) return;
  for (int p = 1; p < finish_parts; ++p) sum += shared[p][lane];
  const auto d = parameter_gradient(sum, slopes, parameters.norm_weight[column], parameters.norm_bias[column],
                                    parameters.weight[column]);
  d_parameters[column] = d.norm_weight;
  d_parameters[width + column] = d.norm_bias;
  d_parameters[2 * width + column] = d.weight;
}

template <class G>
__global__ void rescale_kernel(G* values, const float* scale_ptr, int64_t size) {
  const float scale = *scale_ptr;
  if (scale == 1) return;
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < size; i += int64_t{gridDim.x} * threads) {
    values[i] = from_float<G>(to_float(values[i]) * scale);
  }
}

template <class T, class G, int V, int N, bool EXACT>
void launch_columns(const Batch& batch, cudaStream_t stream) {
  static_assert(warps * max_width * sizeof(float) <= 40 << 10, "more shared memory must be asked for");
  const size_t bytes = batch.d_tokens ? warps * batch.width * sizeof(float) : 0;
  rows_kernel<T, G, V, N, EXACT><<<blocks_for(batch.num_rows), threads, bytes, stream>>>(batch);
}

// Wide accesses where the usual widths divide into them and every row starts on a 16-byte boundary.
template <class T, class G>
void launch_for_width(const Batch& batch, cudaStream_t stream) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const Parameters& parameters = batch.parameters;
  const bool wide = aligned(batch.tokens) && aligned(batch.d_tokens) && batch.image_stride % 8 == 0 &&
                    batch.token_stride % 8 == 0 && aligned(parameters.norm_weight) && aligned(parameters.norm_bias) &&
                    aligned(parameters.weight);
  switch (wide ? batch.width : 0) {
    case 192: return launch_columns<T, G, 2, 3, true>(batch, stream);
    case 384: return launch_columns<T, G, 4, 3, true>(batch, stream);
    case 768: return launch_columns<T, G, 4, 6, true>(batch, stream);
    case 1024: return launch_columns<T, G, 4, 8, true>(batch, stream);
  }
  if (batch.width <= 256) return launch_columns<T, G, 1, 8, false>(batch, stream);
  if (batch.width <= 512) return launch_columns<T, G, 1, 16, false>(batch, stream);
  launch_columns<T, G, 1, 32, false>(batch, stream);
}

template <class G>
void launch_rescale_of(void* values, const float* scale, int64_t size, cudaStream_t stream) {
  const int64_t blocks = std::min(rescale_blocks, (size + threads - 1) / threads);
  rescale_kernel<<<static_cast<int>(blocks), threads, 0, stream>>>(static_cast<G*>(values), scale, size);
}

}  // namespace

int blocks_for(int num_rows) { return std::min(most_blocks, (num_rows + warps - 1) / warps); }

void launch_rows(Kind kind, const Batch& batch, cudaStream_t stream) {
  switch (kind) {
    case Kind::float32: return launch_for_width<float, float>(batch, stream);
    case Kind::bfloat16: return launch_for_width<__nv_bfloat16, __nv_bfloat16>(batch, stream);
    case Kind::float16: return launch_for_width<__half, float>(batch, stream);
  }
}

void launch_finish(const Batch& batch, float* loss, float* d_parameters, cudaStream_t stream) {
  const int blocks = d_parameters ? (batch.width + finish_columns - 1) / finish_columns : 1;
  finish_kernel<<<blocks, finish_columns * finish_parts, 0, stream>>>(
      batch.direction, batch.totals, batch.parameters, batch.weight_sum, loss, d_parameters,
      blocks_for(batch.num_rows), batch.num_rows, batch.width);
}

void launch_rescale(Kind kind, void* values, const float* scale, int64_t size, cudaStream_t stream) {
  if (kind == Kind::bfloat16) return launch_rescale_of<__nv_bfloat16>(values, scale, size, stream);
  launch_rescale_of<float>(values, scale, size, stream);
}

}  // namespace misplace::token_bce
