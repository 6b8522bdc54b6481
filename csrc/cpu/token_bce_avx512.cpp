// token_bce's rows for x86 CPUs with AVX-512 and its bf16 conversion.
#include "cpu/token_bce_rows.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what GCC 12 says of its own _mm512_undefined_ps
#include <immintrin.h>

#define VECTOR_BYTES 64
#include "cpu/token_bce_loops.h"

namespace misplace::token_bce {
const Runs avx512_runs{"avx512_bf16", run<float, float>, run<double, double>, run<c10::BFloat16, float>};
}  // namespace misplace::token_bce
#endif
