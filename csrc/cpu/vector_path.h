// Which vectors this CPU has, or one of them by name.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

namespace misplace {

enum class VectorPath { plain, avx2, avx512 };

inline bool has_path(VectorPath path) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (path == VectorPath::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (path == VectorPath::avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return path == VectorPath::plain;
}

inline const char* name_of(VectorPath path) {
  return path == VectorPath::avx512 ? "avx512" : path == VectorPath::avx2 ? "avx2" : "plain";
}

// "best" is the widest that there is; a named one that is missing is an error.
inline VectorPath vector_path(std::string_view name) {
  for (const VectorPath path : {VectorPath::avx512, VectorPath::avx2, VectorPath::plain}) {
    if ((name == "best" || name == name_of(path)) && has_path(path)) return path;
  }
  TORCH_CHECK_VALUE(false, "this CPU has no vector path '", name, "'");
}

}  // namespace misplace
