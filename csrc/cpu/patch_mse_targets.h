// The targets of patch_mse: patches gathered out of the images, and what brings them to mean 0 and variance 1.
// No include guard: included by cpu/patch_mse_body.h, once per instruction set.
//
// A patch is brought together as bytes, in the order (row, column, channel); its statistics are sums of whole numbers
// and exact. With s1 and s2 the sums of u and u^2 over the q pixels of a channel, x = scale u + shift:
//     a = mean over channels of (scale s1 / q + shift)            d = scale s1 / q + shift - a, per channel
//     (n - 1) v = sum over channels of scale^2 (s2 - s1^2 / q) + q d^2
//     target = (x - a) / sqrt(v + eps) = (u - centre) slope
//     centre = s1 / q - d / scale                             slope = scale / sqrt(v + eps)
// so a patch of one grey has variance 0 and a target of 0 to the bit.

constexpr int64_t bytes_of_batch = 4096;  // of patches gathered at a time, or one patch

struct Job {
  const uint8_t* images;
  const int32_t* index;  // [B, M]
  int64_t image_stride, row_stride, prediction_image_stride, prediction_stride;
  int64_t predicted, columns, patch_size, pixels;  // M, patches in a row of the grid, p, p * p * C
  double scale[4], shift[4], inverse_scale[4];
  double inverse_freedom;  // 1 / (p * p * C - 1)
  bool normalise;
  double eps;
  float slope_of_gradient;  // 2 / (B M p p C)
};

struct Affine {
  float centre[4], slope[4];
};

// The bytes of a patch, one row after the other, then zeros to the end of the last vector.
MISPLACE_INLINE void gather(const uint8_t* from, int64_t row_stride, int64_t rows, int64_t run, int64_t padded,
                            uint8_t* to) {
  for (int64_t row = 0; row < rows; ++row, from += row_stride, to += run) {
    int64_t i = 0;
    for (; i + 16 <= run; i += 16) __builtin_memcpy(to + i, from + i, 16);
    for (; i + 4 <= run; i += 4) __builtin_memcpy(to + i, from + i, 4);
    for (; i < run; ++i) to[i] = from[i];
  }
  for (int64_t i = 0; i < padded - rows * run; ++i) to[i] = 0;
}

// Rows of a patch that will be gathered soon: each is a jump that the memory does not foresee.
MISPLACE_INLINE void prefetch(const uint8_t* from, int64_t row_stride, int64_t rows, int64_t run) {
  for (int64_t row = 0; row < rows; ++row, from += row_stride) {
    for (int64_t i = 0; i < run; i += 64) __builtin_prefetch(from + i);
    __builtin_prefetch(from + run - 1);
  }
}

MISPLACE_INLINE u32v load_bytes(const uint8_t* from) {
#if MISPLACE_LEVEL >= 512
  return (u32v)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif MISPLACE_LEVEL >= 256
  return (u32v)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  typedef uint8_t u8v __attribute__((vector_size(lanes)));
  u8v x;
  __builtin_memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, u32v);
#endif
}

MISPLACE_INLINE f32v to_float(u32v x) {  // below 2^31
  typedef int32_t i32v __attribute__((vector_size(4 * lanes)));
  return __builtin_convertvector((i32v)x, f32v);
}

MISPLACE_INLINE uint32_t sum(u32v x) {
#if MISPLACE_LEVEL >= 512
  return static_cast<uint32_t>(_mm512_reduce_add_epi32((__m512i)x));
#else
  uint32_t total = 0;
  for (int i = 0; i < lanes; ++i) total += x[i];
  return total;
#endif
}

// Which lanes of the vectors of a patch hold which channel. Their pattern repeats after `period` vectors.
template <int channels>
struct Pattern {
  static constexpr int period = lanes % channels == 0 ? 1 : channels;
  u32v mask[period][channels];

  Pattern() {
    for (int j = 0; j < period; ++j) {
      for (int c = 0; c < channels; ++c) {
        uint32_t bits[lanes];
        for (int i = 0; i < lanes; ++i) bits[i] = (j * lanes + i) % channels == c ? ~0u : 0u;
        __builtin_memcpy(&mask[j][c], bits, sizeof bits);
      }
    }
  }

  MISPLACE_INLINE f32v spread_one(const u32v (&mask)[channels], const float (&of_channel)[4]) {
    if (channels == 1) return splat(of_channel[0]);
    u32v bits = {};
    for (int c = 0; c < channels; ++c) bits |= mask[c] & (u32v)splat(of_channel[c]);
    return (f32v)bits;
  }

  MISPLACE_INLINE void spread(const Pattern& pattern, const float (&of_channel)[4], f32v (&to)[period]) {
    for (int j = 0; j < period; ++j) to[j] = spread_one(pattern.mask[j], of_channel);
  }
};

struct Sums {
  double s1[4], s2[4];  // of u and of u^2, per channel
};

template <int channels>
MISPLACE_INLINE Sums sums_of(const uint8_t* bytes, int64_t padded, const Pattern<channels>& pattern) {
  constexpr int period = Pattern<channels>::period;
  u32v sums[period] = {}, squares[period] = {};
  for (int64_t i = 0; i < padded; i += period * lanes) {
#pragma GCC unroll 4
    for (int j = 0; j < period; ++j) {
      const u32v u = load_bytes(bytes + i + j * lanes);
      sums[j] += u;
      squares[j] += u * u;
    }
  }
  Sums result;
  for (int c = 0; c < channels; ++c) {
    u32v s1 = {}, s2 = {};
    for (int j = 0; j < period; ++j) s1 += sums[j] & pattern.mask[j][c], s2 += squares[j] & pattern.mask[j][c];
    result.s1[c] = sum(s1), result.s2[c] = sum(s2);
  }
  return result;
}

MISPLACE_INLINE Affine normalising(const Sums& sums, const Job& job, int channels) {
  const double each = static_cast<double>(job.pixels / channels);
  double average[4], level[4], a = 0, squares = 0;
  for (int c = 0; c < channels; ++c) {
    average[c] = sums.s1[c] / each;
    level[c] = job.scale[c] * average[c] + job.shift[c];
    a += level[c] * (1.0 / channels);
    squares += job.scale[c] * job.scale[c] * (sums.s2[c] - sums.s1[c] * average[c]);
  }
  Affine affine;
  for (int c = 0; c < channels; ++c) {
    const double d = level[c] - a;
    squares += each * d * d;
    affine.centre[c] = static_cast<float>(average[c] - d * job.inverse_scale[c]);
  }
  const double factor = 1 / __builtin_sqrt(squares * job.inverse_freedom + job.eps);
  for (int c = 0; c < channels; ++c) affine.slope[c] = static_cast<float>(job.scale[c] * factor);
  return affine;
}

MISPLACE_INLINE Affine as_they_are(const Job& job, int channels) {
  Affine affine;
  for (int c = 0; c < channels; ++c) {
    affine.centre[c] = static_cast<float>(-job.shift[c] * job.inverse_scale[c]);
    affine.slope[c] = static_cast<float>(job.scale[c]);
  }
  return affine;
}
