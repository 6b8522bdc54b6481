// Views of decoded pictures, with Pillow's pixels to the bit (engine/data/image_ops.py): its resize rounds to levels
// between the passes, in fixed point; its Gaussian blur is three box filters of fractional width each way [Gwosdek et
// al., SSVM 2011]; its colour matrix is fp32, each product rounded. Why own code: Pillow does one value at a time, here
// a vector, and DALI's CPU operators compute in fp32 throughout.
#include "render_views.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace misplace::render {

constexpr int weight_bits = 22, half_weight = 1 << (weight_bits - 1);  // of Pillow's fixed point
constexpr int slack = 64;

// size outputs: the x-th is the sum of count[x] inputs from first[x] on, by their weights.
struct Filter {
  int size, taps;
  std::vector<int> first, count;
  std::vector<int32_t> weights;

  const int32_t* weights_of(int x) const { return weights.data() + static_cast<int64_t>(x) * taps; }
};

// A box filter: 2 radius + 1 values by `inner`, the two beside them by `outer`, all of 2^24.
struct Box {
  int radius;
  uint32_t inner, outer;
};

}  // namespace misplace::render

#define MISPLACE_OP render
#define MISPLACE_BODY "cpu/render_views_body.h"
#include "cpu/each_isa.h"

namespace misplace::render {
namespace {

struct Kernels {
  decltype(&plain::resize_rows) resize_rows = plain::resize_rows;
  decltype(&plain::resize_columns) resize_columns = plain::resize_columns;
  decltype(&plain::recolour) recolour = plain::recolour;
  decltype(&plain::add_up) add_up = plain::add_up;
  decltype(&plain::blur_rows) blur_rows = plain::blur_rows;
  decltype(&plain::blur_columns) blur_columns = plain::blur_columns;
  decltype(&plain::solarize) solarize = plain::solarize;

  explicit Kernels(Isa isa) {
#ifdef MISPLACE_X86
    if (isa >= Isa::avx2) {
      resize_rows = avx2::resize_rows, resize_columns = avx2::resize_columns, recolour = avx2::recolour;
      add_up = avx2::add_up, blur_rows = avx2::blur_rows, blur_columns = avx2::blur_columns;
      solarize = avx2::solarize;
    }
    if (isa >= Isa::avx512) {
      resize_rows = avx512::resize_rows, resize_columns = avx512::resize_columns, recolour = avx512::recolour;
      add_up = avx512::add_up, blur_rows = avx512::blur_rows, blur_columns = avx512::blur_columns;
      solarize = avx512::solarize;
    }
    if (isa >= Isa::avx512_bf16) {
      resize_rows = avx512_bf16::resize_rows, resize_columns = avx512_bf16::resize_columns;
      recolour = avx512_bf16::recolour, add_up = avx512_bf16::add_up, blur_rows = avx512_bf16::blur_rows;
      blur_columns = avx512_bf16::blur_columns, solarize = avx512_bf16::solarize;
    }
#endif
  }
};

// Catmull-Rom (a = -1/2) [Keys 1981].
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// Antialiased: stretched by as much as the picture shrinks. mirrored: the outputs in the other order.
void make_filter(int in_size, float begin, float end, int size, bool mirrored, Filter& filter) {
  const double scale = static_cast<double>(end - begin) / size, stretch = std::max(scale, 1.0);
  const double support = 2 * stretch, per_input = 1 / stretch;
  filter.size = size;
  filter.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  filter.first.resize(size), filter.count.resize(size);
  filter.weights.assign(static_cast<size_t>(size) * filter.taps, 0);
  std::vector<double> exact(filter.taps);
  for (int x = 0; x < size; ++x) {
    const int at = mirrored ? size - 1 - x : x;
    const double centre = begin + (x + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int count = std::min(static_cast<int>(centre + support + 0.5), in_size) - first;
    double sum = 0;
    for (int tap = 0; tap < count; ++tap) sum += exact[tap] = bicubic((tap + first - centre + 0.5) * per_input);
    for (int tap = 0; tap < count; ++tap) {
      const double weight = (sum != 0 ? exact[tap] / sum : exact[tap]) * (1 << weight_bits);
      filter.weights[static_cast<size_t>(at) * filter.taps + tap] = static_cast<int32_t>(weight + (weight < 0 ? -0.5 : 0.5));
    }
    filter.first[at] = first, filter.count[at] = count;
  }
}

// The box whose threefold application has the standard deviation `sigma`, in Pillow's precision.
Box make_box(float sigma) {
  const float variance = sigma * sigma / 3;
  const float length = static_cast<float>(std::sqrt(12.0 * variance + 1.0));
  const float whole = static_cast<float>(std::floor((length - 1.0) / 2.0));
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
  part /= 6 * (variance - (whole + 1) * (whole + 1));
  const float radius = whole + part;
  Box box{static_cast<int>(radius), 0, 0};
  box.inner = static_cast<uint32_t>(static_cast<float>(1 << 24) / (radius * 2 + 1));
  box.outer = ((1u << 24) - (2 * box.radius + 1) * box.inner) / 2;
  return box;
}

// Memory for one view after another.
struct Scratch {
  Filter across, down;
  std::vector<uint8_t> rows, padded, view, other, line, other_line;
};

uint8_t* room(std::vector<uint8_t>& buffer, size_t bytes) {
  if (buffer.size() < bytes + slack) buffer.resize(bytes + slack);
  return buffer.data();
}

// Pillow 13 takes the height first where that leaves much less for the width.
bool is_tall(int height, int width, int size) { return height - size > 2 * std::max(width - size, 0); }

// The part of a picture that a view is made of, as rows of their own with slack behind them.
struct Region {
  int x, y, width, height;
};

Region region_of(const Filter& across, const Filter& down) {
  const auto begin = [](const Filter& f) { return std::min(f.first.front(), f.first.back()); };
  const auto end = [](const Filter& f) {
    return std::max(f.first.front() + f.count.front(), f.first.back() + f.count.back());
  };
  return {begin(across), begin(down), end(across) - begin(across), end(down) - begin(down)};
}

void crop_resize(const Kernels& kernels, const uint8_t* picture, int height, int width, int channels,
                 const double* with, int size, Scratch& scratch, uint8_t* view) {
  float box[4];
  std::transform(with + left, with + left + 4, box, [](double x) { return static_cast<float>(x); });
  TORCH_CHECK_VALUE(0 <= box[0] && box[0] < box[2] && box[2] <= width && 0 <= box[1] && box[1] < box[3] &&
                        box[3] <= height,
                    "the box ", box[0], " ", box[1], " ", box[2], " ", box[3], " is not inside a picture of ", width,
                    " x ", height);
  Filter &across = scratch.across, &down = scratch.down;
  make_filter(width, box[0], box[2], size, with[flip] != 0, across);
  make_filter(height, box[1], box[3], size, false, down);
  const Region region = region_of(across, down);
  const int64_t stride = static_cast<int64_t>(width) * channels, row = static_cast<int64_t>(region.width) * channels;
  const uint8_t* const corner = picture + region.y * stride + region.x * channels;
  for (int& first : across.first) first -= region.x;
  if (is_tall(height, width, size)) {
    uint8_t* const copy = room(scratch.padded, region.height * row);
    for (int y = 0; y < region.height; ++y) std::memcpy(copy + y * row, corner + y * stride, row);
    uint8_t* const lowered = room(scratch.rows, size * row);
    kernels.resize_columns(copy, row, down, lowered);
    return kernels.resize_rows(lowered, row, size, channels, across, view);
  }
  const int64_t narrow = static_cast<int64_t>(size) * channels;
  uint8_t* const narrowed = room(scratch.rows, region.height * narrow);
  const bool to_the_end = region.y + region.height == height;  // behind the last pixel nothing may be read
  kernels.resize_rows(corner, stride, region.height - to_the_end, channels, across, narrowed);
  if (to_the_end) {
    uint8_t* const last = room(scratch.padded, row);
    std::memcpy(last, corner + (region.height - 1) * stride, row);
    kernels.resize_rows(last, row, 1, channels, across, narrowed + (region.height - 1) * narrow);
  }
  kernels.resize_columns(narrowed, narrow, down, view);
}

// The mean luma, or the mean level where there is one channel.
double mean_luma(const Kernels& kernels, const uint8_t* view, int size, int channels) {
  int64_t sums[3] = {};
  for (int y = 0; y < size; ++y) kernels.add_up(view + static_cast<int64_t>(y) * size * channels, size, channels, sums);
  const double sum = channels == 1 ? sums[0] : sums[0] * 0.299 + sums[1] * 0.587 + sums[2] * 0.114;
  return sum / (static_cast<double>(size) * size);
}

void jitter(const Kernels& kernels, uint8_t* view, int size, int channels, const double* with) {
  const int kind = static_cast<int>(with[kind_of_colour]);
  if (kind == 0) return;
  const double offset = with[shade] == 0 ? 0 : with[shade] * mean_luma(kernels, view, size, channels);
  if (kind == 2) {
    float m[12];
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) m[4 * row + column] = static_cast<float>(with[matrix + 3 * row + column]);
      m[4 * row + 3] = static_cast<float>(offset);
    }
    return kernels.recolour(view, size * size, m);
  }
  uint8_t levels[256];
  for (int level = 0; level < 256; ++level) {
    levels[level] = static_cast<uint8_t>(std::clamp(std::floor(with[matrix] * level + (offset + 0.5)), 0.0, 255.0));
  }
  std::transform(view, view + static_cast<int64_t>(size) * size * channels, view, [&](uint8_t x) { return levels[x]; });
}

void blur(const Kernels& kernels, uint8_t*& view, int size, int channels, double sigma_of_view, Scratch& scratch) {
  const Box by = make_box(static_cast<float>(sigma_of_view));
  const int width = size * channels, border = (by.radius + 1) * channels;
  uint8_t* const line = room(scratch.line, width + 2 * border) + border;
  kernels.blur_rows(view, size, width, channels, by, line, room(scratch.other_line, width + 2 * border) + border);
  // down the columns between two buffers that have room above and below
  const int64_t above = static_cast<int64_t>(by.radius + 1) * width, bytes = static_cast<int64_t>(size) * width;
  uint8_t* from = room(scratch.padded, bytes + 2 * above) + above;
  uint8_t* to = room(scratch.other, bytes + 2 * above) + above;
  std::memcpy(from, view, bytes);
  for (int pass = 0; pass < 3; ++pass) {
    kernels.blur_columns(from, to, size, width, by);
    std::swap(from, to);
  }
  view = from;
}

void render(const Kernels& kernels, const at::Tensor& picture, const double* with, int size, Scratch& scratch,
            uint8_t* to) {
  const int height = picture.size(0), width = picture.size(1), channels = picture.size(2);
  const int64_t bytes = static_cast<int64_t>(size) * size * channels;
  uint8_t* view = room(scratch.view, bytes);
  crop_resize(kernels, picture.const_data_ptr<uint8_t>(), height, width, channels, with, size, scratch, view);
  jitter(kernels, view, size, channels, with);
  if (with[sigma] > 0) blur(kernels, view, size, channels, with[sigma], scratch);
  if (with[threshold] < 256) kernels.solarize(view, bytes, static_cast<int>(with[threshold]));
  std::memcpy(to, view, bytes);
}

void check(const at::Tensor& picture, const at::Tensor& view) {
  TORCH_CHECK_VALUE(picture.dim() == 3 && picture.scalar_type() == at::kByte && picture.is_contiguous() &&
                        picture.numel() > 0 && (picture.size(2) == 1 || picture.size(2) == 3),
                    "a picture is contiguous uint8 [H, W, 1 or 3], not ", picture.sizes());
  TORCH_CHECK_VALUE(view.dim() == 4 && view.scalar_type() == at::kByte && view.is_contiguous() &&
                        view.size(1) == view.size(2) && view.size(3) == picture.size(2),
                    "views are contiguous uint8 [B, S, S, ", picture.size(2), "], not ", view.sizes());
}

}  // namespace
}  // namespace misplace::render

namespace misplace {

void render_views(const std::vector<at::Tensor>& pictures, const at::Tensor& parameters, int64_t first, int64_t last,
                  const std::vector<at::Tensor>& views, const std::string& isa) {
  const auto rows = static_cast<int64_t>(pictures.size()), num_views = static_cast<int64_t>(views.size());
  TORCH_CHECK_VALUE(parameters.scalar_type() == at::kDouble && parameters.is_contiguous() &&
                        parameters.sizes() == at::IntArrayRef({num_views, rows, num_parameters}),
                    "parameters are contiguous float64 [", num_views, ", ", rows, ", ", int64_t{num_parameters}, "], not ",
                    parameters.sizes());
  TORCH_CHECK_VALUE(0 <= first && first <= last && last <= rows, "rows ", first, " to ", last, " of ", rows);
  const render::Kernels kernels(isa_named(isa));
  render::Scratch scratch;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t view = 0; view < num_views; ++view) {
      const at::Tensor& to = views[view];
      render::check(pictures[row], to);
      TORCH_CHECK_VALUE(to.size(0) == rows, "a view of ", to.size(0), " rows for ", rows, " pictures");
      const double* const with = parameters.const_data_ptr<double>() + (view * rows + row) * num_parameters;
      render::render(kernels, pictures[row], with, to.size(1), scratch, to.data_ptr<uint8_t>() + row * to.stride(0));
    }
  }
}

}  // namespace misplace
