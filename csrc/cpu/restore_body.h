// Rows of restore. No include guard: included once per instruction set (cpu/each_isa.h).
//
// `token` tells of each row of the output which token of the batch it is made from; -1: the mask token.

constexpr int32_t masked = -1;

MISPLACE_INLINE void copy_row(const void* from, void* to, int64_t bytes) { __builtin_memcpy(to, from, bytes); }

// to = a + b, rounded once.
template <class A, class T>
MISPLACE_INLINE void add_row(const A* a, const float* b, T* to, int64_t width) {
  for (int64_t i = 0; i < width; i += lanes) {
    store_first(to + i, load_first(a + i, width - i) + load_first(b + i, width - i), width - i);
  }
}

// What a masked row holds: rows [length, width] of mask_token + position.
template <class T>
static void masked_rows(const float* mask_token, const float* position, int64_t length, int64_t width, T* to) {
  for (int64_t row = 0; row < length; ++row) add_row(mask_token, position + row * width, to + row * width, width);
}

// Rows [first, last) of the output, counted over all images.
template <class T>
static void forward(const T* tokens, const int32_t* token, const T* masked_rows, const float* position, int64_t length,
                    int64_t width, int64_t first, int64_t last, T* out) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t place = row % length;
    if (token[row] == masked) {
      copy_row(masked_rows + place * width, out + row * width, width * sizeof(T));
    } else {
      add_row(tokens + token[row] * width, position + place * width, out + row * width, width);
    }
  }
}

template <class T>
MISPLACE_INLINE void accumulate_row(const T* row, float* sums, int64_t width) {
  for (int64_t i = 0; i < width; i += lanes) {
    store_first(sums + i, load_first(sums + i, width - i) + load_first(row + i, width - i), width - i);
  }
}

// d_tokens of the rows [first, last) that a token went to; sums [width] become the sums of the masked ones.
template <class T>
static void backward(const T* gradient, const int32_t* token, int64_t width, int64_t first, int64_t last, T* d_tokens,
                     float* sums) {
  for (int64_t i = 0; i < width; ++i) sums[i] = 0;
  for (int64_t row = first; row < last; ++row) {
    if (token[row] == masked) {
      accumulate_row(gradient + row * width, sums, width);
    } else {
      copy_row(gradient + row * width, d_tokens + token[row] * width, width * sizeof(T));
    }
  }
}

// sums [length, width], of which rows [first, last): over `count` blocks of `length` rows that follow each other.
template <class T>
static void sum_blocks(const T* rows, int64_t count, int64_t length, int64_t width, int64_t first, int64_t last,
                       float* sums) {
  for (int64_t i = first * width; i < last * width; ++i) sums[i] = 0;
  for (int64_t block = 0; block < count; ++block) {
    for (int64_t row = first; row < last; ++row) {
      accumulate_row(rows + (block * length + row) * width, sums + row * width, width);
    }
  }
}
