// token_bce's rows for x86 CPUs with AVX-512.
#include "cpu/token_bce_rows.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

#define VECTOR_BYTES 64
#include "cpu/token_bce_rows.inc"

namespace misplace::token_bce {
const Runs avx512_runs{"avx512", run<float, float>, run<double, double>, run<c10::BFloat16, float>};
}  // namespace misplace::token_bce
#endif
