// What the host code of misplace::token_plan asks of its kernel. No torch header: a .cu file compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shared/token_plan_block.h"

namespace misplace::token_plan {

struct Images {
  const int64_t* index;  // [num_images], `stride` apart
  int64_t stride;
  int64_t num_images;
};

struct Output {  // each [num_images, num_kept]
  int32_t* src;
  int32_t* pos;
  bool* wrong;
};

void launch(const Images& images, const Sizes& sizes, const Draw& by, const Output& out, cudaStream_t stream);

}  // namespace misplace::token_plan
