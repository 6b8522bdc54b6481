// Kept patches to tokens on the CPU, in one pass: a tile of patches is read, normalised into a core's cache, multiplied
// with one panel of the weight after another, and each product leaves as finished tokens: bias and position added.
#include "patch_embed.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <string>

#include "cpu/patch_embed_matmul.h"
#include "cpu/patch_embed_pixels.h"
#include "cpu/patch_embed_tokens.h"

namespace misplace::patch_embed {
namespace {

constexpr int64_t panel = 64;               // columns of the weight multiplied at once
constexpr int64_t tile_bytes = 128 * 1024;  // of patches, beside a panel in the second-level cache

int64_t tile_rows(int64_t depth, int64_t element_size) {
  return std::clamp<int64_t>(tile_bytes / (depth * element_size) / 16 * 16, 16, 64);
}

// The weight as panels [D / panel][P / pairing][panel][pairing], pixels in walking order, zeros where padded.
template <class Scalar, class Factor>
Tensor pack_weight(const Tensor& weight, const Pixels& pixels, int64_t depth) {
  const int64_t dim = weight.size(0), num_pixels = weight.numel() / dim, num_panels = (dim + panel - 1) / panel;
  Tensor packed = at::empty({num_panels, depth, panel}, weight.options().dtype(c10::CppTypeToScalarType<Factor>()));
  std::vector<int32_t> index(num_pixels);
  for (int32_t walked = 0; walked < num_pixels; ++walked) index[walked] = weight_index(pixels, walked);
  const Scalar* from = weight.const_data_ptr<Scalar>();
  Factor* to = packed.mutable_data_ptr<Factor>();
  constexpr int64_t pair = pairing<Factor>;
  at::parallel_for(0, num_panels * depth / pair, 64, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t first = line / (depth / pair) * panel, walked = line % (depth / pair) * pair;
      Factor* out = to + line * panel * pair;
      std::fill(out, out + panel * pair, Factor(0));
      for (int64_t half = 0; half < std::min(pair, num_pixels - walked); ++half) {
        const Scalar* column = from + first * num_pixels + index[walked + half];
        for (int64_t i = 0; i < std::min(panel, dim - first); ++i) {
          out[i * pair + half] = rounded<Factor>(column[i * num_pixels]);
        }
      }
    }
  });
  return packed;
}

template <class Scalar, class Factor, class Pixel>
void project(const Tensor& images, const Pixels& pixels, const Tensor& weight, const Tables& tables, const Tensor& src,
             const Tensor& pos, at::ArrayRef<double> scale, at::ArrayRef<double> shift, Tensor& out) {
  const int64_t kept = src.size(1), tokens = src.numel(), dim = weight.size(0);
  const int64_t num_pixels = weight.numel() / dim, depth = round_up(num_pixels, pairing<Factor>);
  const int64_t rows = tile_rows(depth, sizeof(Factor));
  const Tensor packed = pack_weight<Scalar, Factor>(weight, pixels, depth);
  const Runs runs(pixels);
  const Normalisation<Sum<Factor>> by(pixels, scale, shift);
  const Rows<Sum<Factor>> row_of(tables);
  const Pixel* image = images.const_data_ptr<Pixel>();
  const Factor* right = packed.const_data_ptr<Factor>();
  const int32_t *sources = src.const_data_ptr<int32_t>(), *positions = pos.const_data_ptr<int32_t>();
  Scalar* sequence = out.mutable_data_ptr<Scalar>();
  at::parallel_for(0, (tokens + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    const Tensor tile = at::zeros({rows, depth}, packed.options());
    const Tensor product = at::empty({rows, panel}, tables.bias.options());
    Factor* left = tile.mutable_data_ptr<Factor>();
    Sum<Factor>* sums = product.mutable_data_ptr<Sum<Factor>>();
    for (int64_t first = begin * rows; first < std::min(end * rows, tokens); first += rows) {
      const int64_t count = std::min(rows, tokens - first);
      for (int64_t i = 0; i < count; ++i) {
        const Pixel* patch = image + (first + i) / kept * pixels.image_stride + patch_start(pixels, sources[first + i]);
        write_row(patch, runs, 0, runs.count, by, left + i * depth);
      }
      for (int64_t column = 0; column < dim; column += panel) {
        multiply(rows, panel, depth, left, depth, right + column * depth, panel, sums, panel, false);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t token = first + i, place = token + token / kept + 1;
          write_token(sums + i * panel, row_of.bias + column, row_of(positions[token]) + column,
                      std::min(panel, dim - column), sequence + place * dim + column);
        }
      }
    }
    done_multiplying<Factor>();
  });
}

template <class Scalar>
void write_class_tokens(const Tables& tables, Tensor& out) {
  using Wide = Sum<Scalar>;
  const int64_t dim = out.size(2), stride = out.size(1) * dim;
  const Wide *token = tables.class_token.const_data_ptr<Wide>(), *row = tables.positions.const_data_ptr<Wide>();
  Scalar* sequence = out.mutable_data_ptr<Scalar>();
  for (int64_t image = 0; image < out.size(0); ++image) {
    for (int64_t i = 0; i < dim; ++i) sequence[image * stride + i] = rounded<Scalar>(token[i] + row[i]);
  }
}

Tensor patch_embed_cpu(const Tensor& images_, const Tensor& weight_, const Tensor& bias, const Tensor& pos_table,
                       const Tensor& class_token, const OptionalTensor& no_position, const Tensor& src_,
                       const Tensor& pos_, at::ArrayRef<double> scale, at::ArrayRef<double> shift,
                       bool channels_last) {
  Tensor images = images_, weight = weight_.contiguous();
  const int64_t patch_size = weight.size(-1);
  const Pixels pixels = pixels_of(images, patch_size, channels_last);
  check_plan(src_, pos_, images.size(0));
  const Tensor src = src_.to(at::kInt).contiguous(), pos = pos_.to(at::kInt).contiguous();
  const int64_t num_patches = pixels.columns * (images.size(channels_last ? 1 : 2) / patch_size);
  const Tables tables(bias, pos_table, class_token, no_position, weight, num_patches);
  check_range(src, pos, num_patches, no_position.has_value());
  Tensor out = at::empty({src.size(0), 1 + src.size(1), weight.size(0)}, weight.options());
  if (out.numel() == 0) return out;
  MISPLACE_DISPATCH_PIXELS(images.scalar_type(), [&] {
    using Pixel = scalar_t;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, weight.scalar_type(), "patch_embed", [&] {
      with_factor<scalar_t>([&](auto factor) {
        project<scalar_t, decltype(factor), Pixel>(images, pixels, weight, tables, src, pos, scale, shift, out);
      });
      write_class_tokens<scalar_t>(tables, out);
    });
  });
  return out;
}

std::string patch_embed_path() { return multiplies_bf16() ? "brgemm bf16" : "fp32"; }

}  // namespace
}  // namespace misplace::patch_embed

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("patch_embed", &misplace::patch_embed::patch_embed_cpu); }
TORCH_LIBRARY_IMPL(misplace, CompositeExplicitAutograd, m) {
  m.impl("patch_embed_path", &misplace::patch_embed::patch_embed_path);
}
