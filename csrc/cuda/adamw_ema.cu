// AdamW, the EMA teacher and the bfloat16 copies on the GPU: one launch for up to max_tensors tensors.
//
// Addresses, sizes and decays travel as the kernel's parameters: there is no table to copy to the device or to keep
// alive, and a captured CUDA graph holds its own. Each block updates one piece of one tensor, 16 bytes a load.
// Scalars held in tensors are turned into coefficients on the device by one thread of a launch before.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "adamw_ema.h"
#include "cuda/adamw_ema_piece.cuh"

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

// A tensor of one element, or a number.
struct Source {
  const void* address;
  at::ScalarType dtype;
  double number;
};

__device__ double read(const Source& source) {
  if (!source.address) return source.number;
  if (source.dtype == at::kFloat) return *static_cast<const float*>(source.address);
  if (source.dtype == at::kDouble) return *static_cast<const double*>(source.address);
  return static_cast<double>(*static_cast<const int64_t*>(source.address));
}

struct Sources {
  Source of[num_numbers];
};

__global__ void coefficients_kernel(const Sources sources, const Settings by, Coefficients* to) {
  const Numbers now{read(sources.of[0]), read(sources.of[1]), read(sources.of[2]), read(sources.of[3]),
                    read(sources.of[4])};
  *to = coefficients(now, by);
}

// Undefined where every scalar is a number.
at::Tensor coefficients_on_device(at::ArrayRef<double> numbers, const Scalars& scalars, const Settings& by,
                                  const at::Tensor& like, cudaStream_t stream) {
  Sources sources;
  bool any = false;
  for (int i = 0; i < num_numbers; ++i) {
    const std::optional<at::Tensor> scalar = scalars.get(i);
    sources.of[i] = {nullptr, at::kDouble, numbers[i]};
    if (!scalar.has_value()) continue;
    const at::ScalarType dtype = scalar->scalar_type();
    TORCH_CHECK_VALUE(scalar->numel() == 1 && scalar->device() == like.device(),
                      "adamw_ema: a scalar has more than one element or is on another device");
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kLong,
                     "adamw_ema: a scalar must be float32, float64 or int64, not ", dtype);
    sources.of[i].address = scalar->const_data_ptr();
    sources.of[i].dtype = dtype;
    any = true;
  }
  if (!any) return {};
  at::Tensor to = at::empty({sizeof(Coefficients) / sizeof(float)}, like.options().dtype(at::kFloat));
  coefficients_kernel<<<1, 1, 0, stream>>>(sources, by, static_cast<Coefficients*>(to.mutable_data_ptr()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return to;
}

bool is_aligned(const Member& m) {
  const void* const addresses[] = {m.parameter, m.gradient,     m.exp_avg,     m.exp_avg_sq,
                                   m.teacher,   m.student_copy, m.teacher_copy};
  return std::all_of(std::begin(addresses), std::end(addresses),
                     [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; });
}

void put(Batch& batch, const Member& m) {
  const int i = batch.count++;
  const int64_t before = i ? batch.end[i - 1] : 0, pieces = (m.size + piece_size - 1) / piece_size;
  TORCH_CHECK_VALUE(before + pieces <= INT32_MAX, "adamw_ema: a launch of more than 2^31 blocks");
  batch.parameter[i] = m.parameter;
  batch.gradient[i] = m.gradient;
  batch.exp_avg[i] = m.exp_avg;
  batch.exp_avg_sq[i] = m.exp_avg_sq;
  batch.teacher[i] = m.teacher;
  batch.student_copy[i] = m.student_copy;
  batch.teacher_copy[i] = m.teacher_copy;
  batch.size[i] = m.size;
  batch.weight_decay[i] = static_cast<float>(m.weight_decay);
  batch.end[i] = static_cast<uint32_t>(before + pieces);
  batch.gradient_type[i] = m.gradient_type;
  batch.aligned[i] = is_aligned(m);
}

void adamw_ema_cuda(at::TensorList state, at::IntArrayRef slots, const Gradients& gradients,
                    at::ArrayRef<double> weight_decay, at::ArrayRef<double> numbers, const Scalars& scalars,
                    double beta1, double beta2, double eps, std::string_view path) {
  TORCH_CHECK_VALUE(path == "best", "adamw_ema: the GPU has no vector path '", path, "'");
  check_numbers(numbers, scalars);
  const std::vector<Member> found = members(state, slots, gradients, weight_decay);
  if (found.empty()) return;
  const c10::cuda::CUDAGuard guard(state[0].device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Settings by{beta1, beta2, eps};
  const at::Tensor derived = coefficients_on_device(numbers, scalars, by, state[0], stream);
  const auto* on_device = derived.defined() ? static_cast<const Coefficients*>(derived.const_data_ptr()) : nullptr;
  const Coefficients given = on_device ? Coefficients{} : coefficients(to_numbers(numbers), by);
  for (size_t first = 0; first < found.size(); first += max_tensors) {
    Batch batch;
    batch.count = 0;
    for (size_t i = first; i < std::min(found.size(), first + max_tensors); ++i) put(batch, found[i]);
    adamw_ema_kernel<<<batch.end[batch.count - 1], threads, 0, stream>>>(batch, given, on_device);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace
}  // namespace misplace::adamw_ema

TORCH_LIBRARY_IMPL(misplace, CUDA, m) { m.impl("adamw_ema", &misplace::adamw_ema::adamw_ema_cuda); }
