// patch_mse on the CPU: loss and gradient in one pass over the predictions, the targets straight from the images.
//
// Which patches a thread takes changes no bit: errors are summed by tasks of patches that are always the same, then
// task by task.
#include "patch_mse.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC's own intrinsics, whose "undefined" is meant
#endif
#define MISPLACE_OP patch_mse
#define MISPLACE_BODY "cpu/patch_mse_body.h"
#include "cpu/each_isa.h"

namespace misplace::patch_mse {
namespace {

using at::Tensor;

constexpr int64_t numbers_per_task = 16384;

struct Memory {
  Tensor prediction, images, index;  // a patch's predictions and a row of an image have no gaps
};

template <class Job>
Job job_of(const Inputs& in, const Memory& memory) {
  Job job;
  job.images = memory.images.const_data_ptr<uint8_t>();
  job.index = memory.index.const_data_ptr<int32_t>();
  job.image_stride = memory.images.stride(0), job.row_stride = memory.images.stride(1);
  job.prediction_image_stride = memory.prediction.stride(0), job.prediction_stride = memory.prediction.stride(1);
  job.predicted = in.predicted(), job.columns = in.columns();
  job.patch_size = in.patch_size, job.pixels = in.pixels();
  for (int64_t c = 0; c < in.channels(); ++c) {
    job.scale[c] = 1 / (255 * in.std[c]), job.inverse_scale[c] = 255 * in.std[c];
    job.shift[c] = -in.mean[c] / in.std[c];
  }
  job.inverse_freedom = 1 / static_cast<double>(in.pixels() - 1);
  job.normalise = in.normalise, job.eps = in.eps;
  job.slope_of_gradient = static_cast<float>(2.0 / static_cast<double>(in.prediction.numel()));
  return job;
}

void check_range(const Tensor& index, int64_t num_patches) {
  const auto [lowest, highest] = std::minmax_element(index.const_data_ptr<int32_t>(),
                                                     index.const_data_ptr<int32_t>() + index.numel());
  TORCH_CHECK_INDEX(0 <= *lowest && *highest < num_patches, "patch_mse: index must be in [0, ", num_patches,
                    "), found ", *lowest, " .. ", *highest);
}

// squared_errors and Job: of one instruction set.
template <class T, class Job>
Result run(const Inputs& in, const Memory& memory, bool gradient,
           double (*squared_errors)(int, const Job&, const T*, T*, int64_t, int64_t, uint8_t*)) {
  const Job job = job_of<Job>(in, memory);
  Tensor d_prediction = at::empty(gradient ? in.prediction.sizes() : at::IntArrayRef{0}, in.prediction.options());
  const int64_t num_patches = in.index.numel(), each = std::max<int64_t>(1, numbers_per_task / in.pixels());
  std::vector<double> parts((num_patches + each - 1) / each);
  const T* prediction = static_cast<const T*>(memory.prediction.const_data_ptr());
  T* to = gradient ? static_cast<T*>(d_prediction.mutable_data_ptr()) : nullptr;
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(plain::bytes_of_batch + in.pixels() + 3 * 16);
    for (int64_t task = begin; task < end; ++task) {
      parts[task] = squared_errors(static_cast<int>(in.channels()), job, prediction, to, task * each,
                                   std::min((task + 1) * each, num_patches), bytes.data());
    }
  });
  double total = 0;
  for (const double part : parts) total += part;
  Tensor loss = at::empty({}, in.prediction.options().dtype(at::kFloat));
  *loss.mutable_data_ptr<float>() = static_cast<float>(total / static_cast<double>(in.prediction.numel()));
  return {loss, d_prediction};
}

template <class T>
Result run_isa(const Inputs& in, const Memory& memory, bool gradient, Isa isa) {
#ifdef MISPLACE_X86
  if (isa >= Isa::avx512_bf16) return run(in, memory, gradient, avx512_bf16::squared_errors<T>);
  if (isa >= Isa::avx512) return run(in, memory, gradient, avx512::squared_errors<T>);
  if (isa >= Isa::avx2) return run(in, memory, gradient, avx2::squared_errors<T>);
#endif
  return run(in, memory, gradient, plain::squared_errors<T>);
}

Result patch_mse_cpu(const Tensor& prediction, const Tensor& images, const Tensor& index, int64_t patch_size,
                     at::ArrayRef<double> mean, at::ArrayRef<double> std, bool normalise, double eps,
                     c10::string_view isa_name, bool gradient) {
  const Inputs in{prediction, images, index, patch_size, mean, std, normalise, eps};
  TORCH_CHECK_TYPE(prediction.scalar_type() == at::kFloat || prediction.scalar_type() == at::kBFloat16,
                   "patch_mse: native takes float32 or bfloat16, not ", prediction.scalar_type());
  check(in);
  const Isa isa = isa_named(isa_name);
  const bool dense_rows = images.stride(3) == 1 && images.stride(2) == images.size(3);
  const Memory memory{prediction.stride(2) == 1 ? prediction : prediction.contiguous(),
                      dense_rows ? images : images.contiguous(), index.contiguous()};
  check_range(memory.index, in.num_patches());
  return prediction.scalar_type() == at::kFloat ? run_isa<float>(in, memory, gradient, isa)
                                                : run_isa<uint16_t>(in, memory, gradient, isa);
}

std::string path() { return std::string(isa_names[static_cast<int>(std::min(best_isa(), Isa::avx512_bf16))]); }

}  // namespace
}  // namespace misplace::patch_mse

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("patch_mse", &misplace::patch_mse::patch_mse_cpu); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) { m.impl("patch_mse_path", &misplace::patch_mse::path); }
