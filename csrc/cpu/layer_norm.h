// What layer_norm and add_layer_norm share on the CPU: with a branch, what is normalised is x + branch_scale * branch.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cpu/isa.h"

namespace misplace::layer_norm {

using Maybe = std::optional<at::Tensor>;

struct Input {
  at::Tensor x;                // [..., D]
  Maybe branch, branch_scale;  // as x, fp32 [x.size(0)]
  at::Tensor weight, bias;     // [D]
  double eps;
};

struct Forward {
  at::Tensor sum, normed, mean, rstd;  // mean and 1 / sqrt(variance + eps): fp32 [rows], of no elements unless saved
};

// in_place: the sum is written over x. Without a branch the sum is x.
Forward forward(const Input& input, bool save, bool in_place, Isa isa);

struct Gradients {
  at::Tensor dx, dbranch, daffine;  // dbranch: no elements without branch_scale; daffine: of weight and bias, fp32 [2, D]
};

Gradients backward(const Maybe& dsum, const at::Tensor& dnormed, const at::Tensor& sum, const Maybe& branch_scale,
                   const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd, Isa isa);

}  // namespace misplace::layer_norm
