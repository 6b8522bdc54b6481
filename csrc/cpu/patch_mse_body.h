// patch_mse of some patches. No include guard: included once per instruction set (cpu/each_isa.h).
//
// A patch is brought together as bytes, in the order (row, column, channel); its statistics are sums of whole numbers
// and exact. With s1 and s2 the sums of u and u^2 over the q pixels of a channel, x = scale u + shift:
//     a = mean over channels of (scale s1 / q + shift)            d = scale s1 / q + shift - a, per channel
//     (n - 1) v = sum over channels of scale^2 (s2 - s1^2 / q) + q d^2
//     target = (x - a) / sqrt(v + eps) = (u - centre) slope       centre = s1 / q - d / scale, slope = scale / sqrt(...)
// so a patch of one grey has variance 0 and a target of 0 to the bit.

struct Job {
  const uint8_t* images;
  const int32_t* index;  // [B, M]
  int64_t image_stride, row_stride, prediction_image_stride, prediction_stride;
  int64_t predicted, columns, patch_size, pixels;  // M, patches in a row of the grid, p, p * p * C
  double scale[4], shift[4];
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

MISPLACE_INLINE u32v load_bytes(const uint8_t* from) {
  typedef uint8_t u8v __attribute__((vector_size(lanes)));
  u8v x;
  __builtin_memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, u32v);
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
    a += level[c] / channels;
    squares += job.scale[c] * job.scale[c] * (sums.s2[c] - sums.s1[c] * average[c]);
  }
  Affine affine;
  for (int c = 0; c < channels; ++c) {
    const double d = level[c] - a;
    squares += each * d * d;
    affine.centre[c] = static_cast<float>(average[c] - d / job.scale[c]);
  }
  const double factor = 1 / __builtin_sqrt(squares / static_cast<double>(job.pixels - 1) + job.eps);
  for (int c = 0; c < channels; ++c) affine.slope[c] = static_cast<float>(job.scale[c] * factor);
  return affine;
}

MISPLACE_INLINE Affine as_they_are(const Job& job, int channels) {
  Affine affine;
  for (int c = 0; c < channels; ++c) {
    affine.centre[c] = static_cast<float>(-job.shift[c] / job.scale[c]);
    affine.slope[c] = static_cast<float>(job.scale[c]);
  }
  return affine;
}

MISPLACE_INLINE u32v first_lanes(int64_t count) {
  uint32_t bits[lanes];
  for (int i = 0; i < lanes; ++i) bits[i] = i < count ? ~0u : 0u;
  u32v mask;
  __builtin_memcpy(&mask, bits, sizeof mask);
  return mask;
}

// Squared error of `count` numbers from `i`, whose gradient is written where `to` is not null.
template <class T>
MISPLACE_INLINE f32v squared_error(const uint8_t* bytes, const T* prediction, T* to, f32v centre, f32v slope,
                                   float slope_of_gradient, int64_t count) {
  const f32v target = (to_float(load_bytes(bytes)) - centre) * slope;
  f32v error = load_first(prediction, count) - target;
  if (count < lanes) error = (f32v)((u32v)error & first_lanes(count));
  if (to) store_first(to, error * slope_of_gradient, count);
  return error * error;
}

template <class T, int channels>
MISPLACE_INLINE double loss_of(const uint8_t* bytes, const T* prediction, T* to, const Affine& affine, const Job& job,
                               const Pattern<channels>& pattern) {
  constexpr int period = Pattern<channels>::period;
  constexpr int64_t step = period * lanes, block = 64 * step;  // beyond a block, fp32 is no place to add up
  f32v centre[period], slope[period];
  Pattern<channels>::spread(pattern, affine.centre, centre);
  Pattern<channels>::spread(pattern, affine.slope, slope);
  const float factor = job.slope_of_gradient;
  double loss = 0;
  for (int64_t first = 0; first < job.pixels; first += block) {
    const int64_t last = job.pixels - first < block ? job.pixels : first + block;
    f32v total[period] = {};
    int64_t i = first;
    for (; i + step <= last; i += step) {
#pragma GCC unroll 4
      for (int j = 0; j < period; ++j) {
        const int64_t at = i + j * lanes;
        total[j] += squared_error(bytes + at, prediction + at, to ? to + at : to, centre[j], slope[j], factor, lanes);
      }
    }
    for (int j = 0; i + j * lanes < last; ++j) {
      const int64_t at = i + j * lanes;
      total[j] += squared_error(bytes + at, prediction + at, to ? to + at : to, centre[j], slope[j], factor, last - at);
    }
    for (int j = 1; j < period; ++j) total[0] += total[j];
    loss += sum(total[0]);
  }
  return loss;
}

// Sum of squared errors of patches [first, last), counted over all images; d_prediction is contiguous, or null.
// bytes: room for a patch and 3 * 16 more.
template <class T, int channels>
static double run_channels(const Job& job, const T* prediction, T* d_prediction, int64_t first, int64_t last,
                           uint8_t* bytes) {
  const Pattern<channels> pattern;
  constexpr int64_t step = Pattern<channels>::period * lanes;
  const int64_t padded = (job.pixels + step - 1) / step * step, run = job.patch_size * channels;
  double loss = 0;
  for (int64_t i = first; i < last; ++i) {
    const int64_t image = i / job.predicted, row = job.index[i] / job.columns, column = job.index[i] % job.columns;
    const uint8_t* from =
        job.images + image * job.image_stride + row * job.patch_size * job.row_stride + column * run;
    gather(from, job.row_stride, job.patch_size, run, padded, bytes);
    const Affine affine = job.normalise ? normalising(sums_of<channels>(bytes, padded, pattern), job, channels)
                                        : as_they_are(job, channels);
    const T* at = prediction + image * job.prediction_image_stride + i % job.predicted * job.prediction_stride;
    loss += loss_of<T, channels>(bytes, at, d_prediction ? d_prediction + i * job.pixels : nullptr, affine, job,
                                 pattern);
  }
  return loss;
}

template <class T>
static double squared_errors(int channels, const Job& job, const T* prediction, T* d_prediction, int64_t first,
                             int64_t last, uint8_t* bytes) {
  switch (channels) {
    case 1: return run_channels<T, 1>(job, prediction, d_prediction, first, last, bytes);
    case 2: return run_channels<T, 2>(job, prediction, d_prediction, first, last, bytes);
    case 3: return run_channels<T, 3>(job, prediction, d_prediction, first, last, bytes);
    default: return run_channels<T, 4>(job, prediction, d_prediction, first, last, bytes);
  }
}
