// misplace::adamw_ema. The schema lives in kernels/adamw_ema/native.py; every device reads its lists here.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "shared/adamw_ema.h"

namespace misplace::adamw_ema {

using Gradients = c10::List<std::optional<at::Tensor>>;
using Scalars = c10::List<std::optional<at::Tensor>>;

// One parameter tensor and what is moved with it; null where there is none.
struct Member {
  float* parameter;
  const void* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  float* teacher;
  uint16_t* student_copy;
  uint16_t* teacher_copy;
  int64_t size;
  double weight_decay;
  GradientType gradient_type;
};

inline GradientType gradient_type(const at::Tensor& gradient) {
  switch (gradient.scalar_type()) {
    case at::kFloat: return GradientType::float32;
    case at::kBFloat16: return GradientType::bfloat16;
    case at::kHalf: return GradientType::float16;
    default:
      TORCH_CHECK_TYPE(false, "adamw_ema: a gradient must be float32, bfloat16 or float16, not ",
                       gradient.scalar_type());
  }
}

// The address of a contiguous tensor of `size` elements that is written: autograd must know.
template <class T>
T* written(const at::Tensor& tensor, at::ScalarType dtype, int64_t size) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, "adamw_ema: a tensor is ", tensor.scalar_type(), ", not ", dtype);
  TORCH_CHECK_VALUE(tensor.numel() == size, "adamw_ema: a tensor has not its parameter's shape");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "adamw_ema: a tensor is not contiguous");
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// state: parameters, exp_avg, exp_avg_sq (one each per gradient), then teachers and copies in any order.
// slots: per parameter where in state its teacher, student copy and teacher copy are, or -1.
// Tensors without a gradient or without elements are left out.
inline std::vector<Member> members(at::TensorList state, at::IntArrayRef slots, const Gradients& gradients,
                                   at::ArrayRef<double> weight_decay) {
  const int64_t count = gradients.size(), num_state = state.size();
  TORCH_CHECK_VALUE(num_state >= 3 * count && static_cast<int64_t>(slots.size()) == 3 * count &&
                        static_cast<int64_t>(weight_decay.size()) == count,
                    "adamw_ema: lists of different length");
  std::vector<Member> found;
  found.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const std::optional<at::Tensor> gradient = gradients.get(i);
    const int64_t size = state[i].numel();
    if (!gradient.has_value() || size == 0) continue;
    TORCH_CHECK_VALUE(gradient->numel() == size && gradient->is_contiguous() &&
                          gradient->device() == state[i].device(),
                      "adamw_ema: gradient ", i, " has not its parameter's shape and device, or is not contiguous");
    const auto optional = [&](int which) -> const at::Tensor* {
      const int64_t slot = slots[3 * i + which];
      TORCH_CHECK_VALUE(slot < num_state, "adamw_ema: slot ", slot, " of ", num_state);
      return slot < 0 ? nullptr : &state[slot];
    };
    const at::Tensor *teacher = optional(0), *student_copy = optional(1), *teacher_copy = optional(2);
    found.push_back({
        written<float>(state[i], at::kFloat, size),
        gradient->const_data_ptr(),
        written<float>(state[count + i], at::kFloat, size),
        written<float>(state[2 * count + i], at::kFloat, size),
        teacher ? written<float>(*teacher, at::kFloat, size) : nullptr,
        student_copy ? written<uint16_t>(*student_copy, at::kBFloat16, size) : nullptr,
        teacher_copy ? written<uint16_t>(*teacher_copy, at::kBFloat16, size) : nullptr,
        size,
        weight_decay[i],
        gradient_type(*gradient),
    });
  }
  return found;
}

inline void check_numbers(at::ArrayRef<double> numbers, const Scalars& scalars) {
  TORCH_CHECK_VALUE(numbers.size() == num_numbers && scalars.size() == num_numbers, "adamw_ema: needs ",
                    num_numbers, " numbers and as many scalars");
}

inline Numbers to_numbers(at::ArrayRef<double> n) { return {n[0], n[1], n[2], n[3], n[4], n[5]}; }

}  // namespace misplace::adamw_ema
