// One element of adamw_ema, the same text for CPU and GPU; kernels/adamw_ema/reference.py is the specification.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "shared/host_device.h"

namespace misplace::adamw_ema {

// What changes from step to step, in the order of the registered op's `numbers` and `scalars`.
struct Numbers {
  double step, lr, decay_scale, grad_scale, momentum, found_inf;
};
constexpr int num_numbers = 6;

struct Settings {
  double beta1, beta2, eps;
};

enum class GradientType : int { float32, bfloat16, float16 };

struct Coefficients {
  float grad_scale, decay_rate, one_minus_beta1, beta2, one_minus_beta2, inverse_root, eps, step_size;
  float one_minus_momentum;
  float found_inf;  // not 0: nothing is written
};

MISPLACE_HOST_DEVICE Coefficients coefficients(const Numbers& now, const Settings& by) {
  const double correction1 = 1 - pow(by.beta1, now.step), correction2 = 1 - pow(by.beta2, now.step);
  Coefficients c;
  c.grad_scale = static_cast<float>(now.grad_scale);
  c.decay_rate = static_cast<float>(now.lr * now.decay_scale);
  c.one_minus_beta1 = static_cast<float>(1 - by.beta1);
  c.beta2 = static_cast<float>(by.beta2);
  c.one_minus_beta2 = static_cast<float>(1 - by.beta2);
  c.inverse_root = static_cast<float>(1 / sqrt(correction2));
  c.eps = static_cast<float>(by.eps);
  c.step_size = static_cast<float>(now.lr / correction1);
  c.one_minus_momentum = static_cast<float>(1 - now.momentum);
  c.found_inf = now.found_inf != 0 ? 1.0f : 0.0f;
  return c;
}

// keep = 1 - lr * weight_decay of the tensor. Fused multiply-adds are written out, so that every compiler rounds at
// the same places.
MISPLACE_HOST_DEVICE void adamw(float& parameter, float gradient, float& exp_avg, float& exp_avg_sq, float keep,
                                const Coefficients& c) {
  gradient *= c.grad_scale;
  exp_avg = fmaf(c.one_minus_beta1, gradient - exp_avg, exp_avg);
  exp_avg_sq = fmaf(c.beta2, exp_avg_sq, c.one_minus_beta2 * gradient * gradient);
  const float direction = exp_avg / fmaf(sqrtf(exp_avg_sq), c.inverse_root, c.eps);
  parameter = fmaf(-c.step_size, direction, parameter * keep);
}

// teacher == parameter stays so to the bit
MISPLACE_HOST_DEVICE void follow(float& teacher, float parameter, const Coefficients& c) {
  teacher = fmaf(c.one_minus_momentum, parameter - teacher, teacher);
}

MISPLACE_HOST_DEVICE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  return value != value ? uint16_t{0x7FC0} : static_cast<uint16_t>(rounded);
}

MISPLACE_HOST_DEVICE float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

}  // namespace misplace::adamw_ema
