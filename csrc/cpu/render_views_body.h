// The loops over pixels, for one instruction set (cpu/each_isa.h). Buffers have `slack` bytes behind their end, so that
// whole vectors can be read and written there.

typedef int32_t i32v __attribute__((vector_size(4 * lanes)));
typedef uint8_t u8v __attribute__((vector_size(lanes)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x4 __attribute__((vector_size(4)));

template <class V>
MISPLACE_INLINE V read(const uint8_t* from) {
  V x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

MISPLACE_INLINE void write(uint8_t* to, u8v x) { __builtin_memcpy(to, &x, sizeof x); }

// Fixed point to a level, as Pillow rounds and clips after each pass of a resize.
template <class V>
MISPLACE_INLINE V level_of(V sum) {
  sum >>= weight_bits;
  sum = sum < 0 ? V{} : sum;
  return sum > 255 ? V{} + 255 : sum;
}

// One row of RGB: `to` has num_out pixels. Reads one byte behind the last pixel that it needs.
MISPLACE_INLINE void resize_row_rgb(const uint8_t* from, uint8_t* to, const Filter& filter) {
  for (int x = 0; x < filter.size; ++x) {
    const int32_t* weights = filter.weights_of(x);
    const uint8_t* pixel = from + 3 * filter.first[x];
    i32x4 sum = i32x4{} + half_weight;
    for (int tap = 0; tap < filter.count[x]; ++tap) {
      sum += __builtin_convertvector(read<u8x4>(pixel + 3 * tap), i32x4) * weights[tap];
    }
    const u8x4 levels = __builtin_convertvector(level_of(sum), u8x4);
    __builtin_memcpy(to + 3 * x, &levels, sizeof levels);
  }
}

MISPLACE_INLINE void resize_row_gray(const uint8_t* from, uint8_t* to, const Filter& filter) {
  for (int x = 0; x < filter.size; ++x) {
    const int32_t* weights = filter.weights_of(x);
    int32_t sum = half_weight;
    for (int tap = 0; tap < filter.count[x]; ++tap) sum += from[filter.first[x] + tap] * weights[tap];
    sum >>= weight_bits;
    to[x] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
  }
}

// The rows of `from` that the vertical pass reads, each to filter.size pixels.
static void resize_rows(const uint8_t* from, int64_t stride, int rows, int channels, const Filter& filter,
                        uint8_t* to) {
  for (int y = 0; y < rows; ++y, from += stride, to += filter.size * channels) {
    channels == 3 ? resize_row_rgb(from, to, filter) : resize_row_gray(from, to, filter);
  }
}

// Rows of `width` bytes to filter.size rows; `from` begins with the first one that is needed.
static void resize_columns(const uint8_t* from, int width, const Filter& filter, uint8_t* to) {
  for (int y = 0; y < filter.size; ++y, to += width) {
    const int32_t* weights = filter.weights_of(y);
    const uint8_t* first = from + static_cast<int64_t>(filter.first[y] - filter.first[0]) * width;
    for (int x = 0; x < width; x += lanes) {
      i32v sum = i32v{} + half_weight;
      for (int tap = 0; tap < filter.count[y]; ++tap) {
        sum += __builtin_convertvector(read<u8v>(first + tap * width + x), i32v) * weights[tap];
      }
      write(to + x, __builtin_convertvector(level_of(sum), u8v));
    }
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")  // Pillow's products are rounded before they are added
#endif
// Each colour by a matrix [3, 4], rounded half up and clipped.
static void recolour(uint8_t* pixels, int count, const float* m) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  for (int i = 0; i < count; ++i) {
    const float r = pixels[3 * i], g = pixels[3 * i + 1], b = pixels[3 * i + 2];
    float red = m[0] * r + m[1] * g + m[2] * b + m[3] + 0.5f;
    float green = m[4] * r + m[5] * g + m[6] * b + m[7] + 0.5f;
    float blue = m[8] * r + m[9] * g + m[10] * b + m[11] + 0.5f;
    red = red < 0.0f ? 0.0f : red > 255.0f ? 255.0f : red;
    green = green < 0.0f ? 0.0f : green > 255.0f ? 255.0f : green;
    blue = blue < 0.0f ? 0.0f : blue > 255.0f ? 255.0f : blue;
    pixels[3 * i] = static_cast<uint8_t>(static_cast<int>(red));
    pixels[3 * i + 1] = static_cast<uint8_t>(static_cast<int>(green));
    pixels[3 * i + 2] = static_cast<uint8_t>(static_cast<int>(blue));
  }
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

// The sums of the channels; `count` pixels.
static void add_up(const uint8_t* pixels, int count, int channels, int64_t* sums) {
  uint32_t first = 0, second = 0, third = 0;  // 2^24 levels of 255 fit
  if (channels == 1) {
    for (int i = 0; i < count; ++i) first += pixels[i];
  } else {
    for (int i = 0; i < count; ++i) {
      first += pixels[3 * i], second += pixels[3 * i + 1], third += pixels[3 * i + 2];
    }
  }
  sums[0] += first, sums[1] += second, sums[2] += third;
}

// One vector of a box filter: the middle's weight times the sum of 2 radius + 1 values, and the ends' times two more.
MISPLACE_INLINE u8v box(const uint8_t* middle, int64_t step, const Box& by) {
  u32v sum = __builtin_convertvector(read<u8v>(middle), u32v);
  for (int k = 1; k <= by.radius; ++k) {
    sum += __builtin_convertvector(read<u8v>(middle - k * step), u32v);
    sum += __builtin_convertvector(read<u8v>(middle + k * step), u32v);
  }
  const int64_t end = (by.radius + 1) * step;
  const u32v ends = __builtin_convertvector(read<u8v>(middle - end), u32v) +
                    __builtin_convertvector(read<u8v>(middle + end), u32v);
  return __builtin_convertvector((sum * by.inner + ends * by.outer + (1u << 23)) >> 24, u8v);
}

// Repeats the first and the last `unit` bytes of a row of `width` bytes `times` times before and behind it.
MISPLACE_INLINE void repeat_ends(uint8_t* row, int width, int unit, int times) {
  for (int k = 1; k <= times; ++k) {
    __builtin_memcpy(row - k * unit, row, unit);
    __builtin_memcpy(row + width + (k - 1) * unit, row + width - unit, unit);
  }
}

// Three box filters along the rows. line: two buffers for a row with by.radius + 1 pixels and `slack` on both sides.
static void blur_rows(uint8_t* pixels, int rows, int width, int channels, const Box& by, uint8_t* line, uint8_t* other) {
  for (int y = 0; y < rows; ++y, pixels += width) {
    __builtin_memcpy(line, pixels, width);
    for (int pass = 0; pass < 3; ++pass) {
      repeat_ends(line, width, channels, by.radius + 1);
      for (int x = 0; x < width; x += lanes) write(other + x, box(line + x, channels, by));
      uint8_t* const filtered = other;
      other = line, line = filtered;
    }
    __builtin_memcpy(pixels, line, width);
  }
}

// One box filter down the columns. from has by.radius + 1 rows of room before it and behind it.
static void blur_columns(uint8_t* from, uint8_t* to, int rows, int width, const Box& by) {
  repeat_ends(from, rows * width, width, by.radius + 1);
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < width; x += lanes) write(to + y * width + x, box(from + y * width + x, width, by));
  }
}

// 255 - level from the threshold on.
static void solarize(uint8_t* pixels, int count, int from) {
  for (int i = 0; i < count; ++i) {
    const uint8_t level = pixels[i];
    pixels[i] = level >= from ? 255 - level : level;
  }
}
