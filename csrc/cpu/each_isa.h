// Compiles the header MISPLACE_BODY for every instruction set of cpu/isa.h, in namespaces misplace::MISPLACE_OP::plain,
// ::avx2, ::avx512 and ::avx512_bf16. The body has no include guard and sees raw pointers and cpu/vec.h only:
// standard and ATen headers come before, because what they define inline must run on every CPU.
#include "cpu/isa.h"

#define MISPLACE_LEVEL 0
namespace misplace::MISPLACE_OP::plain {
#include "cpu/vec.h"
#include MISPLACE_BODY
}  // namespace misplace::MISPLACE_OP::plain
#undef MISPLACE_LEVEL

#ifdef MISPLACE_X86
#define MISPLACE_LEVEL 256
MISPLACE_BEGIN("avx2,fma")
namespace misplace::MISPLACE_OP::avx2 {
#include "cpu/vec.h"
#include MISPLACE_BODY
}  // namespace misplace::MISPLACE_OP::avx2
MISPLACE_END
#undef MISPLACE_LEVEL

#define MISPLACE_LEVEL 512
MISPLACE_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
namespace misplace::MISPLACE_OP::avx512 {
#include "cpu/vec.h"
#include MISPLACE_BODY
}  // namespace misplace::MISPLACE_OP::avx512
MISPLACE_END
#undef MISPLACE_LEVEL

#define MISPLACE_LEVEL 513  // 512 bits, and bf16
MISPLACE_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace misplace::MISPLACE_OP::avx512_bf16 {
#include "cpu/vec.h"
#include MISPLACE_BODY
}  // namespace misplace::MISPLACE_OP::avx512_bf16
MISPLACE_END
#undef MISPLACE_LEVEL
#endif
