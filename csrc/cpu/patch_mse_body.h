// patch_mse of some patches. No include guard: included once per instruction set (cpu/each_isa.h).
//
// A patch is brought together as bytes, in the order (row, column, channel); its statistics are sums of whole numbers
// and exact. With s1 and s2 the sums of u and u^2 over the q pixels of a channel, x = scale u + shift:
//     a = mean over channels of (scale s1 / q + shift)            d = scale s1 / q + shift - a, per channel
//     (n - 1) v = sum over channels of scale^2 (s2 - s1^2 / q) + q d^2
//     target = (x - a) / sqrt(v + eps) = (u - centre) slope       centre = s1 / q - d / scale, slope = scale / sqrt(...)
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

// Sums of squares in fp32, brought to fp64 before they are many.
template <int period>
struct Loss {
  f32v total[period] = {};
  int64_t steps = 0;
  double sum_of_blocks = 0;

  MISPLACE_INLINE void flush(Loss& loss) {
    for (int j = 0; j < period; ++j) loss.sum_of_blocks += sum(loss.total[j]), loss.total[j] = f32v{};
    loss.steps = 0;
  }
};

constexpr int64_t steps_of_block = 64;

template <class T, int channels>
MISPLACE_INLINE void add_patch(const uint8_t* bytes, const T* prediction, T* to, const Affine& affine, const Job& job,
                               const Pattern<channels>& pattern, Loss<Pattern<channels>::period>& loss) {
  constexpr int period = Pattern<channels>::period;
  constexpr int64_t step = period * lanes;
  f32v centre[period], slope[period];
  Pattern<channels>::spread(pattern, affine.centre, centre);
  Pattern<channels>::spread(pattern, affine.slope, slope);
  const float factor = job.slope_of_gradient;
  int64_t i = 0;
  while (i + step <= job.pixels) {
    const int64_t left = (job.pixels - i) / step, room = steps_of_block - loss.steps, steps = left < room ? left : room;
    for (int64_t s = 0; s < steps; ++s, i += step) {
#pragma GCC unroll 4
      for (int j = 0; j < period; ++j) {
        const int64_t at = i + j * lanes;
        loss.total[j] +=
            squared_error(bytes + at, prediction + at, to ? to + at : to, centre[j], slope[j], factor, lanes);
      }
    }
    loss.steps += steps;
    if (loss.steps == steps_of_block) Loss<period>::flush(loss);
  }
  for (int j = 0; i + j * lanes < job.pixels; ++j) {
    const int64_t at = i + j * lanes;
    loss.total[j] += squared_error(bytes + at, prediction + at, to ? to + at : to, centre[j], slope[j], factor,
                                   job.pixels - at);
    ++loss.steps;
  }
  if (loss.steps >= steps_of_block) Loss<period>::flush(loss);
}

struct Cursor {  // patch `in_image` of the index of `image`
  int64_t image, in_image;

  MISPLACE_INLINE void next(Cursor& at, int64_t predicted) {
    if (++at.in_image == predicted) at.in_image = 0, ++at.image;
  }
};

MISPLACE_INLINE const uint8_t* start_of(const Job& job, const Cursor& at, int64_t run) {
  const int32_t place = job.index[at.image * job.predicted + at.in_image], columns = static_cast<int32_t>(job.columns);
  return job.images + at.image * job.image_stride + place / columns * job.patch_size * job.row_stride +
         place % columns * run;
}

// Gathers up to `batch` patches from `at` on, `left` of which there are, and prefetches as many that follow.
template <int channels>
MISPLACE_INLINE void gather_batch(const Job& job, Cursor& at, int64_t batch, int64_t left, int64_t padded,
                                  uint8_t* bytes) {
  const int64_t run = job.patch_size * channels, count = batch < left ? batch : left;
  for (int64_t k = 0; k < count; ++k, Cursor::next(at, job.predicted)) {
    gather(start_of(job, at, run), job.row_stride, job.patch_size, run, padded, bytes + k * padded);
  }
  Cursor ahead = at;
  for (int64_t k = count; k < 2 * count && k < left; ++k, Cursor::next(ahead, job.predicted)) {
    prefetch(start_of(job, ahead, run), job.row_stride, job.patch_size, run);
  }
}

// Sum of squared errors of patches [first, last), counted over all images; d_prediction is contiguous, or null.
// Several patches are gathered before they are read again: what was just stored in pieces is slow to load.
// bytes: room for bytes_of_batch, a patch and 3 * 16 more.
template <class T, int channels>
static double run_channels(const Job& job, const T* prediction, T* d_prediction, int64_t first, int64_t last,
                           uint8_t* bytes) {
  const Pattern<channels> pattern;
  constexpr int64_t step = Pattern<channels>::period * lanes;
  const int64_t padded = (job.pixels + step - 1) / step * step;
  const int64_t batch = padded < bytes_of_batch ? bytes_of_batch / padded : 1;
  Loss<Pattern<channels>::period> loss;
  Cursor at{first / job.predicted, first % job.predicted}, gathered = at;
  for (int64_t i = first, k = 0; i < last; ++i, Cursor::next(at, job.predicted), k = k + 1 < batch ? k + 1 : 0) {
    if (k == 0) gather_batch<channels>(job, gathered, batch, last - i, padded, bytes);
    const uint8_t* here = bytes + k * padded;
    const Affine affine = job.normalise ? normalising(sums_of<channels>(here, padded, pattern), job, channels)
                                        : as_they_are(job, channels);
    const T* from = prediction + at.image * job.prediction_image_stride + at.in_image * job.prediction_stride;
    add_patch<T, channels>(here, from, d_prediction ? d_prediction + i * job.pixels : nullptr, affine, job, pattern,
                           loss);
  }
  Loss<Pattern<channels>::period>::flush(loss);
  return loss.sum_of_blocks;
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
