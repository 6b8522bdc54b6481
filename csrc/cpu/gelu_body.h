// gelu of some rows, perhaps with a bias added first. No include guard: included once per instruction set (cpu/each_isa.h).
//
// With t = |x| and q = Phi(-t) = e^(-t^2 / 2) R(t):  y = max(x, 0) - t q,  y' = Phi(x) + x e^(-t^2 / 2) / sqrt(2 pi).
// R is a polynomial: no division, and one exponential for value and derivative. In fp32 q is within 4e-8 of the truth
// and, up to t = 5.5, within 0.4 % of itself, where (1 + erf) / 2 has lost every digit; in bf16 within 3e-4 of itself,
// a sixth of what rounding y costs.

template <class T>
struct Precision;

template <>
struct Precision<float> {
  static constexpr float ratio[] = {
      0.5f,           -0.398941487f,    0.249986261f,   -0.132887244f,    0.0621703193f,
      -0.0259038899f, 0.00947554689f,   -0.00292294193f, 0.000717515068f, -0.000130915563f,
      1.6332815e-05f, -1.2257982e-06f,  4.13448156e-08f,
  };
  MISPLACE_INLINE f32v power(f32v x) { return exp2(x, power_of_2); }
};

template <>
struct Precision<bf16> {
  static constexpr float ratio[] = {
      0.499904364f,   -0.396455437f, 0.238218337f,     -0.109576933f, 0.0368283056f,
      -0.00851357915f, 0.00126054487f, -0.000106636835f, 3.89937986e-06f,
  };
  MISPLACE_INLINE f32v power(f32v x) { return exp2(x, rough_power_of_2); }
};

struct Normal {
  f32v t, density, tail;  // |x|, e^(-t^2 / 2), Phi(-t)
};

template <class T>
MISPLACE_INLINE Normal normal(f32v x) {
  const f32v t = smaller(splat(14.0f), (f32v)((u32v)x & 0x7fffffff));  // the exponential is 0 before 14
  const f32v ratio = polynomial(Precision<T>::ratio, smaller(splat(5.5f), t));
  const f32v density = Precision<T>::power(t * t * -0.72134752f);
  return {t, density, density * ratio};
}

template <class T>
MISPLACE_INLINE f32v gelu_of(f32v x) {
  const Normal at = normal<T>(x);
  return larger(splat(0.0f), x) - at.t * at.tail;
}

template <class T>
MISPLACE_INLINE f32v derivative_of(f32v x) {
  const Normal at = normal<T>(x);
  const u32v sign = (u32v)x & 0x80000000;
  const f32v above_half = (f32v)((u32v)(0.5f - at.tail) | sign);
  const f32v signed_t = (f32v)((u32v)at.t | sign);
  return 0.5f + above_half + signed_t * at.density * 0.39894228f;
}

template <class T>
MISPLACE_INLINE void forward_step(const T* x, const float* bias, T* y, int64_t count) {
  f32v in = load_first(x, count);
  if (bias) in += load_first(bias, count);
  store_first(y, gelu_of<T>(in), count);
}

// bias: [width] or null.
template <class T>
static void forward(const T* x, const float* bias, T* y, int64_t rows, int64_t width) {
  const int64_t whole = width / lanes * lanes;
  for (; rows > 0; --rows, x += width, y += width) {
    for (int64_t i = 0; i < whole; i += lanes) forward_step(x + i, bias ? bias + i : nullptr, y + i, lanes);
    if (whole < width) forward_step(x + whole, bias ? bias + whole : nullptr, y + whole, width - whole);
  }
}

template <class T>
MISPLACE_INLINE void backward_step(const T* dy, const T* x, const float* bias, T* dx, float* dbias, int64_t count) {
  f32v in = load_first(x, count);
  if (bias) in += load_first(bias, count);
  const f32v d = load_first(dy, count) * derivative_of<T>(in);
  store_first(dx, d, count);
  if (bias) store_first(dbias, load_first(dbias, count) + d, count);
}

// dbias [width] becomes the sums of dx, where there is a bias.
template <class T>
static void backward(const T* dy, const T* x, const float* bias, T* dx, float* dbias, int64_t rows, int64_t width) {
  const int64_t whole = width / lanes * lanes;
  for (int64_t i = 0; bias && i < width; ++i) dbias[i] = 0;
  for (; rows > 0; --rows, dy += width, x += width, dx += width) {
    for (int64_t i = 0; i < whole; i += lanes) {
      backward_step(dy + i, x + i, bias ? bias + i : nullptr, dx + i, dbias + (bias ? i : 0), lanes);
    }
    if (whole < width) {
      const int64_t i = whole;
      backward_step(dy + i, x + i, bias ? bias + i : nullptr, dx + i, dbias + (bias ? i : 0), width - i);
    }
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
