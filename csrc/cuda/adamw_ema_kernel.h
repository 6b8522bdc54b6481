// What the host code of misplace::adamw_ema asks of its kernels. No torch header: a .cu file compiles in seconds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "shared/adamw_ema.h"

namespace misplace::adamw_ema {

constexpr int threads = 256, width = 4, vectors = 2;   // elements of a load; loads of a thread and tensor
constexpr int piece_size = threads * width * vectors;  // elements of a block
constexpr int max_tensors = 384;

// By value into constant memory: 32,764 bytes of parameters are the limit from sm_70 on.
struct Batch {
  float* parameter[max_tensors];
  const void* gradient[max_tensors];
  float* exp_avg[max_tensors];
  float* exp_avg_sq[max_tensors];
  float* teacher[max_tensors];
  uint16_t* student_copy[max_tensors];
  uint16_t* teacher_copy[max_tensors];
  int64_t size[max_tensors];
  float weight_decay[max_tensors];
  uint32_t end[max_tensors];  // pieces of tensors 0..i
  GradientType gradient_type[max_tensors];
  bool aligned[max_tensors];
  int count;
};
static_assert(sizeof(Batch) + sizeof(Coefficients) + 16 <= 32764);

enum class NumberType : int { float32, float64, int64 };

// A tensor of one element, or a number where there is no address.
struct Source {
  const void* address;
  NumberType type;
  double number;
};

struct Sources {
  Source of[num_numbers];
};

void launch_coefficients(const Sources& sources, const Settings& by, Coefficients* to, cudaStream_t stream);

// By the coefficients on the device; by those given where that is null.
void launch(const Batch& batch, const Coefficients& given, const Coefficients* on_device, cudaStream_t stream);

}  // namespace misplace::adamw_ema
