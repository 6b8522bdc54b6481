// info_nce on the CPU: similarities of a block of queries and a panel of keys at a time, in a core's cache, blocks in
// parallel; loss and gradients in one call.
//
// The gradient of the keys needs the powers of a row after its sum is known. Queries go in rounds: the powers of one
// round are kept, rounds are as long as a few MB allow, and after each the panels of keys, in parallel, take its part.
// Blocks, rounds and panels follow from the shape alone and no two tasks write to one place: the same bits for any
// number of threads.
#include "info_nce.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/info_nce_problem.h"
#define MISPLACE_OP info_nce
#define MISPLACE_BODY "cpu/info_nce_body.h"
#include "cpu/each_isa.h"

namespace misplace::info_nce {

void multiply_pairs(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                    float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, reinterpret_cast<const c10::BFloat16*>(a),
                              reinterpret_cast<const c10::BFloat16*>(b), c, /*is_vnni=*/true);
}

namespace {

constexpr int64_t round_bytes = 8 << 20, fewest_round_rows = 256, many_queries = 1024;
constexpr double least_bounded_temperature = 0.04;  // e^(-2 / 0.04) is far from the smallest fp32

// Whether brgemm, asked once, gets 1 * 3 + 2 * 4 right.
bool multiplies_pairs() {
  static const bool works = [] {
    if (best_isa() < Isa::avx512_bf16 || !at::globalContext().userEnabledMkldnn()) return false;
    constexpr uint16_t one = 0x3f80, two = 0x4000, three = 0x4040, four = 0x4080;
    std::array<uint16_t, 32> a{one, two}, b{three, four};
    std::array<float, 16> c{};
    try {
      multiply_pairs(1, 16, 2, a.data(), 2, b.data(), 16, c.data(), 16, false);
    } catch (const c10::Error&) {
      return false;
    }
    at::native::cpublas::brgemm_release(true);
    return c[0] == 11 && c[1] == 0;
  }();
  return works;
}

template <class T, class Factor>
struct Kernels {
  using Of = Problem<T, Factor>;
  void (*pack_keys)(const Of&, int64_t, Scratch&);
  void (*run_block)(const Of&, int64_t, int64_t, Scratch&);
  void (*add_to_keys)(const Of&, int64_t, int64_t, bool);
  void (*finish_keys)(const Of&, int64_t, Scratch&);

  explicit Kernels(Isa isa) {
#define MISPLACE_TAKE(name)                                                                                    \
  pack_keys = name::pack_keys<T, Factor>, run_block = name::run_block<T, Factor>,                              \
  add_to_keys = name::add_to_keys<T, Factor>, finish_keys = name::finish_keys<T, Factor>
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
    // a core's tile registers are its own to give back
    if constexpr (sizeof(Factor) == 2) at::native::cpublas::brgemm_release(true);
  });
}

template <class T, class Factor>
size_t shared_bytes(const Problem<T, Factor>& in) {
  const int64_t of_keys = in.panels() * panel * in.padded(), elements = round_up(in.width, 16);
  int64_t factors = 2 * of_keys, floats = in.queries * (in.padded() + 4) + in.keys;
  if (in.key_gradient) {
    factors += in.round_rows * (in.panels() * panel + elements);
    floats += of_keys;
  }
  return factors * sizeof(Factor) + floats * sizeof(float) + 16 * 64;
}

template <class T, class Factor>
size_t task_bytes(const Problem<T, Factor>& in) {
  const int64_t of_block = in.block_rows * (2 * in.padded() + 2 * panel + 32), of_panel = panel * in.padded();
  return sizeof(float) * std::max(of_block, of_panel) + 16 * 64;
}

template <class T, class Factor>
void take_memory(Problem<T, Factor>& in, Scratch& shared) {
  const int64_t of_keys = in.panels() * panel * in.padded();
  in.by_element = shared.take<Factor>(of_keys);
  in.by_row = shared.take<Factor>(of_keys);
  in.query_inverse = shared.take<float>(in.queries);
  in.key_inverse = shared.take<float>(in.keys);
  in.slope = shared.take<float>(in.queries);
  in.losses = shared.take<double>(in.queries);
  if (in.d_own_keys) in.d_own_keys = shared.take<float>(in.queries * in.padded());
  if (!in.key_gradient) return;
  in.powers = shared.take<Factor>(in.panels() * in.round_rows * panel);
  in.weighted = shared.take<Factor>(round_up(in.width, 16) * in.round_rows);
  in.d_keys = shared.take<float>(of_keys);
}

// The loss; gradients where the problem says so.
template <class T, class Factor>
double solve(const Problem<T, Factor>& in, Isa isa) {
  const Kernels<T, Factor> kernels(isa);
  const size_t bytes = task_bytes(in);
  each<Factor>(in.panels(), bytes, [&](int64_t i, Scratch& scratch) { kernels.pack_keys(in, i, scratch); });
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
  double sum = 0;
  for (int64_t i = 0; i < in.queries; ++i) sum += in.losses[i];
  return sum / static_cast<double>(in.queries);
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
  const bool own_gradient = settings.own_keys && settings.query_gradient;
  at::Tensor d_query = gradient(query, settings.query_gradient);
  at::Tensor d_key = gradient(key, settings.key_gradient && !settings.own_keys);
  float marker = 0;  // not null: own keys get memory
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
      .key_gradient = own_gradient || (settings.key_gradient && !settings.own_keys),
      .d_own_keys = own_gradient ? &marker : nullptr,
      .d_query = static_cast<T*>(d_query.mutable_data_ptr()),
      .d_key = static_cast<T*>((own_gradient ? d_query : d_key).mutable_data_ptr()),
  };
  const int64_t every = round_up(in.queries, in.block_rows);
  const int64_t affordable = round_bytes / static_cast<int64_t>(in.panels() * panel * sizeof(Factor));
  in.round_rows = in.key_gradient ? std::min(every, std::max(fewest_round_rows, affordable / 64 * 64)) : every;
  Scratch shared(shared_bytes(in));
  take_memory(in, shared);
  at::Tensor loss = at::empty({}, query.options().dtype(at::kFloat));
  *loss.mutable_data_ptr<float>() = static_cast<float>(solve(in, isa));
  return {loss, d_query, d_key};
}

bool takes_pairs(Isa isa) { return isa >= Isa::avx512_bf16 && multiplies_pairs(); }

Result info_nce_cpu(const at::Tensor& query, const std::optional<at::Tensor>& key_or_none, double temperature,
                    int64_t first_row, bool pairs, bool query_gradient, bool key_gradient, c10::string_view isa_name) {
  const at::Tensor& key = key_or_none ? *key_or_none : query;
  check(query, key, temperature, first_row, pairs);
  const Isa isa = isa_named(isa_name);
  const Settings settings{temperature, first_row, pairs, query_gradient, key_gradient, !key_or_none};
  if (query.scalar_type() == at::kFloat) return run<float, float>(query, key, settings, isa);
  if (takes_pairs(isa)) return run<uint16_t, uint16_t>(query, key, settings, isa);
  return run<uint16_t, float>(query, key, settings, isa);
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
