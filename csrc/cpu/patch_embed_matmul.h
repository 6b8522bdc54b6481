// Products of tiles in a core's cache: bf16 through oneDNN's brgemm (AMX or AVX-512 BF16), fp32 through the same or
// the BLAS that PyTorch was built with, fp64 as a plain loop.
#pragma once

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace misplace::patch_embed {

// How many rows of the right matrix lie as one: brgemm takes bf16 in pairs.
template <class Factor>
constexpr int64_t pairing = std::is_same_v<Factor, c10::BFloat16> ? 2 : 1;

template <class Factor>
using Sum = std::conditional_t<std::is_same_v<Factor, double>, double, float>;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// c[m, n] (+)= a[m, k] . b[k, n]; bf16 b is [k / 2, n, 2].
inline void multiply(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b,
                     int64_t ldb, float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
}

inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

inline void multiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                     double* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; ++i) {
    if (!add) std::fill(c + i * ldc, c + i * ldc + n, 0.0);
    for (int64_t l = 0; l < k; ++l) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += a[i * lda + l] * b[l * ldb + j];
    }
  }
}

// A core's tile registers are its own to give back.
template <class Factor>
void done_multiplying() {
  if constexpr (std::is_same_v<Factor, c10::BFloat16>) at::native::cpublas::brgemm_release(true);
}

// bf16 products only where the CPU has them in hardware and brgemm, asked once, gets 1 * 3 + 2 * 4 right.
inline bool multiplies_bf16() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool works = [] {
    if (!__builtin_cpu_supports("avx512bf16") || !at::globalContext().userEnabledMkldnn()) return false;
    std::array<c10::BFloat16, 32> a{}, b{};
    std::array<float, 16> c{};
    a[0] = 1, a[1] = 2, b[0] = 3, b[1] = 4;
    try {
      multiply(1, 16, 2, a.data(), 2, b.data(), 16, c.data(), 16, false);
    } catch (const c10::Error&) {
      return false;
    }
    done_multiplying<c10::BFloat16>();
    return c[0] == 11 && c[1] == 0;
  }();
  return works;
#else
  return false;
#endif
}

}  // namespace misplace::patch_embed
