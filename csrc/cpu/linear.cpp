// The gradient of a bias on the CPU: the sum of all rows, in fp32. Which rows a thread takes changes no bit.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#define MISPLACE_OP linear
#define MISPLACE_BODY "cpu/column_sums_body.h"
#include "cpu/each_isa.h"

namespace misplace::linear {
namespace {

constexpr int64_t most_tasks = 32, fewest_rows = 64;

template <class T>
struct Kernel {
  void (*column_sums)(const T*, int64_t, int64_t, float*) = plain::column_sums<T>;

  explicit Kernel(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) column_sums = avx2::column_sums<T>;
    if (isa >= Isa::avx512) column_sums = avx512::column_sums<T>;
    if (isa >= Isa::avx512_bf16) column_sums = avx512_bf16::column_sums<T>;
#endif
  }
};

template <class T>
void run(const at::Tensor& rows, at::Tensor& sums, Isa isa) {
  const auto kernel = Kernel<T>(isa).column_sums;
  const int64_t count = rows.size(0), width = rows.size(1);
  const int64_t per_task = std::max(fewest_rows, (count + most_tasks - 1) / most_tasks);
  const int64_t tasks = (count + per_task - 1) / per_task;
  const T* in = static_cast<const T*>(rows.const_data_ptr());
  at::Tensor partial = at::empty({std::max<int64_t>(tasks, 1), width}, sums.options());
  float *parts = partial.mutable_data_ptr<float>(), *out = sums.mutable_data_ptr<float>();
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * per_task;
      kernel(in + first * width, std::min(per_task, count - first), width, parts + task * width);
    }
  });
  Kernel<float>(isa).column_sums(parts, tasks, width, out);
}

at::Tensor linear_bias_gradient(const at::Tensor& dy, c10::string_view isa_name) {
  TORCH_CHECK_VALUE(dy.dim() == 2, "linear: the rows of a bias gradient must be [M, O], not ", dy.sizes());
  TORCH_CHECK_TYPE(dy.scalar_type() == at::kFloat || dy.scalar_type() == at::kBFloat16,
                   "linear: native sums float32 or bfloat16, not ", dy.scalar_type());
  const Isa isa = isa_named(isa_name);
  at::Tensor sums = at::empty({dy.size(1)}, dy.options().dtype(at::kFloat));
  if (dy.scalar_type() == at::kFloat) {
    run<float>(dy.contiguous(), sums, isa);
  } else {
    run<uint16_t>(dy.contiguous(), sums, isa);
  }
  return sums;
}

}  // namespace
}  // namespace misplace::linear

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("linear_bias_gradient", &misplace::linear::linear_bias_gradient); }
