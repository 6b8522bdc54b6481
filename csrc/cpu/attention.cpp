// Attention on the CPU: a whole head of one image at a time, its scores in cache, heads in parallel.
//
// q, k and v are read where they lie (the three of a packed qkv as well) and the gradients are written in the same
// layout: nothing is transposed or copied in memory. No two tasks write to one place, so the result does not
// depend on the number of threads.
#include "attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "cpu/attention_head.h"
#define MISPLACE_OP attention
#define MISPLACE_BODY "cpu/attention_body.h"
#include "cpu/each_isa.h"

namespace misplace::attention {
namespace {

template <class T>
struct Kernels {
  void (*forward)(const ForwardHead<T>&, const Sizes&, Scratch&);
  void (*backward)(const BackwardHead<T>&, const Sizes&, Scratch&);
};

template <class T>
Kernels<T> kernels_for(Isa isa, int64_t head_dim) {
#ifdef MISPLACE_X86
  if constexpr (std::is_same_v<T, uint16_t>) {
    using avx512_bf16::Pairs;
    if (isa >= Isa::avx512_bf16 && head_dim % 32 == 0) {
      return {avx512_bf16::forward<Pairs, T>, avx512_bf16::backward<Pairs, T>};
    }
  }
  if (isa >= Isa::avx512) return {avx512::forward<avx512::Fp32, T>, avx512::backward<avx512::Fp32, T>};
  if (isa >= Isa::avx2) return {avx2::forward<avx2::Fp32, T>, avx2::backward<avx2::Fp32, T>};
#endif
  return {plain::forward<plain::Fp32, T>, plain::backward<plain::Fp32, T>};
}

// Elements of a head side by side, and rows that begin at an even element: pairs are read whole.
at::Tensor readable(const at::Tensor& x) {
  const bool even = x.stride(0) % 2 == 0 && x.stride(1) % 2 == 0 && x.stride(2) % 2 == 0;
  return x.stride(3) == 1 && even ? x : x.contiguous();
}

template <class T>
struct Heads {  // [B, N, H, d]
  T* data;
  int64_t image, token, head;

  explicit Heads(const at::Tensor& x)
      : data(static_cast<T*>(const_cast<void*>(x.const_data_ptr()))),
        image(x.stride(0)),
        token(x.stride(1)),
        head(x.stride(2)) {}

  Rows<T> at(int64_t b, int64_t h) const { return {data + b * image + h * head, token}; }
};

Sizes sizes_of(const at::Tensor& q, const at::Tensor& k, double scale) {
  return {q.size(1), k.size(1), q.size(3), static_cast<float>(scale)};
}

template <class Run>
void each_head(const at::Tensor& q, const Sizes& sizes, const Run& run) {
  const int64_t heads = q.size(2);
  at::parallel_for(0, q.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_bytes(sizes));
    std::byte* const start = scratch.mark();
    for (int64_t i = begin; i < end; ++i) {
      scratch.back_to(start);
      run(i, i / heads, i % heads, scratch);
    }
  });
}

template <class T>
void run_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale, at::Tensor& out,
                 float* statistics, Isa isa) {
  const Sizes sizes = sizes_of(q, k, scale);
  const auto kernel = kernels_for<T>(isa, sizes.head_dim).forward;
  const Heads<const T> q_heads(q), k_heads(k), v_heads(v);
  const Heads<T> out_heads(out);
  each_head(q, sizes, [&](int64_t i, int64_t b, int64_t h, Scratch& scratch) {
    float* of_head = statistics ? statistics + i * 2 * sizes.queries : nullptr;
    kernel({q_heads.at(b, h), k_heads.at(b, h), v_heads.at(b, h), out_heads.at(b, h), of_head}, sizes, scratch);
  });
}

template <class T>
void run_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const float* statistics, double scale, const Gradients& gradients, Isa isa) {
  const Sizes sizes = sizes_of(q, k, scale);
  const auto kernel = kernels_for<T>(isa, sizes.head_dim).backward;
  const Heads<const T> q_heads(q), k_heads(k), v_heads(v), dout_heads(dout);
  const Heads<T> dq(std::get<0>(gradients)), dk(std::get<1>(gradients)), dv(std::get<2>(gradients));
  each_head(q, sizes, [&](int64_t i, int64_t b, int64_t h, Scratch& scratch) {
    kernel({q_heads.at(b, h), k_heads.at(b, h), v_heads.at(b, h), dout_heads.at(b, h), dq.at(b, h), dk.at(b, h),
            dv.at(b, h), statistics + i * 2 * sizes.queries},
           sizes, scratch);
  });
}

Forward attention(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in, double scale,
                  bool for_backward, c10::string_view isa_name) {
  check(q_in, k_in, v_in);
  const Isa isa = isa_named(isa_name);
  const at::Tensor q = readable(q_in), k = readable(k_in), v = readable(v_in);
  at::Tensor out = at::empty(q.sizes(), q.options());
  const int64_t kept = for_backward ? q.size(1) : 0;
  at::Tensor statistics = at::empty({q.size(0), q.size(2), 2, kept}, q.options().dtype(at::kFloat));
  float* statistics_out = for_backward ? statistics.mutable_data_ptr<float>() : nullptr;
  if (q.scalar_type() == at::kFloat) {
    run_forward<float>(q, k, v, scale, out, statistics_out, isa);
  } else {
    run_forward<uint16_t>(q, k, v, scale, out, statistics_out, isa);
  }
  return {out, statistics};
}

void backward_into(const Gradients& gradients, const at::Tensor& dout_in, const at::Tensor& q_in,
                   const at::Tensor& k_in, const at::Tensor& v_in, const at::Tensor& statistics, double scale,
                   c10::string_view isa_name) {
  check(q_in, k_in, v_in);
  TORCH_CHECK_VALUE(dout_in.sizes() == q_in.sizes() && dout_in.scalar_type() == q_in.scalar_type(),
                    "attention: the gradient of the output must be as q");
  const std::array<int64_t, 4> kept{q_in.size(0), q_in.size(2), 2, q_in.size(1)};
  TORCH_CHECK_VALUE(statistics.sizes() == c10::IntArrayRef(kept) && statistics.is_contiguous(),
                    "attention: statistics are not those of a forward for a backward");
  const Isa isa = isa_named(isa_name);
  const at::Tensor dout = readable(dout_in), q = readable(q_in), k = readable(k_in), v = readable(v_in);
  const float* statistics_in = statistics.const_data_ptr<float>();
  if (q.scalar_type() == at::kFloat) {
    run_backward<float>(dout, q, k, v, statistics_in, scale, gradients, isa);
  } else {
    run_backward<uint16_t>(dout, q, k, v, statistics_in, scale, gradients, isa);
  }
}

Gradients attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& statistics, double scale, c10::string_view isa) {
  const auto zeros = [](const at::Tensor& x) { return at::zeros(x.sizes(), x.options()); };
  if (q.numel() == 0) return {zeros(q), zeros(k), zeros(v)};
  const auto empty = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const Gradients gradients{empty(q), empty(k), empty(v)};
  backward_into(gradients, dout, q, k, v, statistics, scale, isa);
  return gradients;
}

// q, k and v of packed [B, N, 3 D], as views [B, N, H, d].
Gradients unpack(const at::Tensor& qkv, int64_t num_heads) {
  TORCH_CHECK_VALUE(qkv.dim() == 3 && num_heads > 0 && qkv.size(2) % (3 * num_heads) == 0,
                    "attention: qkv must be [B, N, 3 * num_heads * d], not ", qkv.sizes());
  const at::Tensor split = qkv.unflatten(2, {3, num_heads, qkv.size(2) / (3 * num_heads)});
  return {split.select(2, 0), split.select(2, 1), split.select(2, 2)};
}

Forward attention_packed(const at::Tensor& qkv, int64_t num_heads, double scale, bool for_backward,
                         c10::string_view isa) {
  const auto [q, k, v] = unpack(qkv, num_heads);
  const auto [out, statistics] = attention(q, k, v, scale, for_backward, isa);
  return {out.flatten(2), statistics};
}

at::Tensor attention_packed_backward(const at::Tensor& dout, const at::Tensor& qkv, const at::Tensor& statistics,
                                     int64_t num_heads, double scale, c10::string_view isa) {
  const auto [q, k, v] = unpack(qkv, num_heads);
  const at::Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
  backward_into(unpack(dqkv, num_heads), dout.unflatten(2, {num_heads, q.size(3)}), q, k, v, statistics, scale, isa);
  return dqkv;
}

}  // namespace
}  // namespace misplace::attention

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("attention", &misplace::attention::attention);
  m.impl("attention_backward", &misplace::attention::attention_backward);
  m.impl("attention_packed", &misplace::attention::attention_packed);
  m.impl("attention_packed_backward", &misplace::attention::attention_packed_backward);
}
