// A vector of fp32 as wide as this instruction set's registers, in the compiler's own vector types.
// No include guard: included once per instruction set, inside that one's namespace (cpu/each_isa.h).

#if MISPLACE_LEVEL >= 512
constexpr int lanes = 16;
#elif MISPLACE_LEVEL >= 256
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float f32v __attribute__((vector_size(4 * lanes)));
typedef uint32_t u32v __attribute__((vector_size(4 * lanes)));
typedef uint16_t u16v __attribute__((vector_size(2 * lanes)));
using bf16 = uint16_t;  // the bits of one

#define MISPLACE_INLINE static inline __attribute__((always_inline))

MISPLACE_INLINE f32v splat(float x) { return f32v{} + x; }

MISPLACE_INLINE f32v load(const float* from) {
  f32v x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

MISPLACE_INLINE f32v load(const bf16* from) {
  u16v x;
  __builtin_memcpy(&x, from, sizeof x);
  return (f32v)(__builtin_convertvector(x, u32v) << 16);
}

MISPLACE_INLINE void store(float* to, f32v x) { __builtin_memcpy(to, &x, sizeof x); }

// To nearest even; a NaN stays one.
MISPLACE_INLINE u16v to_bf16(f32v x) {
#if MISPLACE_LEVEL >= 513
  return (u16v)_mm512_cvtneps_pbh((__m512)x);
#elif MISPLACE_LEVEL >= 512
  const u32v bits = (u32v)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_set1_epi32(0x7fc0);
  return (u16v)_mm512_cvtepi32_epi16(_mm512_mask_mov_epi32((__m512i)rounded, is_nan, quiet));
#else
  const u32v bits = (u32v)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32v is_nan = (u32v)(x != x);
  return __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), u16v);
#endif
}

MISPLACE_INLINE void store(bf16* to, f32v x) {
  const u16v narrow = to_bf16(x);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

// The first `count` of a vector; the others read as 0 and are not written.
template <class T>
MISPLACE_INLINE f32v load_first(const T* from, int64_t count) {
  if (count >= lanes) return load(from);
  T padded[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load(padded);
}

template <class T>
MISPLACE_INLINE void store_first(T* to, f32v x, int64_t count) {
  if (count >= lanes) return store(to, x);
  T padded[lanes];
  store(padded, x);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

MISPLACE_INLINE f32v smaller(f32v a, f32v b) {  // b where either is NaN
#if MISPLACE_LEVEL >= 512
  return (f32v)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

MISPLACE_INLINE f32v larger(f32v a, f32v b) {  // b where either is NaN
#if MISPLACE_LEVEL >= 512
  return (f32v)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

MISPLACE_INLINE float sum(f32v x) {
#if MISPLACE_LEVEL >= 512
  return _mm512_reduce_add_ps((__m512)x);
#else
  float parts[lanes];
  store(parts, x);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
#endif
}

// c[0] + c[1] x + ... + c[N - 1] x^(N - 1)
template <int N>
MISPLACE_INLINE f32v polynomial(const float (&c)[N], f32v x) {
  f32v y = splat(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) y = y * x + c[i];
  return y;
}

// Of 2^x in [-1/2, 1/2]: relative error 3e-9, and 1 at 0; relative error 7.5e-5.
constexpr float power_of_2[] = {1.0f,           0.693147182f,   0.240226507f,  0.0555032715f,
                                0.00961805694f, 0.00134004280f, 0.000154614449f};
constexpr float rough_power_of_2[] = {0.999928057f, 0.693260968f, 0.242611125f, 0.0551716648f};

// 2^x for x <= 127, as exact as `power`; 0 below 2^-126 (no denormals); NaN stays NaN.
template <int N>
MISPLACE_INLINE f32v exp2(f32v x, const float (&power)[N]) {
  x = larger(splat(-127.0f), x);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const f32v shifted = x + shift;
  const u32v exponent = ((u32v)shifted - (0x4b400000 - 127)) << 23;
  return polynomial(power, x - (shifted - shift)) * (f32v)exponent;
}

// Rows and columns exchanged.
MISPLACE_INLINE void transpose(uint32_t (&square)[16][16]) {
#if MISPLACE_LEVEL >= 512
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    const __m512i even = _mm512_loadu_si512(square[i]), odd = _mm512_loadu_si512(square[i + 1]);
    a[i] = _mm512_unpacklo_epi32(even, odd);
    a[i + 1] = _mm512_unpackhi_epi32(even, odd);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    _mm512_storeu_si512(square[i], _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(square[i + 4], _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(square[i + 8], _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(square[i + 12], _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
#else
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t below = square[i][j];
      square[i][j] = square[j][i];
      square[j][i] = below;
    }
  }
#endif
}
