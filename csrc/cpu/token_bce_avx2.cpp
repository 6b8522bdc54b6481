// token_bce's rows for x86 CPUs with AVX2 and FMA.
#include "cpu/token_bce_rows.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma")
#include <immintrin.h>

#define VECTOR_BYTES 32
#include "cpu/token_bce_loops.h"

namespace misplace::token_bce {
const Runs avx2_runs{"avx2", run<float, float>, run<double, double>, run<c10::BFloat16, float>};
}  // namespace misplace::token_bce
#endif
