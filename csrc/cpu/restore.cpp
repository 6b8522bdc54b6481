// restore on the CPU: every row of the output is written once, a masked one as a copy out of a table of L rows.
//
// Which rows a thread takes changes no bit: the gradient of mask_token is summed by chunks of rows that are always the
// same, then chunk by chunk; that of position image by image.
#include "restore.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#define MISPLACE_OP restore
#define MISPLACE_BODY "cpu/restore_body.h"
#include "cpu/each_isa.h"

namespace misplace::restore {
namespace {

using at::Tensor;

constexpr int64_t numbers_per_task = 16384, most_chunks = 256;

template <class T>
struct Kernels {
#define MISPLACE_TAKE(isa)                                                              \
  masked_rows = isa::masked_rows<T>, forward = isa::forward<T>, backward = isa::backward<T>, \
  sum_blocks = isa::sum_blocks<T>, sum_parts = isa::sum_blocks<float>
  decltype(&plain::masked_rows<T>) masked_rows;
  decltype(&plain::forward<T>) forward;
  decltype(&plain::backward<T>) backward;
  decltype(&plain::sum_blocks<T>) sum_blocks;
  decltype(&plain::sum_blocks<float>) sum_parts;

  explicit Kernels(Isa isa) {
    MISPLACE_TAKE(plain);
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) MISPLACE_TAKE(avx2);
    if (isa >= Isa::avx512) MISPLACE_TAKE(avx512);
    if (isa >= Isa::avx512_bf16) MISPLACE_TAKE(avx512_bf16);
#endif
  }
#undef MISPLACE_TAKE
};

// Per row of [B, 1 + L, D] the row of [B, 1 + K, D] that goes there, or plain::masked. IndexError for src out of range.
std::vector<int32_t> token_of_rows(const Tensor& src_in, int64_t num_patches) {
  const Tensor src = src_in.contiguous();
  const int64_t batch = src.size(0), kept = src.size(1), length = 1 + num_patches;
  const int32_t* from = src.const_data_ptr<int32_t>();
  std::vector<int32_t> token(batch * length, plain::masked);
  for (int64_t image = 0; image < batch; ++image) {
    const int64_t first = image * (1 + kept);
    token[image * length] = static_cast<int32_t>(first);
    for (int64_t k = 0; k < kept; ++k, ++from) {
      TORCH_CHECK_INDEX(0 <= *from && *from < num_patches, "restore: src must be in [0, ", num_patches, "), found ",
                        *from);
      token[image * length + 1 + *from] = static_cast<int32_t>(first + 1 + k);
    }
  }
  return token;
}

Tensor fp32(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

int64_t rows_of(int64_t numbers, int64_t width) { return std::max<int64_t>(1, numbers / width); }

template <class T>
void run_forward(const Tensor& tokens, const std::vector<int32_t>& token, const Tensor& mask_token,
                 const Tensor& position, Tensor& out, Isa isa) {
  const Kernels<T> kernels(isa);
  const int64_t length = position.size(0), width = position.size(1), rows = static_cast<int64_t>(token.size());
  const float* positions = position.const_data_ptr<float>();
  std::vector<T> masked(length * width);
  kernels.masked_rows(mask_token.const_data_ptr<float>(), positions, length, width, masked.data());
  const T* from = static_cast<const T*>(tokens.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  at::parallel_for(0, rows, rows_of(numbers_per_task, width), [&](int64_t first, int64_t last) {
    kernels.forward(from, token.data(), masked.data(), positions, length, width, first, last, to);
  });
}

template <class T>
void run_backward(const Tensor& gradient, const std::vector<int32_t>& token, Tensor& d_tokens, Tensor& d_mask_token,
                  Tensor& d_position, Isa isa) {
  const Kernels<T> kernels(isa);
  const int64_t length = gradient.size(1), width = gradient.size(2), rows = static_cast<int64_t>(token.size());
  const int64_t each = std::max((rows + most_chunks - 1) / most_chunks, rows_of(numbers_per_task, width));
  const int64_t chunks = (rows + each - 1) / each;
  const T* from = static_cast<const T*>(gradient.const_data_ptr());
  T* to = static_cast<T*>(d_tokens.mutable_data_ptr());
  std::vector<float> parts(chunks * width);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.backward(from, token.data(), width, i * each, std::min((i + 1) * each, rows), to, &parts[i * width]);
    }
  });
  kernels.sum_parts(parts.data(), chunks, 1, width, 0, 1, d_mask_token.mutable_data_ptr<float>());
  if (!d_position.numel()) return;
  float* sums = d_position.mutable_data_ptr<float>();
  at::parallel_for(0, length, rows_of(numbers_per_task / 4, width), [&](int64_t first, int64_t last) {
    kernels.sum_blocks(from, gradient.size(0), length, width, first, last, sums);
  });
}

void check_dtype(const Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                   "restore: native takes float32 or bfloat16, not ", x.scalar_type());
}

Tensor restore(const Tensor& tokens, const Tensor& src, const Tensor& mask_token, const Tensor& position,
               c10::string_view isa_name) {
  check_dtype(tokens);
  check(tokens, src, mask_token, position);
  const Isa isa = isa_named(isa_name);
  Tensor out = at::empty({tokens.size(0), position.size(0), position.size(1)}, tokens.options());
  const auto run = tokens.scalar_type() == at::kFloat ? run_forward<float> : run_forward<uint16_t>;
  run(tokens.contiguous(), token_of_rows(src, position.size(0) - 1), fp32(mask_token), fp32(position), out, isa);
  return out;
}

Gradients restore_backward(const Tensor& gradient, const Tensor& src, bool of_position, c10::string_view isa_name) {
  check_dtype(gradient);
  check_backward(gradient, src);
  const Isa isa = isa_named(isa_name);
  const int64_t length = gradient.size(1), width = gradient.size(2);
  const auto wide = gradient.options().dtype(at::kFloat);
  Tensor d_tokens = at::empty({gradient.size(0), 1 + src.size(1), width}, gradient.options());
  Tensor d_mask_token = at::empty({width}, wide);
  Tensor d_position = of_position ? at::empty({length, width}, wide) : at::empty({0}, wide);
  const auto run = gradient.scalar_type() == at::kFloat ? run_backward<float> : run_backward<uint16_t>;
  run(gradient.contiguous(), token_of_rows(src, length - 1), d_tokens, d_mask_token, d_position, isa);
  return {d_tokens, d_mask_token, d_position};
}

std::string path() { return std::string(isa_names[static_cast<int>(std::min(best_isa(), Isa::avx512_bf16))]); }

}  // namespace
}  // namespace misplace::restore

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("restore", &misplace::restore::restore);
  m.impl("restore_backward", &misplace::restore::restore_backward);
}
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) { m.impl("restore_path", &misplace::restore::path); }
