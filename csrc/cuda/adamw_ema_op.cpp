// misplace::adamw_ema on CUDA tensors: checks, batches, launches. The kernels are adamw_ema.cu.
#include "adamw_ema.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "cuda/adamw_ema_kernel.h"

namespace misplace::adamw_ema {
namespace {

NumberType number_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return NumberType::float32;
    case at::kDouble: return NumberType::float64;
    case at::kLong: return NumberType::int64;
    default: TORCH_CHECK_TYPE(false, "adamw_ema: a scalar must be float32, float64 or int64, not ", dtype);
  }
}

// Undefined where every scalar is a number.
at::Tensor coefficients_on_device(at::ArrayRef<double> numbers, const Scalars& scalars, const Settings& by,
                                  const at::Tensor& like, cudaStream_t stream) {
  Sources sources;
  bool any = false;
  for (int i = 0; i < num_numbers; ++i) {
    const std::optional<at::Tensor> scalar = scalars.get(i);
    sources.of[i] = {nullptr, NumberType::float64, numbers[i]};
    if (!scalar.has_value()) continue;
    TORCH_CHECK_VALUE(scalar->numel() == 1 && scalar->device() == like.device(),
                      "adamw_ema: a scalar has more than one element or is on another device");
    sources.of[i].type = number_type(scalar->scalar_type());
    sources.of[i].address = scalar->const_data_ptr();
    any = true;
  }
  if (!any) return {};
  at::Tensor to = at::empty({sizeof(Coefficients) / sizeof(float)}, like.options().dtype(at::kFloat));
  launch_coefficients(sources, by, static_cast<Coefficients*>(to.mutable_data_ptr()), stream);
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
    launch(batch, given, on_device, stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace
}  // namespace misplace::adamw_ema

TORCH_LIBRARY_IMPL(misplace, CUDA, m) { m.impl("adamw_ema", &misplace::adamw_ema::adamw_ema_cuda); }
