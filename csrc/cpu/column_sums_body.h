// Sums over rows. No include guard: included once per instruction set (cpu/each_isa.h).

// to[c] = sum of rows[r][c] over count rows; to has room for `width`.
template <class T>
static void column_sums(const T* rows, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += lanes) {
    const int64_t here = width - c < lanes ? width - c : lanes;
    store_first(to + c, splat(0.0f), here);
  }
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {  // four rows for each time that the sums are read and written
    const T *a = rows + r * width, *b = a + width, *c = b + width, *d = c + width;
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      store(to + i, load(to + i) + ((load(a + i) + load(b + i)) + (load(c + i) + load(d + i))));
    }
    if (i < width) {
      const int64_t left = width - i;
      const f32v four = (load_first(a + i, left) + load_first(b + i, left)) +
                        (load_first(c + i, left) + load_first(d + i, left));
      store_first(to + i, load_first(to + i, left) + four, left);
    }
  }
  for (; r < count; ++r) {
    for (int64_t i = 0; i < width; i += lanes) {
      const int64_t left = width - i;
      store_first(to + i, load_first(to + i, left) + load_first(rows + r * width + i, left), left);
    }
  }
}
