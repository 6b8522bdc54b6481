// misplace::token_plan on CUDA tensors: checks, allocation, launch. The kernel is token_plan.cu.
#include "token_plan.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/token_plan_kernel.h"

namespace misplace::token_plan {
namespace {

Plan token_plan_cuda(const at::Tensor& index, int64_t num_patches, int64_t num_kept, int64_t seed, int64_t epoch,
                     int64_t view, int64_t wrong_threshold) {
  check(index, num_patches, num_kept, wrong_threshold);
  const c10::cuda::CUDAGuard on_its_device(index.device());
  const auto [src, pos, wrong] = empty_plan(index, num_kept);
  const Draw by = make_draw(seed, epoch, view, wrong_threshold);
  launch({index.const_data_ptr<int64_t>(), index.stride(0), index.size(0)},
         {static_cast<int>(num_patches), static_cast<int>(num_kept)}, by,
         {src.mutable_data_ptr<int32_t>(), pos.mutable_data_ptr<int32_t>(), wrong.mutable_data_ptr<bool>()},
         c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {src, pos, wrong};
}

}  // namespace
}  // namespace misplace::token_plan

TORCH_LIBRARY_IMPL(misplace, CUDA, m) { m.impl("token_plan", &misplace::token_plan::token_plan_cuda); }
