// The loops over pixels, for one instruction set (cpu/each_isa.h). Buffers have `slack` bytes behind their end, so that
// whole vectors can be read and written there.

typedef int32_t i32v __attribute__((vector_size(4 * lanes)));
typedef uint8_t u8v __attribute__((vector_size(lanes)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x4 __attribute__((vector_size(4)));

// Levels to 32 bits and back, clipped to a level. GCC takes bytes apart one by one for its own conversions.
MISPLACE_INLINE i32v widen(const uint8_t* from) {
#if MISPLACE_LEVEL >= 512
  return (i32v)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif MISPLACE_LEVEL >= 256
  return (i32v)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  u8v x;
  __builtin_memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, i32v);
#endif
}

MISPLACE_INLINE void narrow(uint8_t* to, i32v x) {
#if MISPLACE_LEVEL >= 512
  _mm_storeu_si128((__m128i*)to, _mm512_cvtusepi32_epi8(_mm512_max_epi32((__m512i)x, _mm512_setzero_si512())));
#elif MISPLACE_LEVEL >= 256
  const __m128i low = _mm256_castsi256_si128((__m256i)x), high = _mm256_extracti128_si256((__m256i)x, 1);
  const __m128i packed = _mm_packs_epi32(low, high);
  _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(packed, packed));
#else
  x = x < 0 ? i32v{} : x > 255 ? i32v{} + 255 : x;
  const u8v levels = __builtin_convertvector(x, u8v);
  __builtin_memcpy(to, &levels, sizeof levels);
#endif
}

// Four bytes: a pixel and the first byte of the next one.
MISPLACE_INLINE i32x4 widen_pixel(const uint8_t* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
#if MISPLACE_LEVEL >= 256
  return (i32x4)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
#else
  u8x4 x;
  __builtin_memcpy(&x, &bytes, sizeof x);
  return __builtin_convertvector(x, i32x4);
#endif
}

// The first three.
MISPLACE_INLINE void narrow_pixel(uint8_t* to, i32x4 x) {
#if MISPLACE_LEVEL >= 256
  const __m128i packed = _mm_packs_epi32((__m128i)x, (__m128i)x);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(packed, packed));
  __builtin_memcpy(to, &bytes, 3);
#else
  x = x < 0 ? i32x4{} : x > 255 ? i32x4{} + 255 : x;
  const u8x4 levels = __builtin_convertvector(x, u8x4);
  __builtin_memcpy(to, &levels, 3);
#endif
}

// Rows of RGB, one or four at once: `to` has filter.size pixels a row. Reads one byte behind the last pixel it needs.
template <int rows>
MISPLACE_INLINE void resize_rows_rgb(const uint8_t* from, int64_t stride, const Filter& filter, uint8_t* to) {
  const int64_t width = 3 * static_cast<int64_t>(filter.size);
  for (int x = 0; x < filter.size; ++x) {
    const int32_t* weights = filter.weights_of(x);
    const uint8_t* pixel = from + 3 * filter.first[x];
    i32x4 sums[rows];
    for (i32x4& sum : sums) sum = i32x4{} + half_weight;
    for (int tap = 0, count = filter.count[x]; tap < count; ++tap, pixel += 3) {
      const i32x4 weight = i32x4{} + weights[tap];
      for (int row = 0; row < rows; ++row) sums[row] += widen_pixel(pixel + row * stride) * weight;
    }
    for (int row = 0; row < rows; ++row) narrow_pixel(to + row * width + 3 * x, sums[row] >> weight_bits);
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

// Each row of `from` to filter.size pixels.
static void resize_rows(const uint8_t* from, int64_t stride, int rows, int channels, const Filter& filter,
                        uint8_t* to) {
  const int64_t width = static_cast<int64_t>(filter.size) * channels;
  int y = 0;
  if (channels == 3) {
    for (; y + 4 <= rows; y += 4) resize_rows_rgb<4>(from + y * stride, stride, filter, to + y * width);
    for (; y < rows; ++y) resize_rows_rgb<1>(from + y * stride, stride, filter, to + y * width);
  }
  for (; y < rows; ++y) resize_row_gray(from + y * stride, to + y * width, filter);
}

// Rows of `width` bytes to filter.size rows; `from` begins with the first one that is needed.
static void resize_columns(const uint8_t* from, int width, const Filter& filter, uint8_t* to) {
  for (int y = 0; y < filter.size; ++y, to += width) {
    const int32_t* weights = filter.weights_of(y);
    const uint8_t* first = from + static_cast<int64_t>(filter.first[y] - filter.first[0]) * width;
    for (int x = 0; x < width; x += lanes) {
      i32v sum = i32v{} + half_weight;
      for (int tap = 0; tap < filter.count[y]; ++tap) sum += widen(first + tap * width + x) * weights[tap];
      narrow(to + x, sum >> weight_bits);
    }
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")  // Pillow's products are rounded before they are added
#endif
MISPLACE_INLINE uint8_t recoloured(const float* m, float r, float g, float b) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  const float x = m[0] * r + m[1] * g + m[2] * b + m[3] + 0.5f;
  return static_cast<uint8_t>(x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x);
}

#if MISPLACE_LEVEL >= 256
// Byte t of the `part`th 16 of 48 bytes is channel (16 part + t) % 3 of pixel (16 part + t) / 3.
struct Shuffles {
  alignas(16) int8_t apart[3][3][16], together[3][3][16];  // [channel][part]; -1 leaves a zero

  constexpr Shuffles() : apart(), together() {
    for (int channel = 0; channel < 3; ++channel) {
      for (int part = 0; part < 3; ++part) {
        for (int t = 0; t < 16; ++t) {
          const int from = 3 * t + channel, to = 16 * part + t;
          apart[channel][part][t] = static_cast<int8_t>(from / 16 == part ? from % 16 : -1);
          together[channel][part][t] = static_cast<int8_t>(to % 3 == channel ? to / 3 : -1);
        }
      }
    }
  }
};

// Three parts, each shuffled, in one.
MISPLACE_INLINE __m128i merge(const __m128i parts[3], const int8_t* first, int64_t step) {
  const auto take = [&](int n) { return _mm_shuffle_epi8(parts[n], *(const __m128i*)(first + n * step)); };
  return _mm_or_si128(_mm_or_si128(take(0), take(1)), take(2));
}

// Eight values of one channel.
MISPLACE_INLINE __m256i recoloured(const float* m, __m256 r, __m256 g, __m256 b) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  __m256 x = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(m[0]), r), _mm256_mul_ps(_mm256_set1_ps(m[1]), g));
  x = _mm256_add_ps(_mm256_add_ps(x, _mm256_mul_ps(_mm256_set1_ps(m[2]), b)), _mm256_set1_ps(m[3]));
  x = _mm256_add_ps(x, _mm256_set1_ps(0.5f));
  return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(x, _mm256_setzero_ps()), _mm256_set1_ps(255.0f)));
}

static void recolour_16(uint8_t* pixels, const float* m) {
  static constexpr Shuffles shuffles;
  __m128i bytes[3], channels[3];
  for (int part = 0; part < 3; ++part) bytes[part] = _mm_loadu_si128((const __m128i*)(pixels + 16 * part));
  __m256 low[3], high[3];
  for (int c = 0; c < 3; ++c) {
    const __m128i levels = merge(bytes, shuffles.apart[c][0], 16);
    low[c] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(levels));
    high[c] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(levels, 8)));
  }
  for (int c = 0; c < 3; ++c) {
    const __m256i a = recoloured(m + 4 * c, low[0], low[1], low[2]), b = recoloured(m + 4 * c, high[0], high[1], high[2]);
    const __m128i first = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i last = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    channels[c] = _mm_packus_epi16(first, last);
  }
  for (int part = 0; part < 3; ++part) {
    _mm_storeu_si128((__m128i*)(pixels + 16 * part), merge(channels, shuffles.together[0][part], 48));
  }
}
#endif

// Each colour by a matrix [3, 4], rounded half up and clipped.
static void recolour(uint8_t* pixels, int count, const float* m) {
  int i = 0;
#if MISPLACE_LEVEL >= 256
  for (; i + 16 <= count; i += 16) recolour_16(pixels + 3 * i, m);
#endif
  for (; i < count; ++i) {
    uint8_t* const x = pixels + 3 * i;
    const float r = x[0], g = x[1], b = x[2];
    for (int c = 0; c < 3; ++c) x[c] = recoloured(m + 4 * c, r, g, b);
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
MISPLACE_INLINE void box(uint8_t* to, const uint8_t* middle, int64_t step, const Box& by) {
  i32v sum = widen(middle);
  for (int k = 1; k <= by.radius; ++k) sum += widen(middle - k * step) + widen(middle + k * step);
  const int64_t end = (by.radius + 1) * step;
  const i32v ends = widen(middle - end) + widen(middle + end);
  narrow(to, (i32v)(((u32v)sum * by.inner + (u32v)ends * by.outer + (1u << 23)) >> 24));
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
      for (int x = 0; x < width; x += lanes) box(other + x, line + x, channels, by);
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
    for (int x = 0; x < width; x += lanes) box(to + y * width + x, from + y * width + x, width, by);
  }
}

// 255 - level from the threshold on.
static void solarize(uint8_t* pixels, int count, int from) {
  for (int i = 0; i < count; ++i) {
    const uint8_t level = pixels[i];
    pixels[i] = level >= from ? 255 - level : level;
  }
}
