// token_bce's rows for any CPU: 16-byte vectors, which x86-64 and AArch64 always have.
#include "cpu/token_bce_rows.h"

#define VECTOR_BYTES 16
#include "cpu/token_bce_loops.h"

namespace misplace::token_bce {
const Runs plain_runs{"plain", run<float, float>, run<double, double>, run<c10::BFloat16, float>};
}  // namespace misplace::token_bce
