// Which vector instructions this CPU has; cpu/each_isa.h compiles a kernel for each of them.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__)
#define MISPLACE_X86
#include <immintrin.h>
#define MISPLACE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define MISPLACE_BEGIN(features) \
  MISPLACE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MISPLACE_END MISPLACE_PRAGMA(clang attribute pop)
#else
#define MISPLACE_BEGIN(features) MISPLACE_PRAGMA(GCC push_options) MISPLACE_PRAGMA(GCC target(features))
#define MISPLACE_END MISPLACE_PRAGMA(GCC pop_options)
#endif
#endif

#if defined(__GNUC__)
// vectors wider than the target's are passed only between functions that are inlined
#pragma GCC diagnostic ignored "-Wpsabi"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own intrinsics, whose "undefined" is meant
#endif
#endif

namespace misplace {

enum class Isa { plain, avx2, avx512, avx512_bf16, amx };

constexpr std::string_view isa_names[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};

inline Isa best_isa() {
#ifdef MISPLACE_X86
  static const Isa best = [] {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::plain;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
      return Isa::avx2;
    }
    if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
    // the bit of CPUID that __builtin_cpu_supports("amx-bf16") reads is not known to every compiler
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return edx >> 22 & 1 ? Isa::amx : Isa::avx512_bf16;
  }();
  return best;
#else
  return Isa::plain;
#endif
}

// "" is the best one; a name asks for it and must not ask for more than the CPU has.
inline Isa isa_named(std::string_view name) {
  if (name.empty()) return best_isa();
  for (int i = 0; i < 5; ++i) {
    if (isa_names[i] != name) continue;
    const Isa isa = static_cast<Isa>(i);
    TORCH_CHECK_VALUE(isa <= best_isa(), "this CPU has no ", name);
    return isa;
  }
  TORCH_CHECK_VALUE(false, "unknown instruction set ", name);
}

}  // namespace misplace
