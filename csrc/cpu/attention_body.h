// Attention of one head. No include guard: included once per instruction set (cpu/each_isa.h).
//
// Scores are held transposed, [key][query], up to 64 queries at a time: a softmax then runs down the rows, a query
// per lane, without a sum across lanes; and each of the seven matrix products is
//     c[row][lane] (+)= sum over steps of a[row][step] * b[step][lane]
// with a broadcast from wherever it lies and b read in whole vectors. A "step" is one number in fp32 and a pair in
// bf16 (cpu/attention_fp32.h, cpu/attention_pairs.h).

// 24 sums of 32 registers, or 12 of 16
constexpr int tile_rows = 6, tile_vectors = MISPLACE_LEVEL >= 512 ? 4 : 2;

#include "cpu/attention_fp32.h"
#if MISPLACE_LEVEL >= 513
#include "cpu/attention_pairs.h"
#endif

constexpr float log2_e = 1.4426950408889634f;

template <class Word>
struct Left {  // word (row, step) at data[row * row_stride + step * step_stride]
  const Word* data;
  int64_t row_stride, step_stride;
};

template <class Math, int ROWS, int VECTORS>
static void multiply_tile(Left<typename Math::Word> a, const typename Math::Word* b, int64_t b_stride, int64_t steps,
                          float* c, int64_t c_stride, bool accumulate) {
  f32v sums[ROWS][VECTORS] = {};
  for (int64_t step = 0; step < steps; ++step) {
    decltype(Math::load_words(b)) right[VECTORS];
    for (int v = 0; v < VECTORS; ++v) right[v] = Math::load_words(b + step * b_stride + lanes * v);
    for (int r = 0; r < ROWS; ++r) {
      const auto* left = a.data + r * a.row_stride + step * a.step_stride;
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = Math::multiply_add(sums[r][v], left, right[v]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) {
      float* to = c + r * c_stride + lanes * v;
      store(to, accumulate ? load(to) + sums[r][v] : sums[r][v]);
    }
  }
}

template <class Math, int VECTORS, int ROWS = tile_rows>
static void multiply_rows(Left<typename Math::Word> a, const typename Math::Word* b, int64_t b_stride, int64_t steps,
                          float* c, int64_t c_stride, int64_t rows, bool accumulate) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) {
    const Left<typename Math::Word> part{a.data + row * a.row_stride, a.row_stride, a.step_stride};
    multiply_tile<Math, ROWS, VECTORS>(part, b, b_stride, steps, c + row * c_stride, c_stride, accumulate);
  }
  if constexpr (ROWS > 1) {
    if (row < rows) {
      a.data += row * a.row_stride;
      multiply_rows<Math, VECTORS, ROWS - 1>(a, b, b_stride, steps, c + row * c_stride, c_stride, rows - row,
                                             accumulate);
    }
  }
}

// c [rows][width] (+)= a b; width is a multiple of 16 and the stride of b and c.
template <class Math>
static void multiply(Left<typename Math::Word> a, const typename Math::Word* b, int64_t steps, float* c, int64_t rows,
                     int64_t width, bool accumulate = false) {
  int64_t lane = 0;
  for (; lane + tile_vectors * lanes <= width; lane += tile_vectors * lanes) {
    multiply_rows<Math, tile_vectors>(a, b + lane, width, steps, c + lane, width, rows, accumulate);
  }
  if constexpr (tile_vectors == 4) {
    for (; lane + 2 * lanes <= width; lane += 2 * lanes) {
      multiply_rows<Math, 2>(a, b + lane, width, steps, c + lane, width, rows, accumulate);
    }
    for (; lane < width; lane += lanes) {
      multiply_rows<Math, 1>(a, b + lane, width, steps, c + lane, width, rows, accumulate);
    }
  }
}

template <class Word>
static Left<Word> by_row(Rows<const Word> words) {
  return {words.data, words.stride, 1};
}

// Word (step, row) of `count` rows, 0 for the rows up to `width`: contraction over the elements, a row per lane.
template <class Math, class T>
static const typename Math::Word* transposed(Rows<const T> from, int64_t count, int64_t width, const Sizes& sizes,
                                             Scratch& scratch) {
  const int64_t steps = Math::steps(sizes.head_dim);
  auto* to = scratch.take<typename Math::Word>(steps * width);
  for (int64_t row = 0; row < width; row += 16) {
    for (int64_t step = 0; step < steps; step += 16) {
      alignas(64) uint32_t square[16][16] = {};
      for (int64_t i = 0; i < 16 && row + i < count; ++i) {
        Math::words_of_row(from.data + (row + i) * from.stride, step, sizes, square[i]);
      }
      transpose(square);
      for (int64_t i = 0; i < 16 && step + i < steps; ++i) {
        __builtin_memcpy(to + (step + i) * width + row, square[i], sizeof square[i]);
      }
    }
  }
  return to;
}

template <class T>
static void store_row(T* to, const float* from, float factor, const Sizes& sizes) {
  for (int64_t c = 0; c < sizes.head_dim; c += lanes) {
    store_first(to + c, load(from + c) * factor, sizes.head_dim - c);
  }
}

// e^(scale * score - largest of them) by way of 2^x; exactly 1 for the largest.
struct Exponential {
  float sign, factor;

  explicit Exponential(float scale) : sign(scale < 0 ? -1.0f : 1.0f), factor(sign * scale * log2_e) {}
  __attribute__((always_inline)) f32v of(f32v scores, f32v largest) const {
    return exp2((scores * sign - largest) * factor, power_of_2);
  }
};

// scores -> e^(scores * scale - largest), in place, and what the backward needs to do it again.
static void softmax(float* scores, int64_t keys, int64_t width, float scale, float* largest, float* inverse_sum) {
  const Exponential exponential(scale);
  for (int64_t lane = 0; lane < width; lane += lanes) {
    f32v most = load(scores + lane) * exponential.sign, sum = {};
    for (int64_t key = 1; key < keys; ++key) {
      most = larger(load(scores + key * width + lane) * exponential.sign, most);
    }
    for (int64_t key = 0; key < keys; ++key) {
      float* at = scores + key * width + lane;
      const f32v power = exponential.of(load(at), most);
      sum += power;
      store(at, power);
    }
    store(largest + lane, most);
    store(inverse_sum + lane, 1.0f / sum);
  }
}

template <class Math, class T>
static void forward(const ForwardHead<T>& head, const Sizes& sizes, Scratch& scratch) {
  const int64_t dim = sizes.padded_dim();
  const auto k = Math::natural(head.k, sizes.keys, sizes, scratch);
  const auto* v = Math::by_rows(head.v, sizes.keys, sizes, scratch);
  float* scores = scratch.take<float>(sizes.keys * query_block);
  float* out = scratch.take<float>(query_block * dim);
  float* statistics = scratch.take<float>(2 * query_block);
  std::byte* const of_block = scratch.mark();
  for (int64_t first = 0; first < sizes.queries; first += query_block) {
    scratch.back_to(of_block);
    const int64_t count = std::min<int64_t>(query_block, sizes.queries - first), width = (count + 15) / 16 * 16;
    const Rows<const T> queries{head.q.data + first * head.q.stride, head.q.stride};
    const auto* q = transposed<Math>(queries, count, width, sizes, scratch);
    multiply<Math>(by_row(k), q, Math::steps(sizes.head_dim), scores, sizes.keys, width);
    softmax(scores, sizes.keys, width, sizes.scale, statistics, statistics + query_block);
    const auto* p = Math::scores_by_keys(scores, sizes, width, scratch);
    multiply<Math>({p, 1, width}, v, Math::steps(sizes.keys), out, count, dim);
    for (int64_t i = 0; i < count; ++i) {
      const float inverse_sum = statistics[query_block + i];
      store_row(head.out.data + (first + i) * head.out.stride, out + i * dim, inverse_sum, sizes);
      if (head.statistics) {
        head.statistics[first + i] = statistics[i];
        head.statistics[sizes.queries + first + i] = inverse_sum;
      }
    }
  }
}

// scores -> probabilities; dprobabilities -> gradients of the scores; both in place.
static void softmax_backward(float* scores, float* dprobabilities, int64_t keys, int64_t width, float scale,
                             const float* largest, const float* inverse_sum) {
  const Exponential exponential(scale);
  for (int64_t lane = 0; lane < width; lane += lanes) {
    const f32v most = load(largest + lane), inverse = load(inverse_sum + lane);
    f32v mean = {};
    for (int64_t key = 0; key < keys; ++key) {
      const int64_t at = key * width + lane;
      const f32v probability = exponential.of(load(scores + at), most) * inverse;
      mean += probability * load(dprobabilities + at);
      store(scores + at, probability);
    }
    for (int64_t key = 0; key < keys; ++key) {
      const int64_t at = key * width + lane;
      store(dprobabilities + at, load(scores + at) * (load(dprobabilities + at) - mean) * scale);
    }
  }
}

template <class Math, class T>
static void backward(const BackwardHead<T>& head, const Sizes& sizes, Scratch& scratch) {
  const int64_t dim = sizes.padded_dim(), steps = Math::steps(sizes.head_dim);
  const auto k = Math::natural(head.k, sizes.keys, sizes, scratch);
  const auto v = Math::natural(head.v, sizes.keys, sizes, scratch);
  const auto* k_by_rows = Math::by_rows(head.k, sizes.keys, sizes, scratch);
  float* dk = scratch.take<float>(sizes.keys * dim);
  float* dv = scratch.take<float>(sizes.keys * dim);
  float* dq = scratch.take<float>(query_block * dim);
  float* scores = scratch.take<float>(sizes.keys * query_block);
  float* dscores = scratch.take<float>(sizes.keys * query_block);
  float* statistics = scratch.take<float>(2 * query_block);
  std::byte* const of_block = scratch.mark();
  for (int64_t first = 0; first < sizes.queries; first += query_block) {
    scratch.back_to(of_block);
    const int64_t count = std::min<int64_t>(query_block, sizes.queries - first), width = (count + 15) / 16 * 16;
    for (int64_t i = 0; i < width; ++i) {  // a probability of 0 for the queries that there are not
      statistics[i] = i < count ? head.statistics[first + i] : 0;
      statistics[query_block + i] = i < count ? head.statistics[sizes.queries + first + i] : 0;
    }
    const Rows<const T> q{head.q.data + first * head.q.stride, head.q.stride};
    const Rows<const T> dout{head.dout.data + first * head.dout.stride, head.dout.stride};
    multiply<Math>(by_row(k), transposed<Math>(q, count, width, sizes, scratch), steps, scores, sizes.keys, width);
    multiply<Math>(by_row(v), transposed<Math>(dout, count, width, sizes, scratch), steps, dscores, sizes.keys, width);
    softmax_backward(scores, dscores, sizes.keys, width, sizes.scale, statistics, statistics + query_block);
    const auto p = Math::scores_natural(scores, sizes, width, scratch);
    const auto ds = Math::scores_natural(dscores, sizes, width, scratch);
    const auto* ds_by_keys = Math::scores_by_keys(dscores, sizes, width, scratch);
    const int64_t query_steps = Math::steps(count);
    multiply<Math>(by_row(p), Math::by_rows(dout, count, sizes, scratch), query_steps, dv, sizes.keys, dim, first > 0);
    multiply<Math>(by_row(ds), Math::by_rows(q, count, sizes, scratch), query_steps, dk, sizes.keys, dim, first > 0);
    multiply<Math>({ds_by_keys, 1, width}, k_by_rows, Math::steps(sizes.keys), dq, count, dim);
    for (int64_t i = 0; i < count; ++i) {
      store_row(head.dq.data + (first + i) * head.dq.stride, dq + i * dim, 1.0f, sizes);
    }
  }
  for (int64_t key = 0; key < sizes.keys; ++key) {
    store_row(head.dk.data + key * head.dk.stride, dk + key * dim, 1.0f, sizes);
    store_row(head.dv.data + key * head.dv.stride, dv + key * dim, 1.0f, sizes);
  }
}
