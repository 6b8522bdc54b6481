// Rows normalised, packed for products, and the way back of their gradients. No include guard: included once per
// instruction set (cpu/each_isa.h).

constexpr float shortest = 1e-12f;

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
