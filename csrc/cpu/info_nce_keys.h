// The gradient of the keys, from the powers that a round of queries kept. No include guard: included once per
// instruction set (cpu/each_isa.h).

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
    through_normalise(in.key[key], in.key_inverse[key], toward, in.width, in.d_key + key * in.width);
  }
}
