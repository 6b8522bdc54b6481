// token_bce on the CPU: one pass over the tokens, images in parallel.
//
// Rows are cut into chunks by their number alone, each chunk has its own sums, and the chunks are added in their
// order: the same bits for any number of threads.
#include "token_bce.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/token_bce_rows.h"

namespace misplace::token_bce {
namespace {

constexpr int64_t fewest_rows = 64, most_chunks = 128;
constexpr int64_t line = 64;  // bytes; no two chunks share one

// As PyTorch's own kernels choose, so ATEN_CPU_CAPABILITY (default, avx2, avx512) can ask for less.
const Runs& choose_runs() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512" && __builtin_cpu_supports("avx512bf16")) return avx512_runs;
  if (capability == "AVX512" || capability == "AVX2") return avx2_runs;
#endif
  return plain_runs;
}

const Runs& runs_here() {
  static const Runs& runs = choose_runs();
  return runs;
}

template <class T, class C>
Run<T, C> run_of(const Runs& runs) {
  if constexpr (std::is_same_v<T, double>) return runs.of_double;
  else if constexpr (std::is_same_v<T, float>) return runs.of_float;
  else return runs.of_bfloat16;
}

// The parameters in C, and what a row needs of them.
template <class C>
struct Parameters {
  at::Tensor norm_weight, norm_bias, weight, bias;
  std::vector<C> h;
  C constant;

  explicit Parameters(const Inputs& in)
      : norm_weight(as_c(in.norm_weight)), norm_bias(as_c(in.norm_bias)), weight(as_c(in.weight)),
        bias(as_c(in.bias)), h(in.width()) {
    const C *of_norm = norm_weight.const_data_ptr<C>(), *of_bias = norm_bias.const_data_ptr<C>();
    const C* of_head = weight.const_data_ptr<C>();
    double sum = 0, at_zero = static_cast<double>(*bias.const_data_ptr<C>());
    for (size_t i = 0; i < h.size(); ++i) {
      h[i] = of_norm[i] * of_head[i];
      sum += static_cast<double>(h[i]);
      at_zero += static_cast<double>(of_bias[i]) * static_cast<double>(of_head[i]);
    }
    for (C& value : h) value -= static_cast<C>(sum / static_cast<double>(h.size()));
    constant = static_cast<C>(at_zero);
  }

  static at::Tensor as_c(const at::Tensor& tensor) {
    return tensor.to(c10::CppTypeToScalarType<C>::value).contiguous();
  }
};

template <class C>
double sum_of_weights(const C* weights, int64_t count) {
  if (!weights) return static_cast<double>(count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(weights[i]);
  return sum;
}

// The sums of all rows; `partial` holds one direction a chunk, the first of which becomes the total.
template <class T, class C>
Sums<C> run_chunks(const Rows<T, C>& rows, int64_t num_rows, std::vector<C>& partial) {
  const int64_t chunk_rows = std::max(fewest_rows, (num_rows + most_chunks - 1) / most_chunks);
  const int64_t num_chunks = (num_rows + chunk_rows - 1) / chunk_rows;
  const int64_t pitch = (rows.width * static_cast<int64_t>(sizeof(C)) + line - 1) / line * line / sizeof(C);
  partial.resize(rows.d_tokens ? num_chunks * pitch : 0);
  std::vector<Sums<C>> sums(num_chunks);
  const Run<T, C> run = run_of<T, C>(runs_here());
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Sums<C> own{partial.data() + chunk * pitch, 0, 0};
      run(rows, chunk * chunk_rows, std::min(num_rows, (chunk + 1) * chunk_rows), own);
      sums[chunk] = own;
    }
  });
  Sums<C> total = sums[0];
  for (int64_t chunk = 1; chunk < num_chunks; ++chunk) {
    total.slopes += sums[chunk].slopes;
    total.loss += sums[chunk].loss;
    for (int64_t i = 0; rows.d_tokens && i < rows.width; ++i) total.direction[i] += sums[chunk].direction[i];
  }
  return total;
}

template <class C>
void write_parameter_gradients(const Parameters<C>& of, const Sums<C>& sums, C* out) {
  const int64_t width = of.norm_weight.numel();
  const C* norm_weight = of.norm_weight.template const_data_ptr<C>();
  const C* norm_bias = of.norm_bias.template const_data_ptr<C>();
  const C* weight = of.weight.template const_data_ptr<C>();
  const C slopes = static_cast<C>(sums.slopes);
  for (int64_t i = 0; i < width; ++i) {
    const auto d = parameter_gradient(sums.direction[i], slopes, norm_weight[i], norm_bias[i], weight[i]);
    out[i] = d.norm_weight;
    out[width + i] = d.norm_bias;
    out[2 * width + i] = d.weight;
  }
  out[3 * width] = slopes;
}

template <class T, class C>
Result compute(const Inputs& in, bool gradients) {
  const auto options = in.tokens.options().dtype(c10::CppTypeToScalarType<C>::value);
  const int64_t num_rows = in.num_rows(), width = in.width();
  at::Tensor loss = at::empty({}, options), logits = at::empty({in.batch(), in.kept()}, options);
  at::Tensor d_tokens = at::empty({0}, in.tokens.options()), d_parameters = at::empty({0}, options);
  if (gradients) {
    d_tokens = at::empty(in.tokens.sizes(), in.tokens.options());
    d_parameters = at::empty({3 * width + 1}, options);
  }
  const at::Tensor tokens = in.tokens.stride(2) == 1 || width == 1 ? in.tokens : in.tokens.contiguous();
  const bool is_flag = in.target.scalar_type() == at::kBool;
  const at::Tensor target = is_flag ? in.target.contiguous() : Parameters<C>::as_c(in.target);
  const at::Tensor token_weight = in.token_weight ? Parameters<C>::as_c(*in.token_weight) : at::Tensor();
  const C* weights = in.token_weight ? token_weight.const_data_ptr<C>() : nullptr;
  const double weight_sum = sum_of_weights(weights, num_rows);
  const Parameters<C> parameters(in);
  const Rows<T, C> rows{
      .tokens = tokens.const_data_ptr<T>() + in.offset * tokens.stride(1),
      .image_stride = tokens.stride(0),
      .token_stride = tokens.stride(1),
      .kept = in.kept(),
      .offset = in.offset,
      .width = width,
      .h = parameters.h.data(),
      .constant = parameters.constant,
      .eps = static_cast<C>(in.eps),
      .inverse_width = 1 / static_cast<C>(width),
      .flags = is_flag ? target.const_data_ptr<bool>() : nullptr,
      .targets = is_flag ? nullptr : target.const_data_ptr<C>(),
      .token_weight = weights,
      .share = static_cast<C>(1 / weight_sum),
      .logits = logits.mutable_data_ptr<C>(),
      .d_tokens = gradients ? d_tokens.mutable_data_ptr<T>() : nullptr,
  };
  std::vector<C> partial;
  const Sums<C> sums = run_chunks(rows, num_rows, partial);
  *loss.mutable_data_ptr<C>() = static_cast<C>(sums.loss / weight_sum);
  if (gradients) write_parameter_gradients(parameters, sums, d_parameters.mutable_data_ptr<C>());
  return {loss, logits, d_tokens, d_parameters};
}

Result token_bce_cpu(const at::Tensor& tokens, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                     const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& target,
                     const std::optional<at::Tensor>& token_weight, int64_t offset, double eps, bool gradients) {
  const Inputs in{tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps};
  check(in);
  switch (tokens.scalar_type()) {
    case at::kFloat: return compute<float, float>(in, gradients);
    case at::kDouble: return compute<double, double>(in, gradients);
    case at::kBFloat16: return compute<c10::BFloat16, float>(in, gradients);
    default:
      TORCH_CHECK_TYPE(false, "token_bce: impl=native takes bfloat16, float32 or float64 tokens on the CPU, not ",
                       tokens.scalar_type());
  }
}

std::string token_bce_path() { return runs_here().path; }

}  // namespace
}  // namespace misplace::token_bce

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("token_bce", &misplace::token_bce::token_bce_cpu); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) {
  m.impl("token_bce_path", &misplace::token_bce::token_bce_path);
}
