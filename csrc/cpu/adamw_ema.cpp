// AdamW, the EMA teacher and the bfloat16 copies on the CPU: one pass over fixed pieces of every tensor.
//
// No element depends on another, so nothing depends on the number of threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "adamw_ema.h"
#include "cpu/adamw_ema_span.h"
#include "cpu/vector_path.h"

namespace misplace::adamw_ema {
namespace {

constexpr int64_t piece_size = int64_t{1} << 14;    // elements that one thread takes at a time
constexpr int64_t stream_above = int64_t{1} << 21;  // elements: smaller copies may still be cached when read

struct Work {
  const std::vector<Member>& members;
  const Coefficients& coefficients;
  double decay_rate;  // lr * decay_scale, not yet rounded
  SpanUpdate update;
  bool stream;
};

Numbers read(at::ArrayRef<double> numbers, const Scalars& scalars) {
  check_numbers(numbers, scalars);
  double now[num_numbers];
  for (int i = 0; i < num_numbers; ++i) {
    const std::optional<at::Tensor> scalar = scalars.get(i);
    now[i] = scalar.has_value() ? scalar->item().toDouble() : numbers[i];
  }
  return to_numbers(now);
}

SpanUpdate span_update(VectorPath path) {
#ifdef MISPLACE_HAS_VECTOR_PATHS
  if (path == VectorPath::avx512) return update_avx512;
  if (path == VectorPath::avx2) return update_avx2;
#endif
  return update_plain;
}

// Pieces first_piece .. last_piece of all tensors in a row; ends[i] is the number of pieces of tensors 0..i.
void run(const Work& work, const std::vector<int64_t>& ends, int64_t first_piece, int64_t last_piece) {
  size_t i = std::upper_bound(ends.begin(), ends.end(), first_piece) - ends.begin();
  for (int64_t piece = first_piece; piece < last_piece; ++piece) {
    while (piece >= ends[i]) ++i;
    const Member& member = work.members[i];
    const int64_t begin = (piece - (i ? ends[i - 1] : 0)) * piece_size;
    const float keep = static_cast<float>(1 - work.decay_rate * member.weight_decay);
    work.update(member, begin, std::min(begin + piece_size, member.size), keep, work.coefficients, work.stream);
  }
}

void adamw_ema_cpu(at::TensorList state, at::IntArrayRef slots, const Gradients& gradients,
                   at::ArrayRef<double> weight_decay, at::ArrayRef<double> numbers, const Scalars& scalars,
                   double beta1, double beta2, double eps, std::string_view path) {
  const std::vector<Member> found = members(state, slots, gradients, weight_decay);
  const Numbers now = read(numbers, scalars);
  const Coefficients c = coefficients(now, {beta1, beta2, eps});
  if (c.found_inf != 0) return;
  std::vector<int64_t> ends;
  int64_t num_pieces = 0, num_elements = 0;
  for (const Member& member : found) {
    num_elements += member.size;
    ends.push_back(num_pieces += (member.size + piece_size - 1) / piece_size);
  }
  const Work work{found, c, now.lr * now.decay_scale, span_update(vector_path(path)), num_elements > stream_above};
  at::parallel_for(0, num_pieces, 1,
                   [&](int64_t begin, int64_t end) { run(work, ends, begin, end); });
}

std::string adamw_ema_path() { return name_of(vector_path("best")); }

}  // namespace
}  // namespace misplace::adamw_ema

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("adamw_ema", &misplace::adamw_ema::adamw_ema_cpu); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) {
  m.impl("adamw_ema_path", &misplace::adamw_ema::adamw_ema_path);
}
