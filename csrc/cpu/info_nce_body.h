// info_nce of a block of queries, of a panel of keys. No include guard: included once per instruction set
// (cpu/each_isa.h).
//
// Powers are e^((cosine - largest) / temperature), the positive and the row itself left out: what the positive adds is
// kept apart, so its gradient, 1 - its probability, is a sum of small numbers and no difference of large ones.

#include "cpu/info_nce_product.h"
#include "cpu/info_nce_rows.h"

constexpr float log2_e = 1.4426950408889634f;

// One query block's memory.
template <class Factor>
struct Block {
  int64_t first, count, rows;  // the queries; with those that fill the block, which are 0
  Factor* queries;             // [rows][padded width], normalised
  float *scores, *sums;        // [rows][64], [rows][lanes]
  float *largest, *positive, *inverse_sum;  // [rows]
  Factor* powers;                           // [rows][64]
  float* weighted_keys;                     // [rows][padded width]

  template <class T>
  Block(const Problem<T, Factor>& in, int64_t first, Scratch& scratch)
      : first(first), count(std::min(in.block_rows, in.queries - first)), rows(in.block_rows),
        queries(scratch.take<Factor>(rows * in.padded())), scores(scratch.take<float>(rows * panel)),
        sums(scratch.take<float>(rows * lanes)), largest(scratch.take<float>(rows)),
        positive(scratch.take<float>(rows)), inverse_sum(scratch.take<float>(rows)),
        powers(scratch.take<Factor>(rows * panel)), weighted_keys(scratch.take<float>(rows * in.padded())) {
    const int64_t padded = in.padded();
    for (int64_t i = 0; i < count; ++i) {
      in.query_inverse[first + i] = normalise(in.query[first + i], in.width, padded, queries + i * padded);
    }
    std::fill_n(queries + count * padded, (rows - count) * padded, Factor{});
    std::fill_n(sums, rows * lanes, 0.0f);
    std::fill_n(largest, rows, 1.0f);  // no cosine is larger
  }
};

// The cosines of a block and a panel; -inf for a positive, put aside, for a row itself and beyond the last key.
template <class T, class Factor>
static void score(const Problem<T, Factor>& in, const Block<Factor>& block, int64_t number) {
  const int64_t padded = in.padded(), first_key = number * panel, here = std::min(panel, in.keys - first_key);
  multiply(block.rows, panel, in.steps(), block.queries, padded, in.by_element + first_key * padded, block.scores,
           panel, false);
  constexpr float none = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < block.count; ++i) {
    float* scores = block.scores + i * panel;
    const int64_t own = in.first_row - first_key, positive = own + in.partner(block.first + i);
    if (positive >= 0 && positive < here) {
      block.positive[i] = scores[positive];
      scores[positive] = none;
    }
    const int64_t itself = own + block.first + i;
    if (in.pairs && itself >= 0 && itself < here) scores[itself] = none;
    for (int64_t key = here; key < panel; ++key) scores[key] = none;
  }
}

template <class T, class Factor>
static void find_largest(const Problem<T, Factor>& in, const Block<Factor>& block) {
  if (!in.needs_largest) return;
  std::fill_n(block.largest, block.count, -2.0f);
  for (int64_t number = 0; number < in.panels(); ++number) {
    score(in, block, number);
    for (int64_t i = 0; i < block.count; ++i) {
      f32v most = splat(block.largest[i]);
      for (int64_t key = 0; key < panel; key += lanes) most = larger(most, load(block.scores + i * panel + key));
      float parts[lanes];
      store(parts, most);
      block.largest[i] = *std::max_element(parts, parts + lanes);
    }
  }
  for (int64_t i = 0; i < block.count; ++i) block.largest[i] = std::max(block.largest[i], block.positive[i]);
}

MISPLACE_INLINE f32v power_of(const float* scores, float largest, float factor) {
  return exp2((load(scores) - largest) * factor, power_of_2);
}

// Powers of the scores, and their sums; `kept` is where the gradient of the keys will find them, or null.
template <class Factor>
static void raise(const Block<Factor>& block, float factor, float* kept) {
  float* powers = kept ? kept : block.powers;
  for (int64_t i = 0; i < block.rows; ++i) {
    f32v total = load(block.sums + i * lanes);
    for (int64_t key = 0; key < panel; key += lanes) {
      const f32v power = power_of(block.scores + i * panel + key, block.largest[i], factor);
      total += power;
      store(powers + i * panel + key, power);
    }
    store(block.sums + i * lanes, total);
  }
}

static void raise(const Block<bf16>& block, float factor, bf16* kept) {
  for (int64_t i = 0; i < block.rows; i += 2) {
    f32v even_total = load(block.sums + i * lanes), odd_total = load(block.sums + (i + 1) * lanes);
    for (int64_t key = 0; key < panel; key += lanes) {
      const int64_t at = i * panel + key;
      const f32v even = power_of(block.scores + at, block.largest[i], factor);
      const f32v odd = power_of(block.scores + at + panel, block.largest[i + 1], factor);
      even_total += even;
      odd_total += odd;
      const u16v even_bits = to_bf16(even), odd_bits = to_bf16(odd);
      __builtin_memcpy(block.powers + at, &even_bits, sizeof even_bits);
      __builtin_memcpy(block.powers + at + panel, &odd_bits, sizeof odd_bits);
      if (!kept) continue;
      const u32v both = __builtin_convertvector(even_bits, u32v) | __builtin_convertvector(odd_bits, u32v) << 16;
      __builtin_memcpy(kept + i * panel + 2 * key, &both, sizeof both);
    }
    store(block.sums + i * lanes, even_total);
    store(block.sums + (i + 1) * lanes, odd_total);
  }
}

// Loss and slope of a query from the sum of powers without its positive; returns one over the sum with it.
template <class T, class Factor>
static float finish_row(const Problem<T, Factor>& in, int64_t query, double others, double positive, double largest) {
  const double score = (positive - largest) / in.temperature, total = others + std::exp(score);
  in.losses[query] = score > -500 ? std::log1p(others * std::exp(-score)) : std::log(total) - score;
  in.slope[query] = static_cast<float>(others / total);
  return static_cast<float>(1 / total);
}

// Loss and gradient of the block's queries.
template <class T, class Factor>
static void finish_queries(const Problem<T, Factor>& in, const Block<Factor>& block) {
  const int64_t padded = in.padded();
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t query = block.first + i, key = in.first_row + in.partner(query);
    const double others = sum_of(block.sums + i * lanes);
    block.inverse_sum[i] = finish_row(in, query, others, block.positive[i], block.largest[i]);
    if (!in.query_gradient) continue;
    float* toward = block.weighted_keys + i * padded;
    combine(toward, block.inverse_sum[i], in.key[key], in.slope[query] * in.key_inverse[key], in.share(), in.width);
    through_normalise(in.query[query], in.query_inverse[query], toward, in.width, in.d_query + query * in.width);
  }
}

// What the keys of a panel add to block.weighted_keys.
template <class T, class Factor>
static void add_weighted_keys(const Problem<T, Factor>& in, const Block<Factor>& block, const Factor* powers,
                              int64_t number) {
  const int64_t padded = in.padded();
  multiply(block.rows, padded, panel, powers, panel, in.by_row + number * panel * padded, block.weighted_keys, padded,
           number > 0);
}

#include "cpu/info_nce_keys.h"
#include "cpu/info_nce_own_keys.h"

// The queries from `first` on; in_round: where they lie in what the gradient of the keys reads.
template <class T, class Factor>
static void run_block(const Problem<T, Factor>& in, int64_t first, int64_t in_round, Scratch& scratch) {
  const Block<Factor> block(in, first, scratch);
  find_largest(in, block);
  for (int64_t number = 0; number < in.panels(); ++number) {
    score(in, block, number);
    Factor* kept = in.key_gradient ? in.powers + (number * in.round_rows + in_round) * panel : nullptr;
    raise(block, log2_e / in.temperature, kept);
    if (!in.query_gradient) continue;
    add_weighted_keys(in, block, kept && sizeof(Factor) == sizeof(float) ? kept : block.powers, number);
  }
  finish_queries(in, block);
  if (in.key_gradient) weigh_queries(in, block, in_round);
}
