// Views of decoded pictures: crop and resize, colour, blur, solarisation, flip, with Pillow's pixels to the bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace misplace {

// What parameters[view][row] holds, fp64. kind_of_colour: 0 none, 1 levels (the gain is the matrix's first), 2 affine.
enum Parameter {
  left, top, right, bottom, matrix, shade = matrix + 9, kind_of_colour, sigma, threshold, flip, num_parameters
};

// Rows first..last-1 of every view. pictures: uint8 [H, W, C] each, by row; views: uint8 [B, S, S, C] each, written.
// parameters: fp64 [V, B, num_parameters]. isa: the instruction set, "" for the best. Needs no GIL; calls for different
// rows may run at once.
void render_views(const std::vector<at::Tensor>& pictures, const at::Tensor& parameters, int64_t first, int64_t last,
                  const std::vector<at::Tensor>& views, const std::string& isa);

}  // namespace misplace
