// The number format of cpu/attention_body.h for bf16 on a CPU that multiplies pairs of bf16 and adds both products
// in fp32: a word is two neighbours along the contraction. Needs a head dim that is a multiple of 32.
// No include guard: included once per instruction set (cpu/each_isa.h).

struct Pairs {
  using Word = uint32_t;

  static int64_t steps(int64_t count) { return (count + 1) / 2; }

  MISPLACE_INLINE u32v load_words(const Word* from) {
    u32v words;
    __builtin_memcpy(&words, from, sizeof words);
    return words;
  }

  MISPLACE_INLINE f32v multiply_add(f32v sum, const Word* a, u32v b) {
    int word;
    __builtin_memcpy(&word, a, sizeof word);
    return (f32v)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(word), (__m512bh)b);
  }

  static Rows<const Word> natural(Rows<const bf16> from, int64_t, const Sizes&, Scratch&) {
    return {reinterpret_cast<const Word*>(from.data), from.stride / 2};
  }

  static const Word* by_rows(Rows<const bf16> from, int64_t rows, const Sizes& sizes, Scratch& scratch) {
    const int64_t width = sizes.head_dim;
    Word* to = scratch.take<Word>(steps(rows) * width);
    for (int64_t row = 0; row < rows; row += 2) {
      for (int64_t c = 0; c < width; c += 32) {
        const bf16* first = from.data + row * from.stride + c;
        const __m512i even = _mm512_loadu_si512(first);
        const __m512i odd = row + 1 < rows ? _mm512_loadu_si512(first + from.stride) : _mm512_setzero_si512();
        Word* words = to + row / 2 * width + c;
        _mm512_storeu_si512(words, _mm512_permutex2var_epi16(even, interleave(0), odd));
        _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi16(even, interleave(16), odd));
      }
    }
    return to;
  }

  MISPLACE_INLINE void words_of_row(const bf16* row, int64_t first_step, const Sizes&, uint32_t* to) {
    __builtin_memcpy(to, row + 2 * first_step, 64);
  }

  static Rows<const Word> scores_natural(const float* scores, const Sizes& sizes, int64_t width, Scratch& scratch) {
    bf16* to = scratch.take<bf16>(sizes.keys * width);
    for (int64_t i = 0; i < sizes.keys * width; i += 16) store(to + i, load(scores + i));
    return {reinterpret_cast<const Word*>(to), width / 2};
  }

  static const Word* scores_by_keys(const float* scores, const Sizes& sizes, int64_t width, Scratch& scratch) {
    Word* to = scratch.take<Word>(steps(sizes.keys) * width);
    const __m512i order = interleave(0, 16);
    for (int64_t key = 0; key < sizes.keys; key += 2) {
      for (int64_t lane = 0; lane < width; lane += 16) {
        const float* even = scores + key * width + lane;
        const f32v odd = key + 1 < sizes.keys ? load(even + width) : f32v{};
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)load(even));
        _mm512_storeu_si512(to + key / 2 * width + lane, _mm512_permutexvar_epi16(order, both));
      }
    }
    return to;
  }

 private:
  // Indices first, second, first + 1, second + 1, ...: of thirty-two each from two sources, or both from one.
  MISPLACE_INLINE __m512i interleave(int first, int distance = 32) {
    const __m512i ramp = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi32(ramp, _mm512_set1_epi32(first));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(distance)), 16));
  }
};
