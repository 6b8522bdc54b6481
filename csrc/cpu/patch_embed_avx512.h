// Sixteen pixels of any type at a time, normalised, to fp32 or bf16. Include it only where MISPLACE_AVX512 is defined.
// Zero-masked forms throughout: of the others GCC warns that they leave lanes undefined (its bug 105593).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <immintrin.h>

#include <type_traits>

namespace misplace::patch_embed {

// A target per function, so that the wheel runs on any CPU; rounding to bf16 is an instruction of its own extension.
#define MISPLACE_LANES MISPLACE_AVX512 static inline
#define MISPLACE_LANES_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16"))) static inline

MISPLACE_LANES __mmask16 lanes(int64_t left) { return left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1); }

MISPLACE_LANES __m512 load_pixels(const uint8_t* from, __mmask16 mask) {
  return _mm512_maskz_cvtepi32_ps(mask, _mm512_maskz_cvtepu8_epi32(mask, _mm_maskz_loadu_epi8(mask, from)));
}
MISPLACE_LANES __m512 load_pixels(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
MISPLACE_LANES __m512 load_pixels(const c10::BFloat16* from, __mmask16 mask) {
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, bits, 16));
}
MISPLACE_LANES __m512 load_pixels(const c10::Half* from, __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, from));
}
MISPLACE_LANES __m512 load_pixels(const double* from, __mmask16 mask) {
  const __mmask8 first = static_cast<__mmask8>(mask), second = static_cast<__mmask8>(mask >> 8);
  const __m256 low = _mm512_maskz_cvtpd_ps(first, _mm512_maskz_loadu_pd(first, from));
  const __m256 high = _mm512_maskz_cvtpd_ps(second, _mm512_maskz_loadu_pd(second, from + 8));
  return _mm512_maskz_insertf32x8(mask, _mm512_castps256_ps512(low), high, 1);
}

template <class Pixel>
MISPLACE_LANES __m512 normalised(const Pixel* from, const float* scale, const float* shift, __mmask16 mask) {
  return _mm512_fmadd_ps(load_pixels(from, mask), _mm512_maskz_loadu_ps(mask, scale),
                         _mm512_maskz_loadu_ps(mask, shift));
}

template <class Pixel>
MISPLACE_LANES void write_run(const Pixel* from, const float* scale, const float* shift, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = lanes(count - i);
    _mm512_mask_storeu_ps(out + i, mask, normalised(from + i, scale + i, shift + i, mask));
  }
}

template <class Pixel>
MISPLACE_LANES_BF16 void write_run(const Pixel* from, const float* scale, const float* shift, int64_t count,
                                   c10::BFloat16* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = lanes(count - i);
    const __m256bh pixels = _mm512_cvtneps_pbh(normalised(from + i, scale + i, shift + i, mask));
    _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(pixels));
  }
}

template <class Pixel>
MISPLACE_LANES_BF16 void write_run_pair(const Pixel* even, const Pixel* odd, const float* scale, const float* shift,
                                        int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = lanes(count - i);
    const __m512 a = normalised(even + i, scale + i, shift + i, mask);
    const __m512 b = normalised(odd + i, scale + i, shift + i, mask);
    const __m512i low = _mm512_maskz_cvtepu16_epi32(mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
    const __m512i high = _mm512_maskz_cvtepu16_epi32(mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(b)));
    _mm512_mask_storeu_epi32(out + i, mask, _mm512_or_si512(low, _mm512_maskz_slli_epi32(mask, high, 16)));
  }
}

}  // namespace misplace::patch_embed
