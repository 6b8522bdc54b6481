// Kept patches from the image batch into rows of a matrix: read, normalised and rounded once, in registers.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "shared/patch_embed.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MISPLACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#include "cpu/patch_embed_avx512.h"
#endif

namespace misplace::patch_embed {

inline bool has_avx512() {
#ifdef MISPLACE_AVX512
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
#else
  return false;
#endif
}

MISPLACE_HOST_DEVICE uint16_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : 0x7FC0);  // a NaN must not round to a number
}

template <class To, class From>
MISPLACE_HOST_DEVICE To rounded(From value) {
  if constexpr (std::is_same_v<To, c10::BFloat16> && !std::is_same_v<From, c10::BFloat16>) {
    return c10::BFloat16(bf16_bits(static_cast<float>(value)), c10::BFloat16::from_bits());
  } else if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(value);
  } else {
    return static_cast<To>(static_cast<float>(value));
  }
}

// Runs of pixels that are neighbours in memory: one row of a patch, in all channels or in one.
struct Runs {
  int64_t count, length;
  std::vector<int64_t> offset;  // from the patch's first pixel

  explicit Runs(const Pixels& p)
      : count(p.interleaved ? p.patch_size : p.channels * p.patch_size),
        length(p.interleaved ? p.channels * p.patch_size : p.patch_size) {
    for (int64_t run = 0; run < count; ++run) {
      offset.push_back(pixel_offset(p, place_of(p, static_cast<int32_t>(run * length))));
    }
  }
};

// pixel * scale + shift, one of each for every pixel of a patch in walking order.
template <class Wide>
struct Normalisation {
  std::vector<Wide> scale, shift;

  template <class Numbers>
  Normalisation(const Pixels& p, const Numbers& scales, const Numbers& shifts) {
    for (int32_t walked = 0; walked < p.channels * p.patch_size * p.patch_size; ++walked) {
      const int32_t channel = place_of(p, walked).channel;
      scale.push_back(static_cast<Wide>(scales[channel]));
      shift.push_back(static_cast<Wide>(shifts[channel]));
    }
  }
};

// One run of a patch on any CPU; patch_embed_avx512.h has its twin.
template <class Pixel, class To, class Wide>
void write_plain(const Pixel* from, const Wide* scale, const Wide* shift, int64_t count, To* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rounded<To>(static_cast<Wide>(from[i]) * scale[i] + shift[i]);
}

// The runs [first, last) of one patch, normalised.
template <class Pixel, class To, class Wide>
void write_row(const Pixel* patch, const Runs& runs, int64_t first, int64_t last, const Normalisation<Wide>& by,
               To* out) {
  const int64_t length = runs.length;
  for (int64_t run = first; run < last; ++run, out += length) {
    const Wide *scale = by.scale.data() + run * length, *shift = by.shift.data() + run * length;
#ifdef MISPLACE_AVX512
    if constexpr (std::is_same_v<Wide, float>) {
      if (has_avx512()) {
        write_run(patch + runs.offset[run], scale, shift, length, out);
        continue;
      }
    }
#endif
    write_plain(patch + runs.offset[run], scale, shift, length, out);
  }
}

// Two patches at a time, their pixels alternating: the pairs of bf16 that a dot-product instruction takes.
template <class Pixel>
void write_pair(const Pixel* even, const Pixel* odd, const Runs& runs, int64_t first, int64_t last,
                const Normalisation<float>& by, uint32_t* out) {
#ifdef MISPLACE_AVX512  // there is no product of bf16 pairs without it
  const int64_t length = runs.length;
  for (int64_t run = first; run < last; ++run, out += length) {
    write_run_pair(even + runs.offset[run], odd + runs.offset[run], by.scale.data() + run * length,
                   by.shift.data() + run * length, length, out);
  }
#endif
}

}  // namespace misplace::patch_embed
