// layer_norm of some rows. No include guard: included once per instruction set (cpu/each_isa.h).
//
// A row is read three times, from memory once: mean, variance of what is centred, result. `ragged` is the number of
// elements in a last vector that is not whole; scratch rows and weights are padded with 0 to whole vectors.

// x - mean, 0 beyond the end of the row.
template <class T>
MISPLACE_INLINE f32v centred_end(const T* x, int64_t ragged, f32v mean) {
  float padded[lanes] = {};
  store_first(padded, load_first(x, ragged) - mean, ragged);
  return load(padded);
}

template <class T>
static void forward(const Rows<const T>& x, const Affine& affine, float eps, T* y, float* means, float* scales) {
  const int64_t whole = x.width / lanes * lanes, ragged = x.width - whole;
  const float per_element = 1.0f / x.width;
  for (int64_t row = 0; row < x.count; ++row) {
    const T* from = x.data + row * x.width;
    T* to = y + row * x.width;
    f32v sums = {}, squares = {};
    for (int64_t i = 0; i < whole; i += lanes) sums += load(from + i);
    if (ragged) sums += load_first(from + whole, ragged);
    const float mean = sum(sums) * per_element;
    for (int64_t i = 0; i < whole; i += lanes) {
      const f32v centred = load(from + i) - mean;
      squares += centred * centred;
    }
    if (ragged) {
      const f32v centred = centred_end(from + whole, ragged, splat(mean));
      squares += centred * centred;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) * per_element + eps);
    for (int64_t i = 0; i < whole; i += lanes) {
      store(to + i, (load(from + i) - mean) * scale * load(affine.weight + i) + load(affine.bias + i));
    }
    if (ragged) {
      const f32v centred = centred_end(from + whole, ragged, splat(mean));
      store_first(to + whole, centred * scale * load(affine.weight + whole) + load(affine.bias + whole), ragged);
    }
    means[row] = mean;
    scales[row] = scale;
  }
}

// dx, and dweight and dbias (padded) increased by what these rows give.
template <class T>
static void backward(const Rows<const T>& x, const T* dy, const float* weight, const float* means,
                     const float* scales, T* dx, float* dweight, float* dbias) {
  const int64_t whole = x.width / lanes * lanes, ragged = x.width - whole;
  const float per_element = 1.0f / x.width;
  for (int64_t row = 0; row < x.count; ++row) {
    const T *from = x.data + row * x.width, *dy_row = dy + row * x.width;
    T* to = dx + row * x.width;
    const float mean = means[row], scale = scales[row];
    f32v sums = {}, products = {};  // of dy * weight, and of that with the normalised x
    for (int64_t i = 0; i < x.width; i += lanes) {
      const bool end = i == whole;
      const f32v normalised = (end ? centred_end(from + i, ragged, splat(mean)) : load(from + i) - mean) * scale;
      const f32v dy_here = end ? load_first(dy_row + i, ragged) : load(dy_row + i);
      const f32v weighted = dy_here * load(weight + i);
      sums += weighted;
      products += weighted * normalised;
      store(dweight + i, load(dweight + i) + dy_here * normalised);
      store(dbias + i, load(dbias + i) + dy_here);
    }
    const float mean_sum = sum(sums) * per_element, mean_product = sum(products) * per_element;
    for (int64_t i = 0; i < whole; i += lanes) {
      const f32v normalised = (load(from + i) - mean) * scale;
      const f32v weighted = load(dy_row + i) * load(weight + i);
      store(to + i, (weighted - mean_sum - normalised * mean_product) * scale);
    }
    if (ragged) {
      const f32v normalised = centred_end(from + whole, ragged, splat(mean)) * scale;
      const f32v weighted = load_first(dy_row + whole, ragged) * load(weight + whole);
      store_first(to + whole, (weighted - mean_sum - normalised * mean_product) * scale, ragged);
    }
  }
}
