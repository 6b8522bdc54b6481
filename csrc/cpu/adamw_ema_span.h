// adamw_ema over a piece of one tensor, with the widest vectors that the CPU has.
//
// Every path rounds where the plain one does, so they agree to the bit.
// Copies are written past the caches (a line that nobody reads before the next forward) when `stream` says so.
#pragma once

#include <c10/util/Half.h>

#include "adamw_ema.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MISPLACE_HAS_VECTOR_PATHS
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside GCC 12's intrinsics (PR 105593)
#endif
#include <immintrin.h>
#endif

namespace misplace::adamw_ema {

using SpanUpdate = void (*)(const Member&, int64_t begin, int64_t end, float keep, const Coefficients&, bool stream);

inline float gradient_at(const Member& m, int64_t i) {
  switch (m.gradient_type) {
    case GradientType::float32: return static_cast<const float*>(m.gradient)[i];
    case GradientType::bfloat16: return from_bfloat16(static_cast<const uint16_t*>(m.gradient)[i]);
    default: return c10::detail::fp16_ieee_to_fp32_value(static_cast<const uint16_t*>(m.gradient)[i]);
  }
}

inline void update_plain(const Member& m, int64_t begin, int64_t end, float keep, const Coefficients& c, bool) {
  for (int64_t i = begin; i < end; ++i) {
    float parameter = m.parameter[i];
    adamw(parameter, gradient_at(m, i), m.exp_avg[i], m.exp_avg_sq[i], keep, c);
    m.parameter[i] = parameter;
    if (m.student_copy) m.student_copy[i] = to_bfloat16(parameter);
    if (m.teacher) follow(m.teacher[i], parameter, c);
    if (m.teacher_copy) m.teacher_copy[i] = to_bfloat16(m.teacher[i]);
  }
}

#ifdef MISPLACE_HAS_VECTOR_PATHS
inline bool aligned(const uint16_t* copy, int64_t begin, size_t bytes) {
  return reinterpret_cast<uintptr_t>(copy + begin) % bytes == 0;
}

#define MISPLACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define MISPLACE_AVX2 __attribute__((target("avx2,fma,f16c")))

MISPLACE_AVX512 inline __m512 load_gradient_avx512(const Member& m, int64_t i) {
  if (m.gradient_type == GradientType::float32) return _mm512_loadu_ps(static_cast<const float*>(m.gradient) + i);
  const void* from = static_cast<const uint16_t*>(m.gradient) + i;
  const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(from));
  if (m.gradient_type == GradientType::float16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

MISPLACE_AVX512 inline void store_copy_avx512(uint16_t* copy, __m512 value, bool stream) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i words = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7FC0));
  const __m256i narrow = _mm512_cvtepi32_epi16(words);
  const auto to = reinterpret_cast<__m256i*>(copy);
  stream ? _mm256_stream_si256(to, narrow) : _mm256_storeu_si256(to, narrow);
}

MISPLACE_AVX512 inline void update_avx512(const Member& m, int64_t begin, int64_t end, float keep,
                                          const Coefficients& c, bool stream) {
  const __m512 grad_scale = _mm512_set1_ps(c.grad_scale), keeps = _mm512_set1_ps(keep);
  const __m512 rate1 = _mm512_set1_ps(c.one_minus_beta1), beta2 = _mm512_set1_ps(c.beta2);
  const __m512 rate2 = _mm512_set1_ps(c.one_minus_beta2), inverse_root = _mm512_set1_ps(c.inverse_root);
  const __m512 eps = _mm512_set1_ps(c.eps), step_size = _mm512_set1_ps(c.step_size);
  const __m512 pace = _mm512_set1_ps(c.one_minus_momentum);
  const bool stream_student = stream && aligned(m.student_copy, begin, 32);
  const bool stream_teacher = stream && aligned(m.teacher_copy, begin, 32);
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    const __m512 g = _mm512_mul_ps(load_gradient_avx512(m, i), grad_scale);
    __m512 first = _mm512_loadu_ps(m.exp_avg + i), second = _mm512_loadu_ps(m.exp_avg_sq + i);
    first = _mm512_fmadd_ps(rate1, _mm512_sub_ps(g, first), first);
    second = _mm512_fmadd_ps(beta2, second, _mm512_mul_ps(_mm512_mul_ps(rate2, g), g));
    const __m512 root = _mm512_fmadd_ps(_mm512_sqrt_ps(second), inverse_root, eps);
    const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(m.parameter + i), keeps);
    const __m512 parameter = _mm512_fnmadd_ps(step_size, _mm512_div_ps(first, root), kept);
    _mm512_storeu_ps(m.exp_avg + i, first);
    _mm512_storeu_ps(m.exp_avg_sq + i, second);
    _mm512_storeu_ps(m.parameter + i, parameter);
    if (m.student_copy) store_copy_avx512(m.student_copy + i, parameter, stream_student);
    if (!m.teacher) continue;
    __m512 teacher = _mm512_loadu_ps(m.teacher + i);
    teacher = _mm512_fmadd_ps(pace, _mm512_sub_ps(parameter, teacher), teacher);
    _mm512_storeu_ps(m.teacher + i, teacher);
    if (m.teacher_copy) store_copy_avx512(m.teacher_copy + i, teacher, stream_teacher);
  }
  if (stream) _mm_sfence();
  update_plain(m, i, end, keep, c, false);
}

MISPLACE_AVX2 inline __m256 load_gradient_avx2(const Member& m, int64_t i) {
  if (m.gradient_type == GradientType::float32) return _mm256_loadu_ps(static_cast<const float*>(m.gradient) + i);
  const void* from = static_cast<const uint16_t*>(m.gradient) + i;
  const __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(from));
  if (m.gradient_type == GradientType::float16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

MISPLACE_AVX2 inline void store_copy_avx2(uint16_t* copy, __m256 value, bool stream) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7FC0), nan);
  const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const auto to = reinterpret_cast<__m128i*>(copy);
  stream ? _mm_stream_si128(to, narrow) : _mm_storeu_si128(to, narrow);
}

MISPLACE_AVX2 inline void update_avx2(const Member& m, int64_t begin, int64_t end, float keep, const Coefficients& c,
                                      bool stream) {
  const __m256 grad_scale = _mm256_set1_ps(c.grad_scale), keeps = _mm256_set1_ps(keep);
  const __m256 rate1 = _mm256_set1_ps(c.one_minus_beta1), beta2 = _mm256_set1_ps(c.beta2);
  const __m256 rate2 = _mm256_set1_ps(c.one_minus_beta2), inverse_root = _mm256_set1_ps(c.inverse_root);
  const __m256 eps = _mm256_set1_ps(c.eps), step_size = _mm256_set1_ps(c.step_size);
  const __m256 pace = _mm256_set1_ps(c.one_minus_momentum);
  const bool stream_student = stream && aligned(m.student_copy, begin, 16);
  const bool stream_teacher = stream && aligned(m.teacher_copy, begin, 16);
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const __m256 g = _mm256_mul_ps(load_gradient_avx2(m, i), grad_scale);
    __m256 first = _mm256_loadu_ps(m.exp_avg + i), second = _mm256_loadu_ps(m.exp_avg_sq + i);
    first = _mm256_fmadd_ps(rate1, _mm256_sub_ps(g, first), first);
    second = _mm256_fmadd_ps(beta2, second, _mm256_mul_ps(_mm256_mul_ps(rate2, g), g));
    const __m256 root = _mm256_fmadd_ps(_mm256_sqrt_ps(second), inverse_root, eps);
    const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(m.parameter + i), keeps);
    const __m256 parameter = _mm256_fnmadd_ps(step_size, _mm256_div_ps(first, root), kept);
    _mm256_storeu_ps(m.exp_avg + i, first);
    _mm256_storeu_ps(m.exp_avg_sq + i, second);
    _mm256_storeu_ps(m.parameter + i, parameter);
    if (m.student_copy) store_copy_avx2(m.student_copy + i, parameter, stream_student);
    if (!m.teacher) continue;
    __m256 teacher = _mm256_loadu_ps(m.teacher + i);
    teacher = _mm256_fmadd_ps(pace, _mm256_sub_ps(parameter, teacher), teacher);
    _mm256_storeu_ps(m.teacher + i, teacher);
    if (m.teacher_copy) store_copy_avx2(m.teacher_copy + i, teacher, stream_teacher);
  }
  if (stream) _mm_sfence();
  update_plain(m, i, end, keep, c, false);
}
#endif

}  // namespace misplace::adamw_ema
