// What lets one text be the CPU's and the GPU's: include this, mark functions MISPLACE_HOST_DEVICE.
#pragma once

#if defined(__CUDACC__)
#define MISPLACE_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MISPLACE_HOST_DEVICE inline __attribute__((always_inline))
#else
#define MISPLACE_HOST_DEVICE inline
#endif
