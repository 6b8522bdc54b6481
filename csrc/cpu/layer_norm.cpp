// layer_norm on the CPU: fp32 statistics and sums whatever x holds, one pass over memory each way.
//
// The gradients of weight and bias are summed by chunks of rows that are always the same, then chunk by chunk: the
// bits do not depend on the number of threads.
#include "cpu/layer_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace misplace::layer_norm {

template <class T>
struct ForwardOf {
  const T *x, *branch;  // [rows, width]; no branch: null
  const float* branch_scale;  // [rows / rows_per_image] or null
  const float *weight, *bias;
  T *sum, *y;  // sum: null without a branch
  float *mean, *rstd;  // null where they are not saved
  int64_t width, rows_per_image;
  float eps;
};

template <class T>
struct BackwardOf {
  const T *dsum, *dnormed, *sum;  // dsum: null where it is 0
  const float *branch_scale, *weight, *mean, *rstd;
  T *dx, *dbranch;  // dbranch: null where it is dx
  int64_t width, rows_per_image;
};

}  // namespace misplace::layer_norm

#define MISPLACE_OP layer_norm
#define MISPLACE_BODY "cpu/layer_norm_body.h"
#include "cpu/each_isa.h"

namespace misplace::layer_norm {
namespace {

constexpr int64_t least_rows = 64, most_chunks = 64;

template <class T>
struct Kernels {
  decltype(&plain::forward<T>) forward = plain::forward<T>;
  decltype(&plain::backward<T>) backward = plain::backward<T>;
  decltype(&plain::add_parts) add_parts = plain::add_parts;

  explicit Kernels(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) {
      forward = avx2::forward<T>, backward = avx2::backward<T>, add_parts = avx2::add_parts;
    }
    if (isa >= Isa::avx512) {
      forward = avx512::forward<T>, backward = avx512::backward<T>, add_parts = avx512::add_parts;
    }
    if (isa >= Isa::avx512_bf16) {
      forward = avx512_bf16::forward<T>, backward = avx512_bf16::backward<T>, add_parts = avx512_bf16::add_parts;
    }
#endif
  }
};

template <class T>
const T* read(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
const T* read(const Maybe& x) {
  return x ? read<T>(*x) : nullptr;
}

template <class T>
T* write(const at::Tensor& x) {
  return x.numel() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

Maybe dense(const Maybe& x) { return x ? Maybe(x->contiguous()) : x; }

at::Tensor fp32(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

int64_t rows_per_image(const at::Tensor& x) { return std::max<int64_t>(x.numel() / x.size(-1) / x.size(0), 1); }

// Rows of a chunk: a function of their number alone.
int64_t chunk_of(int64_t rows) { return std::max(least_rows, (rows + most_chunks - 1) / most_chunks); }

// run(number of the chunk, its first row, past its last, two rows of scratch)
template <class Run>
void each_chunk(int64_t rows, int64_t width, const Run& run) {
  const int64_t chunk = chunk_of(rows);
  at::parallel_for(0, (rows + chunk - 1) / chunk, 1, [&](int64_t first, int64_t last) {
    const at::Tensor scratch = at::empty({2, width}, at::kFloat);  // aligned: a vector across two lines costs double
    float* two_rows = scratch.mutable_data_ptr<float>();
    for (int64_t i = first; i < last; ++i) run(i, i * chunk, std::min((i + 1) * chunk, rows), two_rows);
  });
}

template <class T>
void run_forward(const Input& in, const Forward& to, Isa isa) {
  const at::Tensor x = in.x.contiguous(), weight = fp32(in.weight), bias = fp32(in.bias);
  const Maybe branch = dense(in.branch), scale = dense(in.branch_scale);
  const ForwardOf<T> of{read<T>(x),
                        read<T>(branch),
                        read<float>(scale),
                        read<float>(weight),
                        read<float>(bias),
                        branch ? write<T>(to.sum) : nullptr,
                        write<T>(to.normed),
                        write<float>(to.mean),
                        write<float>(to.rstd),
                        x.size(-1),
                        rows_per_image(x),
                        static_cast<float>(in.eps)};
  const auto kernel = Kernels<T>(isa).forward;
  each_chunk(x.numel() / of.width, of.width, [&](int64_t, int64_t begin, int64_t end, float* scratch) {
    kernel(of, begin, end, scratch);
  });
}

template <class T>
void run_backward(const Maybe& dsum_in, const at::Tensor& dnormed_in, const at::Tensor& sum, const Maybe& scale_in,
                  const at::Tensor& weight_in, const at::Tensor& mean, const at::Tensor& rstd, const Gradients& to,
                  Isa isa) {
  const Maybe dsum = dense(dsum_in), scale = dense(scale_in);
  const at::Tensor dnormed = dnormed_in.contiguous(), weight = fp32(weight_in);
  const BackwardOf<T> of{read<T>(dsum),         read<T>(dnormed),      read<T>(sum),
                         read<float>(scale),    read<float>(weight),   read<float>(mean),
                         read<float>(rstd),     write<T>(to.dx),       write<T>(to.dbranch),
                         sum.size(-1),          rows_per_image(sum)};
  const Kernels<T> kernels(isa);
  const int64_t rows = sum.numel() / of.width, chunk = chunk_of(rows), chunks = (rows + chunk - 1) / chunk;
  const at::Tensor parts = at::empty({chunks, 2, of.width}, to.daffine.options());
  float* daffine = write<float>(parts);
  each_chunk(rows, of.width, [&](int64_t i, int64_t begin, int64_t end, float* scratch) {
    kernels.backward(of, begin, end, daffine + 2 * i * of.width, scratch);
  });
  kernels.add_parts(daffine, chunks, 2 * of.width, write<float>(to.daffine));
}

}  // namespace

Forward forward(const Input& in, bool save, bool in_place, Isa isa) {
  const auto statistics = [&] {
    return at::empty({save ? in.x.numel() / in.x.size(-1) : 0}, in.x.options().dtype(at::kFloat));
  };
  const at::Tensor sum = in.branch && !in_place ? at::empty(in.x.sizes(), in.x.options()) : in.x;
  const Forward to{sum, at::empty(in.x.sizes(), in.x.options()), statistics(), statistics()};
  if (in.x.numel() == 0) return to;
  in.x.scalar_type() == at::kFloat ? run_forward<float>(in, to, isa) : run_forward<uint16_t>(in, to, isa);
  return to;
}

Gradients backward(const Maybe& dsum, const at::Tensor& dnormed, const at::Tensor& sum_in, const Maybe& branch_scale,
                   const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd, Isa isa) {
  const at::Tensor sum = sum_in.contiguous();
  const Gradients to{at::empty(sum.sizes(), sum.options()),
                     branch_scale ? at::empty(sum.sizes(), sum.options()) : at::empty({0}, sum.options()),
                     at::empty({2, sum.size(-1)}, sum.options().dtype(at::kFloat))};
  if (sum.numel() == 0) {
    to.daffine.zero_();
    return to;
  }
  const auto run = sum.scalar_type() == at::kFloat ? run_backward<float> : run_backward<uint16_t>;
  run(dsum, dnormed, sum, branch_scale, weight, mean, rstd, to, isa);
  return to;
}

}  // namespace misplace::layer_norm
