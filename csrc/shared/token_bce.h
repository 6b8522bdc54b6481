// The rules of token_bce that CPU and GPU share; kernels/token_bce/reference.py is the specification.
//
// With g = norm_weight * weight, h = g - mean(g) and c = sum(norm_bias * weight) + bias, a row x of width D has
//   centred = x - mean(x);  rstd = 1 / sqrt(mean(centred^2) + eps);  projected = rstd * sum(centred * h)
//   logit = projected + c
//   d x = toward_h * h - toward_x * centred          with the two factors of `row_gradient`
// and every parameter's gradient follows from two sums over rows, `direction` [D] and `slopes`:
//   direction = sum(slope * rstd * centred);  slopes = sum(slope)
#pragma once

#include <cmath>

#include "shared/host_device.h"

namespace misplace::token_bce {

template <class C>
struct Bce {
  C loss;
  C slope;  // d loss / d logit
};

// ln(1 + e) for e in [0, 1] as 2 artanh(e / (2 + e)): its series in s^2 <= 1/9 ends below half an ulp of fp32.
MISPLACE_HOST_DEVICE float log1p_of_unit(float e) {
  const float s = e / (2.0f + e), q = s * s;
  float series = 1.0f / 15.0f;
  series = series * q + 1.0f / 13.0f;
  series = series * q + 1.0f / 11.0f;
  series = series * q + 1.0f / 9.0f;
  series = series * q + 1.0f / 7.0f;
  series = series * q + 1.0f / 5.0f;
  series = series * q + 1.0f / 3.0f;
  series = series * q + 1.0f;
  return 2.0f * s * series;
}

MISPLACE_HOST_DEVICE double log1p_of_unit(double e) { return std::log1p(e); }

// max(z, 0) - z t + ln(1 + exp(-|z|)) and sigmoid(z) - t, from one exponential that cannot overflow.
template <class C>
MISPLACE_HOST_DEVICE Bce<C> bce_with_logits(C logit, C target) {
  const C e = std::exp(-std::fabs(logit)), above = logit > 0 ? logit : logit * 0;
  const C sigmoid = (logit >= 0 ? C(1) : e) / (1 + e);
  return {above - logit * target + log1p_of_unit(e), sigmoid - target};
}

template <class C>
struct RowGradient {
  C toward_h;
  C toward_x;
};

template <class C>
MISPLACE_HOST_DEVICE RowGradient<C> row_gradient(C slope, C rstd, C projected, C inverse_width) {
  const C toward_h = slope * rstd;
  return {toward_h, toward_h * rstd * projected * inverse_width};
}

template <class C>
struct ParameterGradient {
  C norm_weight;
  C norm_bias;
  C weight;
};

// Of one column; the gradient of the head's bias is `slopes` itself.
template <class C>
MISPLACE_HOST_DEVICE ParameterGradient<C> parameter_gradient(C direction, C slopes, C norm_weight, C norm_bias,
                                                             C weight) {
  return {weight * direction, weight * slopes, norm_weight * direction + norm_bias * slopes};
}

}  // namespace misplace::token_bce
