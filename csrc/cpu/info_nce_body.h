// info_nce of a block of queries, of a panel of keys. No include guard: included once per instruction set
// (cpu/each_isa.h).
//
// Powers are e^((cosine - largest) / temperature), the positive and the row itself left out: what the positive adds is
// kept apart, so its gradient, 1 - its probability, is a sum of small numbers and no difference of large ones.

#include "cpu/info_nce_product.h"

constexpr float log2_e = 1.4426950408889634f, shortest = 1e-12f;

// One query block's memory.
template <class Factor>
struct Block {
  int64_t first, count, rows;  // the queries; with those that fill the block, which are 0
  Factor* queries;             // [rows][padded width], normalised
  float *scores, *sums;        // [rows][64], [rows][lanes]
  float *largest, *positive, *inverse_sum;  // [rows]
  Factor* powers;                           // [rows][64]
  float* weighted_keys;                     // [rows][padded width]

  Block(int64_t first, int64_t count, int64_t rows, int64_t padded, Scratch& scratch)
      : first(first), count(count), rows(rows), queries(scratch.take<Factor>(rows * padded)),
        scores(scratch.take<float>(rows * panel)), sums(scratch.take<float>(rows * lanes)),
        largest(scratch.take<float>(rows)), positive(scratch.take<float>(rows)),
        inverse_sum(scratch.take<float>(rows)), powers(scratch.take<Factor>(rows * panel)),
        weighted_keys(scratch.take<float>(rows * padded)) {}
};

// Of a vector's numbers, in fp64.
static double sum_of(const float* parts) {
  double sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += parts[lane];
  return sum;
}

static float sum_of(f32v x) {
  float parts[lanes];
  store(parts, x);
  return static_cast<float>(sum_of(parts));
}

// from / max(|from|, 1e-12), then 0 up to `padded`; returns one over the length.
template <class T, class Factor>
static float normalise(const T* from, int64_t width, int64_t padded, Factor* to) {
  f32v squares = {};
  for (int64_t c = 0; c < width; c += lanes) {
    const f32v x = load_first(from + c, width - c);
    squares += x * x;
  }
  const float length = std::sqrt(sum_of(squares)), inverse = 1 / (length > shortest ? length : shortest);
  int64_t c = 0;
  for (; c < width; c += lanes) store(to + c, load_first(from + c, width - c) * inverse);
  for (; c < padded; c += lanes) store(to + c, f32v{});
  return std::isnan(length) ? length : inverse;
}

// from [64][count] -> to [count][64], of 32 bits; 16 divides count.
static void transpose_panel(const void* from, int64_t count, int64_t from_stride, void* to) {
  const uint32_t* in = static_cast<const uint32_t*>(from);
  uint32_t* out = static_cast<uint32_t*>(to);
  for (int64_t row = 0; row < panel; row += 16) {
    for (int64_t c = 0; c < count; c += 16) {
      alignas(64) uint32_t square[16][16];
      for (int i = 0; i < 16; ++i) __builtin_memcpy(square[i], in + (row + i) * from_stride + c, 64);
      transpose(square);
      for (int i = 0; i < 16; ++i) __builtin_memcpy(out + (c + i) * panel + row, square[i], 64);
    }
  }
}

// [64][padded] -> columns of 64, each [64][64]
static void by_row(const float* rows, int64_t padded, float* to) {
  for (int64_t column = 0; column < padded; column += panel) {
    for (int64_t row = 0; row < panel; ++row, to += panel) {
      __builtin_memcpy(to, rows + row * padded + column, panel * sizeof(float));
    }
  }
}

// Rows 2 i and 2 i + 1 -> words of both.
static void by_row(const bf16* rows, int64_t padded, bf16* to) {
  for (int64_t row = 0; row < panel; row += 2) {
    for (int64_t c = 0; c < padded; c += lanes) {
      const u32v even = (u32v)load(rows + row * padded + c) >> 16, odd = (u32v)load(rows + (row + 1) * padded + c);
      const u32v both = even | odd;
      __builtin_memcpy(to + row * padded + 2 * c, &both, sizeof both);
    }
  }
}

template <class T, class Factor>
static void pack_keys(const Problem<T, Factor>& in, int64_t number, Scratch& scratch) {
  const int64_t padded = in.padded(), first = number * panel;
  Factor* rows = scratch.take<Factor>(panel * padded);
  for (int64_t i = 0; i < panel; ++i) {
    if (first + i < in.keys) {
      in.key_inverse[first + i] = normalise(in.key[first + i], in.width, padded, rows + i * padded);
    } else {
      std::fill_n(rows + i * padded, padded, Factor{});
    }
  }
  const int64_t words = padded * sizeof(Factor) / sizeof(float);
  transpose_panel(rows, words, words, in.by_element + first * padded);
  if (in.query_gradient) by_row(rows, padded, in.by_row + first * padded);
}

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
  std::fill_n(block.largest, block.rows, 1.0f);  // no cosine is larger
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

// The gradient of a row from that of the row normalised, which is `toward` (padded) and is changed.
template <class T>
static void through_normalise(const T* row, float inverse, float* toward, int64_t width, T* out) {
  f32v products = {};
  for (int64_t c = 0; c < width; c += lanes) products += load_first(row + c, width - c) * load(toward + c);
  const float along = inverse < 1 / shortest ? sum_of(products) * inverse * inverse : 0;
  for (int64_t c = 0; c < width; c += lanes) {
    const f32v d = (load(toward + c) - load_first(row + c, width - c) * along) * inverse;
    store_first(out + c, d, width - c);
  }
}

// to = (to * factor - other * other_factor) * share, other a row of the tensors.
template <class T>
static void combine(float* to, float factor, const T* other, float other_factor, float share, int64_t width) {
  const float plus = factor * share, minus = other_factor * share;
  for (int64_t c = 0; c < width; c += lanes) {
    store(to + c, load(to + c) * plus - load_first(other + c, width - c) * minus);
  }
}

// Loss and gradient of the block's queries.
template <class T, class Factor>
static void finish_queries(const Problem<T, Factor>& in, const Block<Factor>& block) {
  const int64_t padded = in.padded();
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t query = block.first + i, key = in.first_row + in.partner(query);
    const double others = sum_of(block.sums + i * lanes);
    const double positive = (static_cast<double>(block.positive[i]) - block.largest[i]) / in.temperature;
    const double total = others + std::exp(positive);
    in.losses[query] = positive > -500 ? std::log1p(others * std::exp(-positive)) : std::log(total) - positive;
    in.slope[query] = static_cast<float>(others / total);
    block.inverse_sum[i] = static_cast<float>(1 / total);
    if (!in.query_gradient) continue;
    float* toward = block.weighted_keys + i * padded;
    combine(toward, block.inverse_sum[i], in.key[key], in.slope[query] * in.key_inverse[key], in.share(), in.width);
    if (in.d_own_keys) {
      __builtin_memcpy(in.d_own_keys + query * padded, toward, padded * sizeof(float));
    } else {
      through_normalise(in.query[query], in.query_inverse[query], toward, in.width, in.d_query + query * in.width);
    }
  }
}

// Queries over their sums of powers, transposed, for the product with the powers.
template <class T, class Factor>
static void weigh_queries(const Problem<T, Factor>& in, const Block<Factor>& block, int64_t in_round) {
  for (int64_t i = 0; i < block.rows; i += 16) {
    for (int64_t c = 0; c < in.width; c += 16) {
      alignas(64) uint32_t square[16][16] = {};
      for (int64_t row = 0; row < 16 && i + row < block.count; ++row) {
        const int64_t query = block.first + i + row;
        const float factor = in.query_inverse[query] * block.inverse_sum[i + row];
        for (int64_t lane = 0; lane < 16; lane += lanes) {
          const f32v x = load_first(in.query[query] + c + lane, in.width - c - lane) * factor;
          __builtin_memcpy(square[row] + lane, &x, sizeof x);
        }
      }
      transpose(square);
      for (int64_t element = 0; element < 16; ++element) {
        Factor* to = in.weighted + (c + element) * in.round_rows + in_round + i;
        for (int64_t lane = 0; lane < 16; lane += lanes) {
          store(to + lane, load(reinterpret_cast<const float*>(square[element]) + lane));
        }
      }
    }
  }
}

// The queries from `first` on; in_round: where they lie in what the gradient of the keys reads.
template <class T, class Factor>
static void run_block(const Problem<T, Factor>& in, int64_t first, int64_t in_round, Scratch& scratch) {
  const int64_t padded = in.padded();
  const Block<Factor> block(first, std::min(in.block_rows, in.queries - first), in.block_rows, padded, scratch);
  for (int64_t i = 0; i < block.count; ++i) {
    in.query_inverse[first + i] = normalise(in.query[first + i], in.width, padded, block.queries + i * padded);
  }
  std::fill_n(block.queries + block.count * padded, (block.rows - block.count) * padded, Factor{});
  std::fill_n(block.sums, block.rows * lanes, 0.0f);
  find_largest(in, block);
  for (int64_t number = 0; number < in.panels(); ++number) {
    score(in, block, number);
    Factor* kept = in.key_gradient ? in.powers + (number * in.round_rows + in_round) * panel : nullptr;
    raise(block, log2_e / in.temperature, kept);
    if (!in.query_gradient) continue;
    const Factor* powers = kept && sizeof(Factor) == sizeof(float) ? kept : block.powers;
    multiply(block.rows, in.columns() == panel ? padded : in.columns(), panel, powers, panel,
             in.by_row + number * panel * padded, block.weighted_keys, padded, number > 0);
  }
  finish_queries(in, block);
  if (in.key_gradient) weigh_queries(in, block, in_round);
}

// What `rows` queries of this round add to the gradient of a panel of normalised keys.
template <class T, class Factor>
static void add_to_keys(const Problem<T, Factor>& in, int64_t number, int64_t rows, bool add) {
  multiply(round_up(in.width, 16), panel, rows, in.weighted, in.round_rows, in.powers + number * in.round_rows * panel,
           in.d_keys + number * panel * in.padded(), panel, add);
}

template <class T, class Factor>
static void finish_keys(const Problem<T, Factor>& in, int64_t number, Scratch& scratch) {
  const int64_t padded = in.padded(), first = number * panel;
  float* rows = scratch.take<float>(panel * padded);
  const uint32_t* from = reinterpret_cast<const uint32_t*>(in.d_keys + first * padded);
  for (int64_t c = 0; c < in.width; c += 16) {
    for (int64_t row = 0; row < panel; row += 16) {
      alignas(64) uint32_t square[16][16];
      for (int i = 0; i < 16; ++i) __builtin_memcpy(square[i], from + (c + i) * panel + row, 64);
      transpose(square);
      for (int i = 0; i < 16; ++i) __builtin_memcpy(rows + (row + i) * padded + c, square[i], 64);
    }
  }
  for (int64_t i = 0; i < panel && first + i < in.keys; ++i) {
    const int64_t key = first + i, own = key - in.first_row;
    const bool is_positive = own >= 0 && own < in.queries;
    const int64_t query = is_positive ? in.partner(own) : 0;
    const float minus = is_positive ? in.slope[query] * in.query_inverse[query] : 0;
    float* toward = rows + i * padded;
    combine(toward, 1.0f, in.query[query], minus, in.share(), in.width);
    for (int64_t c = 0; in.d_own_keys && c < in.width; c += lanes) {
      store(toward + c, load(toward + c) + load(in.d_own_keys + key * padded + c));
    }
    through_normalise(in.key[key], in.key_inverse[key], toward, in.width, in.d_key + key * in.width);
  }
}
