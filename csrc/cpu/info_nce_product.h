// Products of tiles in fp32, and the same call for bf16. No include guard: included once per instruction set
// (cpu/each_isa.h).

// 24 sums of 32 registers, or 12 of 16
constexpr int tile_rows = 6, tile_vectors = MISPLACE_LEVEL >= 512 ? 4 : 2;
constexpr int64_t tile_steps = 128;  // of 64 numbers: what stays in the first cache while rows pass

template <int ROWS>
static void multiply_tile(int64_t steps, const float* a, int64_t lda, const float* b, float* c, int64_t ldc, bool add) {
  f32v sums[ROWS][tile_vectors] = {};
  for (int64_t step = 0; step < steps; ++step) {
    f32v right[tile_vectors];
    for (int v = 0; v < tile_vectors; ++v) right[v] = load(b + step * panel + lanes * v);
    for (int r = 0; r < ROWS; ++r) {
      const f32v left = splat(a[r * lda + step]);
      for (int v = 0; v < tile_vectors; ++v) sums[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < tile_vectors; ++v) {
      float* to = c + r * ldc + lanes * v;
      store(to, add ? load(to) + sums[r][v] : sums[r][v]);
    }
  }
}

template <int ROWS = tile_rows>
static void multiply_rows(int64_t rows, int64_t steps, const float* a, int64_t lda, const float* b, float* c,
                          int64_t ldc, bool add) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) {
    multiply_tile<ROWS>(steps, a + row * lda, lda, b, c + row * ldc, ldc, add);
  }
  if constexpr (ROWS > 1) {
    if (row < rows) multiply_rows<ROWS - 1>(rows - row, steps, a + row * lda, lda, b, c + row * ldc, ldc, add);
  }
}

// c[rows, columns] (+)= a[rows, steps] . b; b is [steps][64] for every 64 columns.
static void multiply(int64_t rows, int64_t columns, int64_t steps, const float* a, int64_t lda, const float* b,
                     float* c, int64_t ldc, bool add) {
  for (int64_t column = 0; column < columns; column += panel, b += steps * panel) {
    for (int64_t step = 0; step < steps; step += tile_steps) {
      const int64_t here = steps - step < tile_steps ? steps - step : tile_steps;
      for (int64_t lane = 0; lane < panel; lane += tile_vectors * lanes) {
        multiply_rows(rows, here, a + step, lda, b + step * panel + lane, c + column + lane, ldc, add || step > 0);
      }
    }
  }
}

// The same; b is [steps / 2][columns][2].
static void multiply(int64_t rows, int64_t columns, int64_t steps, const bf16* a, int64_t lda, const bf16* b, float* c,
                     int64_t ldc, bool add) {
  multiply_pairs(rows, columns, steps, a, lda, b, columns, c, ldc, add);
}
