// The rows of token_bce on the CPU, as the translation units that compile them see them.
//
// token_bce_loops.h holds the loops; it is compiled once for each width of vector, and the widest that this
// CPU has is taken when the op is called.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "shared/token_bce.h"

namespace misplace::token_bce {

// T: of the tokens and their gradient. C: of everything else.
template <class T, class C>
struct Rows {
  const T* tokens;  // the first patch token of the first image
  int64_t image_stride, token_stride;
  int64_t kept, offset, width;
  const C* h;  // [D], see shared/token_bce.h
  C constant, eps, inverse_width;
  const bool* flags;  // the target: either these
  const C* targets;   // or these
  const C* token_weight;  // null: all 1
  C share;            // 1 / sum of the weights
  C* logits;
  T* d_tokens;  // [B, offset + K, D]; null: only the values are wanted
};

template <class C>
struct Sums {
  C* direction;  // [D]
  double slopes, loss;
};

// Rows begin .. end - 1 of [B * K]: logits, gradients, and what they add to the sums.
template <class T, class C>
using Run = void (*)(const Rows<T, C>& rows, int64_t begin, int64_t end, Sums<C>& sums);

struct Runs {
  const char* path;
  Run<float, float> of_float;
  Run<double, double> of_double;
  Run<c10::BFloat16, float> of_bfloat16;
};

extern const Runs plain_runs, avx2_runs, avx512_runs;

}  // namespace misplace::token_bce
