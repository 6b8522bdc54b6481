// The loops of token_bce over rows, in vectors of VECTOR_BYTES. No include guard: each instruction set's .cpp
// includes them once, compiled for itself.
//
// Four rows go together: their sums are independent, so additions do not wait for each other, and h and the
// running direction are loaded once for four. A row is read three times, from memory only the first time.

namespace misplace::token_bce {
namespace {

constexpr int rows_together = 4;

template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class C>
using Vector = typename VectorOf<C>::type;
template <class C>
constexpr int lanes = VECTOR_BYTES / sizeof(C);

typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class C>
inline Vector<C> load(const C* from) {
  Vector<C> values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Vector<float> load(const c10::BFloat16* from) {
#if VECTOR_BYTES == 64
  const auto wide = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif VECTOR_BYTES == 32
  const auto wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Halves high;
  std::memcpy(&high, from, sizeof high);
  const Words wide = __builtin_convertvector(high, Words);
#endif
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Words>(wide) << 16);
}

template <class C>
inline void store(C* to, Vector<C> values) {
  std::memcpy(to, &values, sizeof values);
}

// To nearest, ties to even; a NaN stays one.
inline void store(c10::BFloat16* to, Vector<float> values) {
#if VECTOR_BYTES == 64
  const auto high = _mm512_cvtneps_pbh(values);
#else
  const Words bits = reinterpret_cast<Words>(values);
  const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Halves high = __builtin_convertvector(values == values ? rounded : (bits >> 16) | 0x40u, Halves);
#endif
  std::memcpy(to, &high, sizeof high);
}

template <class C, class T>
inline Vector<C> load_some(const T* from, int64_t count, C fill) {
  alignas(VECTOR_BYTES) C values[lanes<C>];
  for (int lane = 0; lane < lanes<C>; ++lane) values[lane] = lane < count ? static_cast<C>(from[lane]) : fill;
  return load(values);
}

template <class C, class T>
inline void store_some(T* to, int64_t count, Vector<C> values) {
  T converted[lanes<C>];
  store(converted, values);
  std::memcpy(to, converted, count * sizeof(T));
}

template <class C>
inline C sum_of(Vector<C> values) {
#if VECTOR_BYTES == 64
  if constexpr (std::is_same_v<C, float>) return _mm512_reduce_add_ps(values);
#endif
  C halves[lanes<C>];
  std::memcpy(halves, &values, sizeof values);
  for (int count = lanes<C> / 2; count > 0; count /= 2) {
    for (int lane = 0; lane < count; ++lane) halves[lane] += halves[lane + count];
  }
  return halves[0];
}

// R rows from their sums to their gradients, in whole vectors; the rest of a row goes by `some`.
template <class T, class C, int R>
struct Group {
  const Rows<T, C>& rows;
  const T* x[R];
  T* d_x[R];
  C mean[R], rstd[R], projected[R];
  RowGradient<C> gradient[R];

  void find_means() {
    Vector<C> sum[R] = {};
    int64_t i = 0;
    for (; i + lanes<C> <= rows.width; i += lanes<C>) {
      for (int r = 0; r < R; ++r) sum[r] += load(x[r] + i);
    }
    for (int r = 0; r < R; ++r) {
      if (i < rows.width) sum[r] += load_some<C>(x[r] + i, rows.width - i, C(0));
      mean[r] = sum_of<C>(sum[r]) / static_cast<C>(rows.width);
    }
  }

  void project() {
    Vector<C> squares[R] = {}, products[R] = {};
    const auto add = [&](int r, Vector<C> values, Vector<C> h) __attribute__((always_inline)) {
      const Vector<C> centred = values - mean[r];
      squares[r] += centred * centred;
      products[r] += centred * h;
    };
    int64_t i = 0;
    for (; i + lanes<C> <= rows.width; i += lanes<C>) {
      const Vector<C> h = load(rows.h + i);
      for (int r = 0; r < R; ++r) add(r, load(x[r] + i), h);
    }
    const int64_t rest = rows.width - i;
    for (int r = 0; r < R; ++r) {
      // the mean as filling: centred, it is 0
      if (rest) add(r, load_some<C>(x[r] + i, rest, mean[r]), load_some<C>(rows.h + i, rest, C(0)));
      rstd[r] = 1 / std::sqrt(sum_of<C>(squares[r]) * rows.inverse_width + rows.eps);
      projected[r] = rstd[r] * sum_of<C>(products[r]);
    }
  }

  void compare(int64_t first_row, Sums<C>& sums) {
    for (int r = 0; r < R; ++r) {
      const int64_t row = first_row + r;
      const C target = rows.flags ? static_cast<C>(rows.flags[row]) : rows.targets[row];
      const C weight = rows.token_weight ? rows.token_weight[row] : C(1);
      const C logit = rows.logits[row] = projected[r] + rows.constant;
      const Bce<C> bce = bce_with_logits(logit, target);
      const C slope = bce.slope * weight * rows.share;
      sums.loss += static_cast<double>(bce.loss * weight);
      sums.slopes += static_cast<double>(slope);
      gradient[r] = row_gradient(slope, rstd[r], projected[r], rows.inverse_width);
    }
  }

  void write_gradients(C* direction) {
    int64_t i = 0;
    for (; i + lanes<C> <= rows.width; i += lanes<C>) {
      const Vector<C> h = load(rows.h + i);
      Vector<C> sum = load(direction + i);
      for (int r = 0; r < R; ++r) {
        const Vector<C> centred = load(x[r] + i) - mean[r];
        sum += gradient[r].toward_h * centred;
        store(d_x[r] + i, gradient[r].toward_h * h - gradient[r].toward_x * centred);
      }
      store(direction + i, sum);
    }
    const int64_t rest = rows.width - i;
    for (int r = 0; rest && r < R; ++r) {
      const Vector<C> centred = load_some<C>(x[r] + i, rest, mean[r]) - mean[r];
      const Vector<C> h = load_some<C>(rows.h + i, rest, C(0));
      const Vector<C> sum = load_some<C>(direction + i, rest, C(0)) + gradient[r].toward_h * centred;
      store_some<C>(direction + i, rest, sum);
      store_some<C>(d_x[r] + i, rest, gradient[r].toward_h * h - gradient[r].toward_x * centred);
    }
  }
};

template <class T, class C, int R>
inline void run_group(const Rows<T, C>& rows, int64_t first_row, Sums<C>& sums) {
  Group<T, C, R> group{rows, {}, {}, {}, {}, {}, {}};
  const int64_t length = rows.offset + rows.kept;
  for (int r = 0; r < R; ++r) {
    const int64_t image = (first_row + r) / rows.kept, token = (first_row + r) % rows.kept;
    group.x[r] = rows.tokens + image * rows.image_stride + token * rows.token_stride;
    if (!rows.d_tokens) continue;
    T* of_image = rows.d_tokens + image * length * rows.width;
    group.d_x[r] = of_image + (rows.offset + token) * rows.width;
    if (token == 0) std::memset(static_cast<void*>(of_image), 0, rows.offset * rows.width * sizeof(T));
  }
  group.find_means();
  group.project();
  group.compare(first_row, sums);
  if (rows.d_tokens) group.write_gradients(sums.direction);
}

template <class T, class C>
void run(const Rows<T, C>& rows, int64_t begin, int64_t end, Sums<C>& sums) {
  int64_t row = begin;
  for (; row + rows_together <= end; row += rows_together) run_group<T, C, rows_together>(rows, row, sums);
  for (; row < end; ++row) run_group<T, C, 1>(rows, row, sums);
}

}  // namespace
}  // namespace misplace::token_bce
