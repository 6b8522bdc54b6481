// The loops of prototype_ce over a tile. No include guard: included once per instruction set (cpu/each_isa.h).
// Logits are exponents of 2: those of the teacher as they lie, the student's times `scale`.

// Rows / max(length, shortest) in F, 0 beyond the width, and 1 / max(length, shortest).
template <class T, class F>
static void normalise(const T* rows, int64_t count, int64_t width, int64_t columns, float* inverse, F* out) {
  for (int64_t row = 0; row < count; ++row) {
    const T* from = rows + row * width;
    f32v squares = {};
    for (int64_t c = 0; c < width; c += lanes) {
      const f32v x = load_first(from + c, width - c);
      squares += x * x;
    }
    const float length = __builtin_sqrtf(sum(squares));
    inverse[row] = 1.0f / (length < shortest ? shortest : length);
    for (int64_t c = 0; c < columns; c += lanes) {
      store(out + row * columns + c, load_first(from + c, width - c) * inverse[row]);
    }
  }
}

// d_unit [count, columns] is the gradient by the normalised rows, over scale; out that by the rows themselves.
template <class T>
static void normalise_backward(const float* d_unit, const T* rows, const float* inverse, int64_t count, int64_t width,
                               int64_t columns, float scale, T* out) {
  for (int64_t row = 0; row < count; ++row) {
    const float* gradient = d_unit + row * columns;
    const T* from = rows + row * width;
    f32v product = {};
    for (int64_t c = 0; c < width; c += lanes) product += load(gradient + c) * load_first(from + c, width - c);
    const bool too_short = inverse[row] >= 1.0f / shortest;  // its length is no part of the result
    const float along = too_short ? 0 : sum(product) * inverse[row] * inverse[row];
    const float factor = scale * inverse[row];
    for (int64_t c = 0; c < width; c += lanes) {
      const f32v across = load(gradient + c) - load_first(from + c, width - c) * along;
      store_first(out + row * width + c, across * factor, width - c);
    }
  }
}

MISPLACE_INLINE void words_of(const float* from, int64_t, uint32_t* to) { __builtin_memcpy(to, from, 64); }

MISPLACE_INLINE void words_of(const bf16* from, int64_t columns, uint32_t* to) {  // a pair of rows
  for (int i = 0; i < 16; ++i) to[i] = from[i] | static_cast<uint32_t>(from[columns + i]) << 16;
}

// [rows][columns] -> [columns][rows]; rows a multiple of 16 words.
template <class F>
static void transpose_tile(const F* from, int64_t rows, int64_t columns, F* to) {
  constexpr int pair = 4 / sizeof(F);
  for (int64_t row = 0; row < rows; row += 16 * pair) {
    for (int64_t c = 0; c < columns; c += 16) {
      alignas(64) uint32_t square[16][16];
      for (int i = 0; i < 16; ++i) words_of(from + (row + i * pair) * columns + c, columns, square[i]);
      transpose(square);
      for (int i = 0; i < 16; ++i) __builtin_memcpy(to + (c + i) * rows + row, square[i], 64);
    }
  }
}

// moved: by how much the largest have grown, below 0, where it is asked for.
static void accumulate(const float* logits, int64_t count, int64_t width, float scale, const Running& running,
                       const Weighted* weighted, float* moved) {
  for (int64_t lane = 0; lane < width; lane += lanes) {
    const f32v before = load(running.largest + lane);
    f32v largest = before;
    for (int64_t p = 0; p < count; ++p) largest = larger(load(logits + p * width + lane), largest);
    const f32v kept = exp2((before - largest) * scale, power_of_2), total_before = load(running.total + lane);
    f32v total = {}, sum = {};
    for (int64_t p = 0; p < count; ++p) {
      const f32v power = exp2((load(logits + p * width + lane) - largest) * scale, power_of_2);
      total += power;
      if (weighted) sum += power * load(weighted->partners + p * width + lane);
    }
    store(running.largest + lane, largest);
    store(running.total + lane, total_before * kept + total);
    if (moved) store(moved + lane, before - largest);
    if (weighted) {
      const f32v sum_before = load(weighted->sum + lane) + load(weighted->moved + lane) * total_before;
      store(weighted->sum + lane, sum_before * kept + sum);
    }
  }
}

static void subtract_largest(float* logits, int64_t count, int64_t width, const float* largest) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t lane = 0; lane < width; lane += lanes) {
      store(logits + p * width + lane, load(logits + p * width + lane) - load(largest + lane));
    }
  }
}

// (logits - centre) * scale, in place, and the mean over the rows before that where it is asked for.
static void centre_teacher(float* logits, int64_t count, const Sizes& sizes, const float* centre, float scale,
                           float* batch_centre) {
  const int64_t width = sizes.teacher_lanes();
  const float share = 1.0f / static_cast<float>(sizes.teacher_rows());
  for (int64_t p = 0; p < count; ++p) {
    float* row = logits + p * width;
    f32v total = {};
    for (int64_t lane = 0; lane < width; lane += lanes) {
      const f32v logit = load(row + lane);
      total += logit;
      store(row + lane, (logit - centre[p]) * scale);
    }
    if (batch_centre) batch_centre[p] = sum(total) * share;
  }
}

MISPLACE_INLINE void add(float* __restrict to, const float* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// partners [p][u, b] = sum over v != u of the student's logits [p][v, b].
static void sum_partners(const float* logits, int64_t count, const Sizes& sizes, float* partners) {
  const int64_t batch = sizes.batch, width = sizes.teacher_lanes();
  for (int64_t p = 0; p < count; ++p) {
    const float* row = logits + p * sizes.lanes();
    float* to = partners + p * width;
    for (int64_t i = 0; i < width; ++i) to[i] = 0;
    for (int64_t v = sizes.teacher_views; v < sizes.views; ++v) {
      add(to, row + v * batch, batch);
    }
    for (int64_t u = sizes.teacher_views - 1; u >= 0; --u) {  // the first last: it holds the sum of the local crops
      for (int64_t b = 0; b < batch; ++b) to[u * batch + b] = to[b];
      for (int64_t v = 0; v < sizes.teacher_views && v < sizes.views; ++v) {
        if (v != u) add(to + u * batch, row + v * batch, batch);
      }
    }
  }
}

// Times `factor`, one number a row, where there is one.
static void to_probabilities(float* logits, int64_t count, int64_t width, float scale, const LogSum& log_sum,
                             const float* factor) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t lane = 0; lane < width; lane += lanes) {
      float* at = logits + p * width + lane;
      const f32v above = (load(at) - load(log_sum.largest + lane)) * scale;  // exact for the largest
      const f32v probability = exp2(above - load(log_sum.log_total + lane), power_of_2);
      store(at, factor ? probability * load(factor + lane) : probability);
    }
  }
}

// others [u][b] = sum of q[u'][b] over u' != u; others [G][b] = the sum of all.
static void sum_others(const float* q, const Sizes& sizes, float* others) {
  const int64_t batch = sizes.batch;
  for (int64_t u = 0; u <= sizes.teacher_views; ++u) {
    float* to = others + u * batch;
    for (int64_t b = 0; b < batch; ++b) to[b] = 0;
    for (int64_t other = 0; other < sizes.teacher_views; ++other) {
      if (other != u) add(to, q + other * batch, batch);
    }
  }
}

MISPLACE_INLINE void subtract(float* __restrict from, const float* __restrict what, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from[i] -= what[i];
}

// Probabilities of the student's rows, times the number of their pairs -> the gradient of the sum of the pairs.
static void subtract_teacher(float* gradients, const float* q, int64_t count, const Sizes& sizes, float* others) {
  for (int64_t p = 0; p < count; ++p) {
    float* row = gradients + p * sizes.lanes();
    sum_others(q + p * sizes.teacher_lanes(), sizes, others);
    for (int64_t v = 0; v < sizes.views; ++v) {
      const int64_t of_teacher = v < sizes.teacher_views ? v : sizes.teacher_views;
      subtract(row + v * sizes.batch, others + of_teacher * sizes.batch, sizes.batch);
    }
  }
}

// As the left factor, [p][row], and as the right, [p / 2][row][2].
static void to_bf16_factors(const float* gradients, int64_t count, int64_t width, bf16* natural, bf16* paired) {
  for (int64_t p = 0; p < count; p += 2) {
    for (int64_t lane = 0; lane < width; lane += lanes) {
      const u16v even = to_bf16(load(gradients + p * width + lane));
      const u16v odd = to_bf16(load(gradients + (p + 1) * width + lane));
      __builtin_memcpy(natural + p * width + lane, &even, sizeof even);
      __builtin_memcpy(natural + (p + 1) * width + lane, &odd, sizeof odd);
      const u32v words = __builtin_convertvector(even, u32v) | __builtin_convertvector(odd, u32v) << 16;
      __builtin_memcpy(paired + p * width + 2 * lane, &words, sizeof words);
    }
  }
}

template <class F>
static Kernels<F> kernels() {
  Kernels<F> found{
      .normalise_fp32 = normalise<float, F>,
      .normalise_bf16 = normalise<bf16, F>,
      .backward_fp32 = normalise_backward<float>,
      .backward_bf16 = normalise_backward<bf16>,
      .transpose_tile = transpose_tile<F>,
      .accumulate = accumulate,
      .centre_teacher = centre_teacher,
      .subtract_largest = subtract_largest,
      .sum_partners = sum_partners,
      .to_probabilities = to_probabilities,
      .subtract_teacher = subtract_teacher,
      .to_factors = nullptr,
  };
  if constexpr (sizeof(F) == 2) found.to_factors = to_bf16_factors;
  return found;
}
