// The number format of cpu/attention_body.h that runs everywhere: what the tensors hold is widened to fp32 on its
// way into scratch. No include guard: included once per instruction set (cpu/each_isa.h).

struct Fp32 {
  using Word = float;  // what one lane of a matrix product takes in per step

  static int64_t steps(int64_t count) { return count; }

  MISPLACE_INLINE f32v load_words(const Word* from) { return load(from); }
  MISPLACE_INLINE f32v multiply_add(f32v sum, const Word* a, f32v b) { return splat(*a) * b + sum; }

  // Word (row, step), contraction over the elements of a row.
  template <class T>
  static Rows<const Word> natural(Rows<const T> from, int64_t rows, const Sizes& sizes, Scratch& scratch) {
    return {by_rows(from, rows, sizes, scratch), sizes.padded_dim()};
  }

  // Word (step, element), contraction over the rows; elements padded with 0 to whole vectors.
  template <class T>
  static const Word* by_rows(Rows<const T> from, int64_t rows, const Sizes& sizes, Scratch& scratch) {
    const int64_t width = sizes.padded_dim();
    Word* to = scratch.take<Word>(rows * width);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < width; c += lanes) {
        store(to + row * width + c, load_first(from.data + row * from.stride + c, sizes.head_dim - c));
      }
    }
    return to;
  }

  // Sixteen words of a row from `first_step` on, 0 beyond its end.
  template <class T>
  MISPLACE_INLINE void words_of_row(const T* row, int64_t first_step, const Sizes& sizes, uint32_t* to) {
    for (int i = 0; i < 16; i += lanes) {
      const f32v words = load_first(row + first_step + i, sizes.head_dim - first_step - i);
      __builtin_memcpy(to + i, &words, sizeof words);
    }
  }

  // Scores [keys][width of queries] as word (key, step over queries), and as word (step over keys, query).
  static Rows<const Word> scores_natural(const float* scores, const Sizes&, int64_t width, Scratch&) {
    return {scores, width};
  }
  static const Word* scores_by_keys(const float* scores, const Sizes&, int64_t, Scratch&) { return scores; }
};
