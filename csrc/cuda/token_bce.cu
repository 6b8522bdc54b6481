// token_bce on CUDA: one warp a row, the row in registers, so a token is read once and its gradient written once.
//
// A warp keeps h and its running direction in registers too; a block adds its warps' sums in their order, a second
// kernel the blocks', and the number of blocks depends on the shape alone: a run repeats to the bit.
#include "token_bce.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>

namespace misplace::token_bce {
namespace {

constexpr int lanes = 32, warps = 8, threads = lanes * warps;
constexpr int most_blocks = 528;  // four on each of 132 multiprocessors
constexpr int max_width = 1024;
constexpr int64_t max_rows = (int64_t{1} << 31) - 2 * most_blocks * warps;  // a row's number and one step fit an int
constexpr int finish_columns = 32, finish_parts = 8;
constexpr int rescale_blocks = 1056;

struct Parameters {
  const float *norm_weight, *norm_bias, *weight, *bias;
};

template <class T, class G>
struct Rows {
  const T* tokens;  // [B, offset + K, D], last dimension contiguous
  int64_t image_stride, token_stride;
  int num_rows, kept, offset, width;
  float eps;
  Parameters parameters;
  const bool* flags;   // the target: either these
  const float* targets;  // or these
  const float* token_weight;  // null: all 1
  const float* weight_sum;
  float* logits;
  G* d_tokens;  // contiguous; null: only the values are wanted
  float* direction;  // [blocks, D]
  float* totals;     // [2, blocks]: slopes, losses
};

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
      for (int v = 0; v < V; ++v) into[n * V + v] = static_cast<float>(pack.values[v]);
    }
  }

  template <class T>
  __device__ __forceinline__ void store(T* to, const float (&values)[N * V]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.values[v] = static_cast<T>(values[n * V + v]);
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
__global__ void __launch_bounds__(threads) rows_kernel(const Rows<T, G> rows) {
  extern __shared__ __align__(16) float shared[];  // [warps, D]
  __shared__ float shared_slopes[warps], shared_losses[warps];
  const int warp = threadIdx.x / lanes, lane = threadIdx.x % lanes, width = rows.width;
  const Columns<V, N, EXACT> columns{lane, width};
  float h[N * V], direction[N * V] = {}, slopes = 0, losses = 0;
  const float constant = prepare(rows.parameters, columns, h);
  const float share = 1 / (rows.weight_sum ? *rows.weight_sum : static_cast<float>(rows.num_rows));

  for (int row = blockIdx.x * warps + warp; row < rows.num_rows; row += gridDim.x * warps) {
    const int64_t image = row / rows.kept, token = row % rows.kept;
    float x[N * V], sum = 0, squares = 0, products = 0;
    columns.load(rows.tokens + image * rows.image_stride + (rows.offset + token) * rows.token_stride, x);
#pragma unroll
    for (int i = 0; i < N * V; ++i) sum += x[i];
    const float mean = sum_over_warp(sum) / width;
#pragma unroll
    for (int i = 0; i < N * V; ++i) {
      x[i] = columns.has(i / V) ? x[i] - mean : 0;
      squares += x[i] * x[i];
      products += x[i] * h[i];
    }
    const float rstd = 1 / sqrtf(sum_over_warp(squares) / width + rows.eps);
    const float projected = rstd * sum_over_warp(products), logit = projected + constant;
    if (lane == 0) rows.logits[row] = logit;
    const float target = rows.flags ? static_cast<float>(rows.flags[row]) : rows.targets[row];
    const float token_weight = rows.token_weight ? rows.token_weight[row] : 1;
    const Bce<float> bce = bce_with_logits(logit, target);
    losses += bce.loss * token_weight;
    if (!rows.d_tokens) continue;

    const float slope = bce.slope * token_weight * share;
    const RowGradient<float> d = row_gradient(slope, rstd, projected, 1.0f / width);
    slopes += slope;
#pragma unroll
    for (int i = 0; i < N * V; ++i) {
      direction[i] += d.toward_h * x[i];
      x[i] = d.toward_h * h[i] - d.toward_x * x[i];
    }
    G* of_image = rows.d_tokens + image * (rows.offset + rows.kept) * width;
    columns.store(of_image + (rows.offset + token) * width, x);
    if (token == 0) {
      for (int i = lane; i < rows.offset * width; i += lanes) of_image[i] = static_cast<G>(0.0f);
    }
  }

  if (lane == 0) shared_slopes[warp] = slopes, shared_losses[warp] = losses;
  if (rows.d_tokens) columns.store(shared + warp * width, direction);
  __syncthreads();
  if (rows.d_tokens) {
    for (int i = threadIdx.x; i < width; i += threads) {
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += shared[w * width + i];
      rows.direction[int64_t{blockIdx.x} * width + i] = sum;
    }
  }
  if (threadIdx.x == 0) {
    float all_slopes = 0, all_losses = 0;
    for (int w = 0; w < warps; ++w) all_slopes += shared_slopes[w], all_losses += shared_losses[w];
    rows.totals[blockIdx.x] = all_slopes;
    rows.totals[gridDim.x + blockIdx.x] = all_losses;
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
    values[i] = static_cast<G>(static_cast<float>(values[i]) * scale);
  }
}

template <class T, class G, int V, int N, bool EXACT>
void launch_rows(const Rows<T, G>& rows, int blocks, cudaStream_t stream) {
  const auto kernel = rows_kernel<T, G, V, N, EXACT>;
  const int bytes = rows.d_tokens ? static_cast<int>(warps * rows.width * sizeof(float)) : 0;
  if (bytes > 40 << 10) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  kernel<<<blocks, threads, bytes, stream>>>(rows);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Wide accesses where the usual widths divide into them and every row starts on a 16-byte boundary.
template <class T, class G>
void launch_for_width(const Rows<T, G>& rows, int blocks, cudaStream_t stream) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const Parameters& parameters = rows.parameters;
  const bool wide = aligned(rows.tokens) && aligned(rows.d_tokens) && rows.image_stride % 8 == 0 &&
                    rows.token_stride % 8 == 0 && aligned(parameters.norm_weight) && aligned(parameters.norm_bias) &&
                    aligned(parameters.weight);
  switch (wide ? rows.width : 0) {
    case 192: return launch_rows<T, G, 2, 3, true>(rows, blocks, stream);
    case 384: return launch_rows<T, G, 4, 3, true>(rows, blocks, stream);
    case 768: return launch_rows<T, G, 4, 6, true>(rows, blocks, stream);
    case 1024: return launch_rows<T, G, 4, 8, true>(rows, blocks, stream);
  }
  if (rows.width <= 256) return launch_rows<T, G, 1, 8, false>(rows, blocks, stream);
  if (rows.width <= 512) return launch_rows<T, G, 1, 16, false>(rows, blocks, stream);
  launch_rows<T, G, 1, 32, false>(rows, blocks, stream);
}

template <class T, class G>
Result compute(const Inputs& in, bool gradients) {
  const auto as_float = [](const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); };
  const c10::cuda::CUDAGuard guard(in.tokens.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto options = in.tokens.options().dtype(at::kFloat);
  const int64_t width = in.width();
  const int num_rows = static_cast<int>(in.num_rows());
  const int blocks = std::min(most_blocks, (num_rows + warps - 1) / warps);
  at::Tensor loss = at::empty({}, options), logits = at::empty({in.batch(), in.kept()}, options);
  at::Tensor d_tokens = at::empty({0}, in.tokens.options().dtype(c10::CppTypeToScalarType<G>::value));
  at::Tensor d_parameters = at::empty({0}, options), direction = d_parameters, totals = at::empty({2, blocks}, options);
  if (gradients) {
    d_tokens = at::empty(in.tokens.sizes(), d_tokens.options());
    d_parameters = at::empty({3 * width + 1}, options);
    direction = at::empty({blocks, width}, options);
  }
  const at::Tensor tokens = in.tokens.stride(2) == 1 || width == 1 ? in.tokens : in.tokens.contiguous();
  const at::Tensor norm_weight = as_float(in.norm_weight), norm_bias = as_float(in.norm_bias);
  const at::Tensor weight = as_float(in.weight), bias = as_float(in.bias);
  const bool is_flag = in.target.scalar_type() == at::kBool;
  const at::Tensor target = is_flag ? in.target.contiguous() : as_float(in.target);
  const at::Tensor token_weight = in.token_weight ? as_float(*in.token_weight) : at::Tensor();
  const at::Tensor weight_sum = in.token_weight ? at::sum(token_weight) : at::Tensor();
  const Parameters parameters{norm_weight.const_data_ptr<float>(), norm_bias.const_data_ptr<float>(),
                              weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
  const Rows<T, G> rows{
      .tokens = tokens.const_data_ptr<T>(),
      .image_stride = tokens.stride(0),
      .token_stride = tokens.stride(1),
      .num_rows = num_rows,
      .kept = static_cast<int>(in.kept()),
      .offset = static_cast<int>(in.offset),
      .width = static_cast<int>(width),
      .eps = static_cast<float>(in.eps),
      .parameters = parameters,
      .flags = is_flag ? target.const_data_ptr<bool>() : nullptr,
      .targets = is_flag ? nullptr : target.const_data_ptr<float>(),
      .token_weight = in.token_weight ? token_weight.const_data_ptr<float>() : nullptr,
      .weight_sum = in.token_weight ? weight_sum.const_data_ptr<float>() : nullptr,
      .logits = logits.mutable_data_ptr<float>(),
      .d_tokens = gradients ? d_tokens.mutable_data_ptr<G>() : nullptr,
      .direction = gradients ? direction.mutable_data_ptr<float>() : nullptr,
      .totals = totals.mutable_data_ptr<float>(),
  };
  launch_for_width(rows, blocks, stream);
  const int finish_blocks = gradients ? static_cast<int>((width + finish_columns - 1) / finish_columns) : 1;
  finish_kernel<<<finish_blocks, finish_columns * finish_parts, 0, stream>>>(
      rows.direction, rows.totals, parameters, rows.weight_sum, loss.mutable_data_ptr<float>(),
      gradients ? d_parameters.mutable_data_ptr<float>() : nullptr, blocks, num_rows, static_cast<int>(width));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, logits, d_tokens, d_parameters};
}

Result token_bce_cuda(const at::Tensor& tokens, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                      const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& target,
                      const std::optional<at::Tensor>& token_weight, int64_t offset, double eps, bool gradients) {
  const Inputs in{tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps};
  check(in);
  TORCH_CHECK_VALUE(in.width() <= max_width, "token_bce: impl=native takes widths up to ", max_width,
                    " on a GPU, not ", in.width());
  TORCH_CHECK_VALUE(in.num_rows() <= max_rows, "token_bce: impl=native takes up to ", max_rows, " patch tokens, not ",
                    in.num_rows());
  switch (tokens.scalar_type()) {
    case at::kFloat: return compute<float, float>(in, gradients);
    case at::kBFloat16: return compute<c10::BFloat16, c10::BFloat16>(in, gradients);
    case at::kHalf: return compute<c10::Half, float>(in, gradients);
    default: TORCH_CHECK_TYPE(false, "token_bce: impl=native takes bfloat16, float16 or float32 tokens on a GPU, not ",
                              tokens.scalar_type());
  }
}

template <class G>
void rescale(const at::Tensor& values, const at::Tensor& scale, cudaStream_t stream) {
  const int64_t size = values.numel(), blocks = std::min<int64_t>(rescale_blocks, (size + threads - 1) / threads);
  rescale_kernel<<<static_cast<int>(blocks), threads, 0, stream>>>(values.mutable_data_ptr<G>(),
                                                                   scale.const_data_ptr<float>(), size);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void rescale_cuda(const at::Tensor& d_tokens, const at::Tensor& d_parameters, const at::Tensor& scale) {
  const c10::cuda::CUDAGuard guard(d_tokens.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (d_tokens.scalar_type() == at::kBFloat16) rescale<c10::BFloat16>(d_tokens, scale, stream);
  else rescale<float>(d_tokens, scale, stream);
  rescale<float>(d_parameters, scale, stream);
}

}  // namespace
}  // namespace misplace::token_bce

TORCH_LIBRARY_IMPL(misplace, CUDA, m) {
  m.impl("token_bce", &misplace::token_bce::token_bce_cuda);
  m.impl("token_bce_rescale_", &misplace::token_bce::rescale_cuda);
}
