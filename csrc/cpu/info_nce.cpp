// info_nce on the CPU: similarities of a block of queries and a panel of keys at a time, in a core's cache, blocks in
// parallel; loss and gradients in one call.
//
// The gradient of the keys needs the powers of a row after its sum is known. Queries go in rounds: the powers of one
// round are kept, rounds are as long as a few MB allow, and after each the panels of keys, in parallel, take its part.
// Rows that are their own keys need no rounds: cpu/info_nce_own_keys.h, with a 64th of the matrix in sums of columns.
// Blocks, rounds and panels follow from the shape alone and no two tasks write to one place: the same bits for any
// number of threads.
#include "info_nce.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <string>

#include "cpu/info_nce_problem.h"
#define MISPLACE_OP info_nce
#define MISPLACE_BODY "cpu/info_nce_body.h"
#include "cpu/each_isa.h"

namespace misplace::info_nce {
namespace {

constexpr int64_t round_bytes = 8 << 20, fewest_round_rows = 256, many_queries = 1024;
constexpr double least_bounded_temperature = 0.04;  // e^(-2 / 0.04) is far from the smallest fp32

template <class T, class Factor>
struct Kernels {
  using Of = Problem<T, Factor>;
  void (*pack_keys)(const Of&, int64_t, Scratch&);
  void (*run_block)(const Of&, int64_t, int64_t, Scratch&);
  void (*add_to_keys)(const Of&, int64_t, int64_t, bool);
  void (*finish_keys)(const Of&, int64_t, Scratch&);
  void (*sum_block)(const Of&, int64_t, Scratch&);
  void (*finish_sums)(const Of&, int64_t);
  void (*own_gradient)(const Of&, int64_t, Scratch&);

  explicit Kernels(Isa isa) {
#define MISPLACE_TAKE(name)                                                              \
  pack_keys = name::pack_keys<T, Factor>, run_block = name::run_block<T, Factor>,        \
  add_to_keys = name::add_to_keys<T, Factor>, finish_keys = name::finish_keys<T, Factor>, \
  sum_block = name::sum_block<T, Factor>, finish_sums = name::finish_sums<T, Factor>,    \
  own_gradient = name::own_gradient<T, Factor>
    MISPLACE_TAKE(plain);
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) MISPLACE_TAKE(avx2);
    if (isa >= Isa::avx512) MISPLACE_TAKE(avx512);
    if (isa >= Isa::avx512_bf16) MISPLACE_TAKE(avx512_bf16);
#endif
#undef MISPLACE_TAKE
  }
};

// run(task, scratch) for tasks 0 .. count - 1 in parallel.
template <class Factor, class Run>
void each(int64_t count, size_t scratch_bytes, const Run& run) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_bytes);
    for (int64_t i = begin; i < end; ++i) {
      scratch.take_back();
      run(i, scratch);
    }
    if constexpr (sizeof(Factor) == 2) done_multiplying_pairs();
  });
}

template <class T, class Factor>
size_t task_bytes(const Problem<T, Factor>& in) {
  const int64_t of_block = in.block_rows * (2 * in.padded() + 2 * panel + 32), of_panel = panel * in.padded();
  return sizeof(float) * std::max(of_block, of_panel) + 16 * 64;
}

// The memory that threads share; give: takes a piece of it. Called twice: for its size, and for its pieces.
template <class T, class Factor, class Give>
void share_memory(Problem<T, Factor>& in, bool own_keys, const Give& give) {
  const int64_t of_keys = in.panels() * panel * in.padded();
  give(in.by_element, of_keys);
  if (in.query_gradient) give(in.by_row, of_keys);
  give(in.query_inverse, in.queries);
  give(in.key_inverse, in.keys);
  give(in.slope, in.queries);
  give(in.losses, in.queries);
  if (own_keys) {
    give(in.column_sums, in.blocks() * in.panels() * panel);
    give(in.row_sums, in.queries);
    give(in.positive, in.queries);
    give(in.inverse_sum, in.panels() * panel);
  } else if (in.key_gradient) {
    give(in.powers, in.panels() * in.round_rows * panel);
    give(in.weighted, round_up(in.width, 16) * in.round_rows);
    give(in.d_keys, of_keys);
  }
}

template <class T, class Factor>
Scratch shared_memory(Problem<T, Factor>& in, bool own_keys) {
  size_t bytes = 0;
  share_memory(in, own_keys, [&](auto*& piece, int64_t count) { bytes += round_up(count * sizeof(*piece), 64); });
  Scratch shared(bytes);
  share_memory(in, own_keys, [&](auto*& piece, int64_t count) {
    piece = shared.take<std::remove_reference_t<decltype(*piece)>>(count);
  });
  return shared;
}

template <class T, class Factor>
void solve(const Problem<T, Factor>& in, const Kernels<T, Factor>& kernels) {
  const size_t bytes = task_bytes(in);
  for (int64_t first = 0; first < in.queries; first += in.round_rows) {
    const int64_t rows = std::min(in.round_rows, round_up(in.queries - first, in.block_rows));
    each<Factor>(rows / in.block_rows, bytes, [&](int64_t i, Scratch& scratch) {
      kernels.run_block(in, first + i * in.block_rows, i * in.block_rows, scratch);
    });
    if (!in.key_gradient) continue;
    each<Factor>(in.panels(), bytes, [&](int64_t i, Scratch& scratch) {
      kernels.add_to_keys(in, i, rows, first > 0);
      if (first + in.round_rows >= in.queries) kernels.finish_keys(in, i, scratch);
    });
  }
}

template <class T, class Factor>
void solve_own_keys(const Problem<T, Factor>& in, const Kernels<T, Factor>& kernels) {
  const size_t bytes = task_bytes(in);
  const int64_t blocks = in.blocks();
  // the first block has most panels to meet, the last fewest: together as many as any other two
  each<Factor>((blocks + 1) / 2, bytes, [&](int64_t i, Scratch& scratch) {
    kernels.sum_block(in, i, scratch);
    scratch.take_back();
    if (i < blocks - 1 - i) kernels.sum_block(in, blocks - 1 - i, scratch);
  });
  each<Factor>(in.panels(), 0, [&](int64_t i, Scratch&) { kernels.finish_sums(in, i); });
  if (!in.query_gradient) return;
  each<Factor>(blocks, bytes, [&](int64_t i, Scratch& scratch) { kernels.own_gradient(in, i, scratch); });
}

template <class T>
Rows<const T> rows_of(const at::Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0)};
}

at::Tensor readable(const at::Tensor& x) { return x.stride(1) == 1 || x.size(1) == 1 ? x : x.contiguous(); }

struct Settings {
  double temperature;
  int64_t first_row;
  bool pairs, query_gradient, key_gradient, own_keys;
};

template <class T, class Factor>
Result run(const at::Tensor& query_in, const at::Tensor& key_in, const Settings& settings, Isa isa) {
  const at::Tensor query = readable(query_in), key = settings.own_keys ? query : readable(key_in);
  const auto gradient = [](const at::Tensor& x, bool wanted) {
    return wanted ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  };
  at::Tensor d_query = gradient(query, settings.query_gradient), d_key = gradient(key, settings.key_gradient);
  Problem<T, Factor> in{
      .query = rows_of<T>(query),
      .key = rows_of<T>(key),
      .queries = query.size(0),
      .keys = key.size(0),
      .width = query.size(1),
      .first_row = settings.first_row,
      .pairs = settings.pairs,
      .needs_largest = settings.temperature < least_bounded_temperature,
      .block_rows = query.size(0) >= many_queries ? 64 : 32,
      .temperature = static_cast<float>(settings.temperature),
      .query_gradient = settings.query_gradient,
      .key_gradient = settings.key_gradient,
      .d_query = static_cast<T*>(d_query.mutable_data_ptr()),
      .d_key = static_cast<T*>(d_key.mutable_data_ptr()),
  };
  const int64_t every = in.blocks() * in.block_rows;
  const int64_t affordable = round_bytes / static_cast<int64_t>(in.panels() * panel * sizeof(Factor));
  in.round_rows = in.key_gradient ? std::min(every, std::max(fewest_round_rows, affordable / 64 * 64)) : every;
  const Scratch shared = shared_memory(in, settings.own_keys);
  const Kernels<T, Factor> kernels(isa);
  each<Factor>(in.panels(), task_bytes(in), [&](int64_t i, Scratch& scratch) { kernels.pack_keys(in, i, scratch); });
  if (settings.own_keys) solve_own_keys(in, kernels);
  else solve(in, kernels);
  double sum = 0;
  for (int64_t i = 0; i < in.queries; ++i) sum += in.losses[i];
  at::Tensor loss = at::empty({}, query.options().dtype(at::kFloat));
  *loss.mutable_data_ptr<float>() = static_cast<float>(sum / static_cast<double>(in.queries));
  return {loss, d_query, d_key};
}

bool takes_pairs(Isa isa) { return isa >= Isa::avx512_bf16 && multiplies_pairs(); }

Result run_in_dtype(const at::Tensor& query, const at::Tensor& key, const Settings& settings, Isa isa) {
  if (query.scalar_type() == at::kFloat) return run<float, float>(query, key, settings, isa);
  if (takes_pairs(isa)) return run<uint16_t, uint16_t>(query, key, settings, isa);
  return run<uint16_t, float>(query, key, settings, isa);
}

Result info_nce_cpu(const at::Tensor& query, const std::optional<at::Tensor>& key_or_none, double temperature,
                    int64_t first_row, bool pairs, bool query_gradient, bool key_gradient, c10::string_view isa_name) {
  const bool no_key = !key_or_none;
  const at::Tensor& key = no_key ? query : *key_or_none;
  check(query, key, temperature, first_row, pairs);
  const Isa isa = isa_named(isa_name);
  // powers are symmetric as long as all are relative to one number
  const bool own_keys = no_key && temperature >= least_bounded_temperature;
  const bool separately = no_key && !own_keys;
  const bool wanted_of_keys = no_key ? separately && query_gradient : key_gradient;
  const Settings settings{temperature, first_row, pairs, query_gradient, wanted_of_keys, own_keys};
  Result result = run_in_dtype(query, key, settings, isa);
  if (separately && query_gradient) std::get<1>(result).add_(std::get<2>(result));
  if (no_key) std::get<2>(result) = at::empty({0}, query.options());
  return result;
}

std::string info_nce_path() {
  const std::string isa(isa_names[static_cast<int>(best_isa())]);
  return isa + (takes_pairs(best_isa()) ? ", brgemm bf16" : ", fp32 products");
}

}  // namespace
}  // namespace misplace::info_nce

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("info_nce", &misplace::info_nce::info_nce_cpu); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) {
  m.impl("info_nce_path", &misplace::info_nce::info_nce_path);
}
