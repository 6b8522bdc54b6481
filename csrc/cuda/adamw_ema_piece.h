// What one thread of adamw_ema does: n elements at once, 4 (16 bytes of fp32) where addresses allow, else 1.
#pragma once

#include <cuda_fp16.h>

#include "cuda/adamw_ema_kernel.h"

namespace misplace::adamw_ema {

template <int n>
struct Piece {
  float parameter[n], gradient[n], exp_avg[n], exp_avg_sq[n], teacher[n];
};

__device__ float to_float(uint16_t bits, GradientType type) {
  return type == GradientType::bfloat16 ? from_bfloat16(bits) : __half2float(__ushort_as_half(bits));
}

template <int n>
__device__ void load(float (&to)[n], const float* from) {
  if constexpr (n == width) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  } else {
    to[0] = from[0];
  }
}

template <int n>
__device__ void store(float* to, const float (&from)[n]) {
  if constexpr (n == width) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  } else {
    to[0] = from[0];
  }
}

template <int n>
__device__ void load_gradient(float (&to)[n], const void* gradient, GradientType type, int64_t at) {
  if (type == GradientType::float32) {
    load<n>(to, static_cast<const float*>(gradient) + at);
    return;
  }
  uint16_t bits[n];
  const uint16_t* from = static_cast<const uint16_t*>(gradient) + at;
  if constexpr (n == width) {
    *reinterpret_cast<uint2*>(bits) = *reinterpret_cast<const uint2*>(from);
  } else {
    bits[0] = from[0];
  }
  for (int i = 0; i < n; ++i) to[i] = to_float(bits[i], type);
}

template <int n>
__device__ void store_copy(uint16_t* to, const float (&from)[n]) {
  if constexpr (n == width) {
    const uint32_t low = to_bfloat16(from[0]) | static_cast<uint32_t>(to_bfloat16(from[1])) << 16;
    const uint32_t high = to_bfloat16(from[2]) | static_cast<uint32_t>(to_bfloat16(from[3])) << 16;
    *reinterpret_cast<uint2*>(to) = {low, high};
  } else {
    to[0] = to_bfloat16(from[0]);
  }
}

template <int n>
__device__ void load_piece(Piece<n>& piece, const Batch& batch, int tensor, int64_t at) {
  load<n>(piece.parameter, batch.parameter[tensor] + at);
  load_gradient<n>(piece.gradient, batch.gradient[tensor], batch.gradient_type[tensor], at);
  load<n>(piece.exp_avg, batch.exp_avg[tensor] + at);
  load<n>(piece.exp_avg_sq, batch.exp_avg_sq[tensor] + at);
  if (batch.teacher[tensor]) load<n>(piece.teacher, batch.teacher[tensor] + at);
}

template <int n>
__device__ void update_piece(Piece<n>& piece, const Batch& batch, int tensor, int64_t at, const Coefficients& c) {
  const float keep = 1 - c.decay_rate * batch.weight_decay[tensor];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    adamw(piece.parameter[i], piece.gradient[i], piece.exp_avg[i], piece.exp_avg_sq[i], keep, c);
  }
  store<n>(batch.parameter[tensor] + at, piece.parameter);
  store<n>(batch.exp_avg[tensor] + at, piece.exp_avg);
  store<n>(batch.exp_avg_sq[tensor] + at, piece.exp_avg_sq);
  if (batch.student_copy[tensor]) store_copy<n>(batch.student_copy[tensor] + at, piece.parameter);
  if (!batch.teacher[tensor]) return;
#pragma unroll
  for (int i = 0; i < n; ++i) follow(piece.teacher[i], piece.parameter[i], c);
  store<n>(batch.teacher[tensor] + at, piece.teacher);
  if (batch.teacher_copy[tensor]) store_copy<n>(batch.teacher_copy[tensor] + at, piece.teacher);
}

}  // namespace misplace::adamw_ema
