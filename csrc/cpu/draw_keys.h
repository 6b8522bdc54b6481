// The sort keys of one image. Philox on AVX2 keeps each 32-bit word in a 64-bit lane: the 64-bit product
// is one instruction there, and what it leaves in the high half is ignored by the next one.
#pragma once

#include "shared/token_plan.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MISPLACE_HAS_AVX2_PATH
#include <immintrin.h>
#endif

namespace misplace::token_plan {

inline void draw_keys_scalar(uint64_t* keys, int num_patches, uint64_t index, const Draw& by) {
  for (int patch = 0; patch < num_patches; ++patch) keys[patch] = make_key(patch, index, by);
}

#ifdef MISPLACE_HAS_AVX2_PATH
// Writes whole groups of four: keys has room for num_patches rounded up.
__attribute__((target("avx2"))) inline void draw_keys_avx2(uint64_t* keys, int num_patches, uint64_t index,
                                                           const Draw& by) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
  const __m256i low_half = _mm256_set1_epi64x(0xFFFFFFFF), threshold = _mm256_set1_epi64x(by.wrong_threshold);
  const __m256i lane = _mm256_set_epi64x(3, 2, 1, 0);
  __m256i key0[philox_rounds], key1[philox_rounds];
  for (uint32_t round = 0; round < philox_rounds; ++round) {
    key0[round] = _mm256_set1_epi64x(static_cast<uint32_t>(by.seed) + round * philox_weyl0);
    key1[round] = _mm256_set1_epi64x(static_cast<uint32_t>(by.seed >> 32) + round * philox_weyl1);
  }
  for (int first = 0; first < num_patches; first += 4) {
    const __m256i patch = _mm256_add_epi64(_mm256_set1_epi64x(first), lane);
    __m256i c0 = _mm256_or_si256(patch, _mm256_set1_epi64x(first_word(0, by.view, Stream::token_plan)));
    __m256i c1 = _mm256_set1_epi64x(by.epoch);
    __m256i c2 = _mm256_set1_epi64x(index), c3 = _mm256_set1_epi64x(index >> 32);
    for (uint32_t round = 0; round < philox_rounds; ++round) {
      const __m256i product0 = _mm256_mul_epu32(c0, multiplier0);
      const __m256i product1 = _mm256_mul_epu32(c2, multiplier1);
      c0 = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c1, key0[round]));
      c2 = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c3, key1[round]));
      c1 = product1;
      c3 = product0;
    }
    const __m256i flag = _mm256_srli_epi64(_mm256_cmpgt_epi64(threshold, _mm256_and_si256(c1, low_half)), 63);
    const __m256i carried = _mm256_or_si256(_mm256_slli_epi64(patch, 1), flag);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + first),
                        _mm256_or_si256(_mm256_slli_epi64(c0, 32), carried));
  }
}
#endif

inline void draw_keys(uint64_t* keys, int num_patches, uint64_t index, const Draw& by) {
#ifdef MISPLACE_HAS_AVX2_PATH
  if (__builtin_cpu_supports("avx2")) return draw_keys_avx2(keys, num_patches, index, by);
#endif
  draw_keys_scalar(keys, num_patches, index, by);
}

}  // namespace misplace::token_plan
