// Where the pixels of a patch lie, and in which order the matrix product walks them; one text for CPU and GPU.
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace misplace::patch_embed {

constexpr int max_channels = 4;

// Strides count elements. Pixels are walked as they lie in memory: (row, column, channel) where the channels of a
// pixel are neighbours, else (channel, row, column), the order of the weight.
struct Pixels {
  int64_t image_stride, row_stride, column_stride, channel_stride;
  int32_t patch_size, channels, columns;  // columns: patches in a row of the grid
  bool interleaved;
};

MISPLACE_HOST_DEVICE int64_t patch_start(const Pixels& p, int32_t patch) {
  return static_cast<int64_t>(patch / p.columns) * p.patch_size * p.row_stride +
         static_cast<int64_t>(patch % p.columns) * p.patch_size * p.column_stride;
}

struct Place {
  int32_t channel, row, column;
};

MISPLACE_HOST_DEVICE Place place_of(const Pixels& p, int32_t walked) {
  if (p.interleaved) {
    const int32_t pixel = walked / p.channels;
    return {walked % p.channels, pixel / p.patch_size, pixel % p.patch_size};
  }
  const int32_t row = walked / p.patch_size;
  return {row / p.patch_size, row % p.patch_size, walked % p.patch_size};
}

MISPLACE_HOST_DEVICE int64_t pixel_offset(const Pixels& p, Place at) {
  return at.row * p.row_stride + at.column * p.column_stride + at.channel * p.channel_stride;
}

// Where the weight [C, p, p] has the pixel that is walked as number `walked`.
MISPLACE_HOST_DEVICE int32_t weight_index(const Pixels& p, int32_t walked) {
  if (!p.interleaved) return walked;
  const Place at = place_of(p, walked);
  return (at.channel * p.patch_size + at.row) * p.patch_size + at.column;
}

// The row of [table | no_position] that a token adds: 1 + pos, or the one past the table.
MISPLACE_HOST_DEVICE int32_t table_row(int32_t pos, int32_t num_patches) {
  return pos < 0 ? 1 + num_patches : 1 + pos;
}

}  // namespace misplace::patch_embed
