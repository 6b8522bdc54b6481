// gelu of a stretch of memory. No include guard: included once per instruction set (cpu/each_isa.h).
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
static void forward(const T* x, T* y, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(y + i, gelu_of<T>(load(x + i)));
  if (i < count) store_first(y + i, gelu_of<T>(load_first(x + i, count - i)), count - i);
}

template <class T>
static void backward(const T* dy, const T* x, T* dx, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(dx + i, load(dy + i) * derivative_of<T>(load(x + i)));
  if (i < count) {
    const f32v last = load_first(dy + i, count - i) * derivative_of<T>(load_first(x + i, count - i));
    store_first(dx + i, last, count - i);
  }
}
