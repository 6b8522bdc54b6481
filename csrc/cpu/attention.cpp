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
#include <optional>
#include <type_traits>

#include "cpu/attention_head.h"
#include "cpu/attention_sequences.h"
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
  const auto strides = x.strides().slice(0, x.dim() - 1);
  const bool even = std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride % 2 == 0; });
  return x.stride(-1) == 1 && even ? x : x.contiguous();
}

template <class T>
struct Heads {  // [B, N, H, d]; of mixed lengths [T, H, d]
  T* data;
  int64_t image, token, head;

  explicit Heads(const at::Tensor& x)
      : data(static_cast<T*>(const_cast<void*>(x.const_data_ptr()))),
        image(x.dim() == 4 ? x.stride(0) : 0),
        token(x.stride(-3)),
        head(x.stride(-2)) {}

  Rows<T> of(const Item& item) const {
    return {data + item.sequence * image + item.first * token + item.head * head, token};
  }
};

template <class T>
void run_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Sequences& sequences,
                 at::Tensor& out, float* statistics, Isa isa) {
  const auto kernel = kernels_for<T>(isa, sequences.largest().head_dim).forward;
  const Heads<const T> q_heads(q), k_heads(k), v_heads(v);
  const Heads<T> out_heads(out);
  each_head(sequences, [&](const Item& item, Scratch& scratch) {
    float* of_head = statistics ? statistics + item.statistics : nullptr;
    kernel({q_heads.of(item), k_heads.of(item), v_heads.of(item), out_heads.of(item), of_head}, item.sizes, scratch);
  });
}

template <class T>
void run_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const float* statistics, const Sequences& sequences, const Gradients& gradients, Isa isa) {
  const auto kernel = kernels_for<T>(isa, sequences.largest().head_dim).backward;
  const Heads<const T> q_heads(q), k_heads(k), v_heads(v), dout_heads(dout);
  const Heads<T> dq(std::get<0>(gradients)), dk(std::get<1>(gradients)), dv(std::get<2>(gradients));
  each_head(sequences, [&](const Item& item, Scratch& scratch) {
    kernel({q_heads.of(item), k_heads.of(item), v_heads.of(item), dout_heads.of(item), dq.of(item), dk.of(item),
            dv.of(item), statistics + item.statistics},
           item.sizes, scratch);
  });
}

Forward attention(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in, double scale,
                  bool for_backward, c10::string_view isa_name, const std::optional<at::Tensor>& cu_seqlens) {
  check(q_in, k_in, v_in, cu_seqlens);
  const Isa isa = isa_named(isa_name);
  const at::Tensor q = readable(q_in), k = readable(k_in), v = readable(v_in);
  const Sequences sequences(q, k, scale, cu_seqlens);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor statistics = at::empty(for_backward ? statistics_shape(q) : Shape{0}, q.options().dtype(at::kFloat));
  float* statistics_out = for_backward ? statistics.mutable_data_ptr<float>() : nullptr;
  if (q.scalar_type() == at::kFloat) {
    run_forward<float>(q, k, v, sequences, out, statistics_out, isa);
  } else {
    run_forward<uint16_t>(q, k, v, sequences, out, statistics_out, isa);
  }
  return {out, statistics};
}

void backward_into(const Gradients& gradients, const at::Tensor& dout_in, const at::Tensor& q_in,
                   const at::Tensor& k_in, const at::Tensor& v_in, const at::Tensor& statistics, double scale,
                   c10::string_view isa_name, const std::optional<at::Tensor>& cu_seqlens) {
  check(q_in, k_in, v_in, cu_seqlens);
  TORCH_CHECK_VALUE(dout_in.sizes() == q_in.sizes() && dout_in.scalar_type() == q_in.scalar_type(),
                    "attention: the gradient of the output must be as q");
  TORCH_CHECK_VALUE(statistics.sizes() == c10::IntArrayRef(statistics_shape(q_in)) && statistics.is_contiguous(),
                    "attention: statistics are not those of a forward for a backward");
  const Isa isa = isa_named(isa_name);
  const at::Tensor dout = readable(dout_in), q = readable(q_in), k = readable(k_in), v = readable(v_in);
  const Sequences sequences(q, k, scale, cu_seqlens);
  const float* statistics_in = statistics.const_data_ptr<float>();
  if (q.scalar_type() == at::kFloat) {
    run_backward<float>(dout, q, k, v, statistics_in, sequences, gradients, isa);
  } else {
    run_backward<uint16_t>(dout, q, k, v, statistics_in, sequences, gradients, isa);
  }
}

Gradients attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& statistics, double scale, c10::string_view isa,
                             const std::optional<at::Tensor>& cu_seqlens) {
  const auto zeros = [](const at::Tensor& x) { return at::zeros(x.sizes(), x.options()); };
  if (q.numel() == 0) return {zeros(q), zeros(k), zeros(v)};
  const auto empty = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const Gradients gradients{empty(q), empty(k), empty(v)};
  backward_into(gradients, dout, q, k, v, statistics, scale, isa, cu_seqlens);
  return gradients;
}

// q, k and v of packed [B, N, 3 D], as views [B, N, H, d]; of mixed lengths [T, 3 D] and [T, H, d].
Gradients unpack(const at::Tensor& qkv, int64_t num_heads, bool mixed) {
  TORCH_CHECK_VALUE(qkv.dim() == (mixed ? 2 : 3) && num_heads > 0 && qkv.size(-1) % (3 * num_heads) == 0,
                    "attention: qkv must be ", mixed ? "[T" : "[B, N", ", 3 * num_heads * d], not ", qkv.sizes());
  const at::Tensor split = qkv.unflatten(-1, {3, num_heads, qkv.size(-1) / (3 * num_heads)});
  return {split.select(-3, 0), split.select(-3, 1), split.select(-3, 2)};
}

Forward attention_packed(const at::Tensor& qkv, int64_t num_heads, double scale, bool for_backward,
                         c10::string_view isa, const std::optional<at::Tensor>& cu_seqlens) {
  const auto [q, k, v] = unpack(qkv, num_heads, cu_seqlens.has_value());
  const auto [out, statistics] = attention(q, k, v, scale, for_backward, isa, cu_seqlens);
  return {out.flatten(-2), statistics};
}

at::Tensor attention_packed_backward(const at::Tensor& dout, const at::Tensor& qkv, const at::Tensor& statistics,
                                     int64_t num_heads, double scale, c10::string_view isa,
                                     const std::optional<at::Tensor>& cu_seqlens) {
  const bool mixed = cu_seqlens.has_value();
  const auto [q, k, v] = unpack(qkv, num_heads, mixed);
  const at::Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
  const at::Tensor of_heads = dout.unflatten(-1, {num_heads, q.size(-1)});
  backward_into(unpack(dqkv, num_heads, mixed), of_heads, q, k, v, statistics, scale, isa, cu_seqlens);
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
