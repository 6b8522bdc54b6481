// layer_norm of some rows, perhaps of a sum. No include guard: included once per instruction set (cpu/each_isa.h).
//
// Rows are taken four at a time: sums of one wait for none of another, and weights and their gradients are read once
// for four. A row is read from memory once and again from the cache. Sums are rounded before they are normalised: the
// backward, which has the rounded ones, then finds exactly what was normalised.

constexpr int rows_at_once = 4;

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

template <int R, class T>
struct Several {
  const T *x[R], *branch[R];
  T *sum[R], *y[R];
  float by[R], mean[R], rstd[R];
  f32v total[R];
};

template <int R, class T>
MISPLACE_INLINE void add_step(Several<R, T>& rows, int64_t i, int64_t count) {
  for (int r = 0; r < R; ++r) {
    const f32v sum = load_first(rows.x[r] + i, count) + rows.by[r] * load_first(rows.branch[r] + i, count);
    store_first(rows.sum[r] + i, sum, count);
    rows.total[r] += as_stored(rows.x[r], sum);
  }
}

template <int R, class T>
MISPLACE_INLINE void total_step(Several<R, T>& rows, int64_t i, int64_t count) {
  for (int r = 0; r < R; ++r) rows.total[r] += load_first(rows.x[r] + i, count);
}

template <int R, class T>
MISPLACE_INLINE void square_step(Several<R, T>& rows, int64_t i, int64_t count) {
  for (int r = 0; r < R; ++r) {
    const f32v centred = first_of(load_first(rows.x[r] + i, count) - rows.mean[r], count);
    rows.total[r] += centred * centred;
  }
}

template <int R, class T>
MISPLACE_INLINE void scale_step(const Several<R, T>& rows, const ForwardOf<T>& of, int64_t i, int64_t count) {
  const f32v weight = load_first(of.weight + i, count), bias = load_first(of.bias + i, count);
  for (int r = 0; r < R; ++r) {
    const f32v centred = load_first(rows.x[r] + i, count) - rows.mean[r];
    store_first(rows.y[r] + i, centred * rows.rstd[r] * weight + bias, count);
  }
}

template <int R, class T>
static void forward_rows(const ForwardOf<T>& of, int64_t row) {
  const int64_t width = of.width, whole = width / lanes * lanes;
  const float per_element = 1.0f / width;
  Several<R, T> rows = {};
  for (int r = 0; r < R; ++r) {
    rows.x[r] = of.x + (row + r) * width;
    rows.y[r] = of.y + (row + r) * width;
  }
  if (of.branch) {
    for (int r = 0; r < R; ++r) {
      rows.branch[r] = of.branch + (row + r) * width;
      rows.sum[r] = of.sum + (row + r) * width;
      rows.by[r] = of.branch_scale ? of.branch_scale[(row + r) / of.rows_per_image] : 1.0f;
    }
    for (int64_t i = 0; i < whole; i += lanes) add_step(rows, i, lanes);
    if (whole < width) add_step(rows, whole, width - whole);
    for (int r = 0; r < R; ++r) rows.x[r] = rows.sum[r];
  } else {
    for (int64_t i = 0; i < whole; i += lanes) total_step(rows, i, lanes);
    if (whole < width) total_step(rows, whole, width - whole);
  }
  for (int r = 0; r < R; ++r) {
    rows.mean[r] = sum(rows.total[r]) * per_element;
    rows.total[r] = f32v{};
  }
  for (int64_t i = 0; i < whole; i += lanes) square_step(rows, i, lanes);
  if (whole < width) square_step(rows, whole, width - whole);
  for (int r = 0; r < R; ++r) {
    rows.rstd[r] = 1.0f / __builtin_sqrtf(sum(rows.total[r]) * per_element + of.eps);
    if (of.mean) of.mean[row + r] = rows.mean[r], of.rstd[row + r] = rows.rstd[r];
  }
  for (int64_t i = 0; i < whole; i += lanes) scale_step(rows, of, i, lanes);
  if (whole < width) scale_step(rows, of, whole, width - whole);
}

template <class T>
static void forward(const ForwardOf<T>& of, int64_t begin, int64_t end) {
  for (; begin + rows_at_once <= end; begin += rows_at_once) forward_rows<rows_at_once>(of, begin);
  for (; begin < end; ++begin) forward_rows<1>(of, begin);
}

template <int R, class T>
struct SeveralBack {
  const T *sum[R], *dnormed[R];
  float mean[R], rstd[R], shift[R], slope[R];  // dx = rstd * dnormed * weight - shift - slope * (sum - mean)
  f32v sums[R], products[R];                   // of dnormed * weight, and of that with the normalised sum
};

template <int R, class T>
MISPLACE_INLINE void sums_step(SeveralBack<R, T>& rows, const BackwardOf<T>& of, float* dweight, float* dbias,
                               int64_t i, int64_t count) {
  const f32v weight = load_first(of.weight + i, count);
  f32v of_weight = load_first(dweight + i, count), of_bias = load_first(dbias + i, count);
  for (int r = 0; r < R; ++r) {
    const f32v dnormed = load_first(rows.dnormed[r] + i, count);
    const f32v product = dnormed * ((load_first(rows.sum[r] + i, count) - rows.mean[r]) * rows.rstd[r]);
    of_bias += dnormed;
    of_weight += product;
    rows.sums[r] += dnormed * weight;
    rows.products[r] += product * weight;
  }
  store_first(dweight + i, of_weight, count);
  store_first(dbias + i, of_bias, count);
}

template <int R, class T>
MISPLACE_INLINE void dx_step(const SeveralBack<R, T>& rows, const BackwardOf<T>& of, int64_t row, int64_t i,
                             int64_t count) {
  const f32v weight = load_first(of.weight + i, count);
  for (int r = 0; r < R; ++r) {
    const int64_t at = (row + r) * of.width + i;
    const f32v centred = load_first(rows.sum[r] + i, count) - rows.mean[r];
    f32v dx = load_first(rows.dnormed[r] + i, count) * weight * rows.rstd[r] - rows.shift[r] - rows.slope[r] * centred;
    if (of.dsum) dx += load_first(of.dsum + at, count);
    store_first(of.dx + at, dx, count);
    if (of.dbranch) store_first(of.dbranch + at, dx * of.branch_scale[(row + r) / of.rows_per_image], count);
  }
}

template <int R, class T>
static void backward_rows(const BackwardOf<T>& of, int64_t row, float* dweight, float* dbias) {
  const int64_t width = of.width, whole = width / lanes * lanes;
  const float per_element = 1.0f / width;
  SeveralBack<R, T> rows = {};
  for (int r = 0; r < R; ++r) {
    rows.sum[r] = of.sum + (row + r) * width;
    rows.dnormed[r] = of.dnormed + (row + r) * width;
    rows.mean[r] = of.mean[row + r];
    rows.rstd[r] = of.rstd[row + r];
  }
  for (int64_t i = 0; i < whole; i += lanes) sums_step(rows, of, dweight, dbias, i, lanes);
  if (whole < width) sums_step(rows, of, dweight, dbias, whole, width - whole);
  for (int r = 0; r < R; ++r) {
    rows.shift[r] = sum(rows.sums[r]) * per_element * rows.rstd[r];
    rows.slope[r] = sum(rows.products[r]) * per_element * rows.rstd[r] * rows.rstd[r];
  }
  for (int64_t i = 0; i < whole; i += lanes) dx_step(rows, of, row, i, lanes);
  if (whole < width) dx_step(rows, of, row, whole, width - whole);
}

// dweight and dbias become what these rows give.
template <class T>
static void backward(const BackwardOf<T>& of, int64_t begin, int64_t end, float* dweight, float* dbias) {
  for (int64_t i = 0; i < of.width; ++i) dweight[i] = dbias[i] = 0;
  for (; begin + rows_at_once <= end; begin += rows_at_once) backward_rows<rows_at_once>(of, begin, dweight, dbias);
  for (; begin < end; ++begin) backward_rows<1>(of, begin, dweight, dbias);
}

// to = the sum of `count` vectors of `size` that follow each other.
static void add_parts(const float* parts, int64_t count, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += lanes) {
    f32v total = {};
    for (int64_t part = 0; part < count; ++part) total += load_first(parts + part * size + i, size - i);
    store_first(to + i, total, size - i);
  }
}
