// The products of bf16 of info_nce: oneDNN's brgemm as PyTorch has it.
#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

#include <array>

#include "cpu/info_nce_problem.h"
#include "cpu/isa.h"

namespace misplace::info_nce {

void multiply_pairs(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                    float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, reinterpret_cast<const c10::BFloat16*>(a),
                              reinterpret_cast<const c10::BFloat16*>(b), c, /*is_vnni=*/true);
}

void done_multiplying_pairs() { at::native::cpublas::brgemm_release(true); }

bool multiplies_pairs() {
  static const bool works = [] {
    if (best_isa() < Isa::avx512_bf16 || !at::globalContext().userEnabledMkldnn()) return false;
    constexpr uint16_t one = 0x3f80, two = 0x4000, three = 0x4040, four = 0x4080;
    std::array<uint16_t, 32> a{one, two}, b{three, four};
    std::array<float, 16> c{};
    try {
      multiply_pairs(1, 16, 2, a.data(), 2, b.data(), 16, c.data(), 16, false);
    } catch (const c10::Error&) {
      return false;
    }
    done_multiplying_pairs();
    return c[0] == 11 && c[1] == 0;
  }();
  return works;
}

}  // namespace misplace::info_nce
