// patch_mse of some patches: errors against the targets, and their gradients, in one pass over the predictions.
// No include guard: included once per instruction set (cpu/each_isa.h).
#include "cpu/patch_mse_targets.h"

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
