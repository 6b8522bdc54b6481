// layer_norm of some rows, perhaps of a sum. No include guard: included once per instruction set (cpu/each_isa.h).
//
// A row is read from memory once, in order and alone: several at a time are faster from the cache and half as fast from
// memory. What later sweeps need of a bf16 row lies in `scratch` as fp32; of an fp32 one, reading it again costs less.
// Sums are rounded before they are normalised: the backward, which has the rounded ones, then finds exactly what was
// normalised.

#define MISPLACE_UNROLL MISPLACE_PRAGMA(GCC unroll 4)
#define MISPLACE_MEMBER inline __attribute__((always_inline))

template <class T>
constexpr bool is_narrow = sizeof(T) < sizeof(float);

MISPLACE_INLINE f32v as_stored(const float*, f32v x) { return x; }

MISPLACE_INLINE f32v as_stored(const bf16*, f32v x) {
  return (f32v)(__builtin_convertvector(to_bf16(x), u32v) << 16);
}

// x with 0 from `count` on.
MISPLACE_INLINE f32v first_of(f32v x, int64_t count) {
  if (count >= lanes) return x;
  float padded[lanes] = {};
  store_first(padded, x, count);
  return load(padded);
}

template <class T>
MISPLACE_INLINE f32v read_step(const ForwardOf<T>& of, int64_t at, float by, float* scratch, int64_t count) {
  f32v x = load_first(of.x + at, count);
  if (of.branch) {
    x += by * load_first(of.branch + at, count);
    store_first(of.sum + at, x, count);
    x = as_stored(of.x, x);
  }
  if constexpr (is_narrow<T>) store_first(scratch, x, count);
  return x;
}

MISPLACE_INLINE f32v square_step(const float* x, float mean, int64_t count) {
  const f32v centred = first_of(load_first(x, count) - mean, count);
  return centred * centred;
}

template <class T>
MISPLACE_INLINE void scale_step(const ForwardOf<T>& of, int64_t at, int64_t i, const float* x, float mean, float rstd,
                                int64_t count) {
  const f32v weight = load_first(of.weight + i, count), bias = load_first(of.bias + i, count);
  store_first(of.y + at, (load_first(x, count) - mean) * rstd * weight + bias, count);
}

// The fp32 numbers of the row that is normalised.
MISPLACE_INLINE const float* wide_row(const ForwardOf<float>& of, int64_t at, const float*) {
  return (of.branch ? of.sum : of.x) + at;
}

MISPLACE_INLINE const float* wide_row(const ForwardOf<bf16>&, int64_t, const float* scratch) { return scratch; }

// scratch: a row.
template <class T>
static void forward(const ForwardOf<T>& of, int64_t begin, int64_t end, float* scratch) {
  const int64_t whole = of.width / lanes * lanes, ragged = of.width - whole;
  const float per_element = 1.0f / of.width;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * of.width;
    const float by = of.branch_scale ? of.branch_scale[row / of.rows_per_image] : 1.0f;
    f32v total = {}, squares = {};
    MISPLACE_UNROLL
    for (int64_t i = 0; i < whole; i += lanes) total += read_step(of, at + i, by, scratch + i, lanes);
    if (ragged) total += read_step(of, at + whole, by, scratch + whole, ragged);
    const float mean = sum(total) * per_element;
    const float* x = wide_row(of, at, scratch);
    MISPLACE_UNROLL
    for (int64_t i = 0; i < whole; i += lanes) squares += square_step(x + i, mean, lanes);
    if (ragged) squares += square_step(x + whole, mean, ragged);
    const float rstd = 1.0f / __builtin_sqrtf(sum(squares) * per_element + of.eps);
    MISPLACE_UNROLL
    for (int64_t i = 0; i < whole; i += lanes) scale_step(of, at + i, i, x + i, mean, rstd, lanes);
    if (ragged) scale_step(of, at + whole, whole, x + whole, mean, rstd, ragged);
    if (of.mean) of.mean[row] = mean, of.rstd[row] = rstd;
  }
}

template <class T>
struct RowBack {
  const BackwardOf<T>& of;
  int64_t at;
  float mean, rstd, by, shift, slope;  // dx = rstd * (weighted - shift - slope * normalised)
  float *weighted_row, *normalised_row;
  f32v sums, products;  // of dnormed * weight, and of that with the normalised sum

  MISPLACE_MEMBER f32v normalised(int64_t i, int64_t count) const {
    return (load_first(of.sum + at + i, count) - mean) * rstd;
  }

  MISPLACE_MEMBER void sums_step(float* daffine, int64_t i, int64_t count) {
    float *dweight = daffine + i, *dbias = daffine + of.width + i;
    const f32v dnormed = load_first(of.dnormed + at + i, count), n = normalised(i, count);
    const f32v weighted = dnormed * load_first(of.weight + i, count);
    store_first(dweight, load_first(dweight, count) + dnormed * n, count);
    store_first(dbias, load_first(dbias, count) + dnormed, count);
    sums += weighted;
    products += weighted * n;
    if constexpr (is_narrow<T>) {
      store_first(weighted_row + i, weighted, count);
      store_first(normalised_row + i, n, count);
    }
  }

  MISPLACE_MEMBER void dx_step(int64_t i, int64_t count) const {
    f32v weighted, n;
    if constexpr (is_narrow<T>) {
      weighted = load_first(weighted_row + i, count), n = load_first(normalised_row + i, count);
    } else {
      weighted = load_first(of.dnormed + at + i, count) * load_first(of.weight + i, count), n = normalised(i, count);
    }
    f32v dx = (weighted - shift - n * slope) * rstd;
    if (of.dsum) dx += load_first(of.dsum + at + i, count);
    store_first(of.dx + at + i, dx, count);
    if (of.dbranch) store_first(of.dbranch + at + i, dx * by, count);
  }
};

// daffine [2, width], of weight and bias, becomes what these rows give. scratch: two rows.
template <class T>
static void backward(const BackwardOf<T>& of, int64_t begin, int64_t end, float* daffine, float* scratch) {
  const int64_t width = of.width, whole = width / lanes * lanes, ragged = width - whole;
  const float per_element = 1.0f / width;
  for (int64_t i = 0; i < 2 * width; ++i) daffine[i] = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float by = of.branch_scale ? of.branch_scale[i / of.rows_per_image] : 1.0f;
    RowBack<T> row{of, i * width, of.mean[i], of.rstd[i], by, 0, 0, scratch, scratch + width, f32v{}, f32v{}};
    MISPLACE_UNROLL
    for (int64_t j = 0; j < whole; j += lanes) row.sums_step(daffine, j, lanes);
    if (ragged) row.sums_step(daffine, whole, ragged);
    row.shift = sum(row.sums) * per_element;
    row.slope = sum(row.products) * per_element;
    MISPLACE_UNROLL
    for (int64_t j = 0; j < whole; j += lanes) row.dx_step(j, lanes);
    if (ragged) row.dx_step(whole, ragged);
  }
}

// to = the sum of `count` vectors of `size` that follow each other.
static void add_parts(const float* parts, int64_t count, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += lanes) {
    f32v total = {};
    for (int64_t part = 0; part < count; ++part) total += load_first(parts + part * size + i, size - i);
    store_first(to + i, total, size - i);
  }
}

#undef MISPLACE_UNROLL
#undef MISPLACE_MEMBER
