// Gradients of patch_embed on the CPU. Every sum runs in an order that the shapes alone decide: the same bits for any
// number of threads. The patches are read again from the images; nothing of the forward is kept.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/patch_embed_tokens.h"
#include "patch_embed.h"

namespace misplace::patch_embed {
namespace {

constexpr int64_t chunk = 256;        // tokens whose patches and gradients lie in a core's cache at once
constexpr int64_t block_columns = 48;  // pixels of a patch that one task owns, at least
constexpr int64_t tasks = 16;         // fewer column blocks than this: the tokens are split, too
constexpr int64_t slice = 32;         // columns of the tokens that one task sums
constexpr int64_t group = 32;         // images summed before they join the total

struct Batch {
  int64_t images, kept, dim, tokens;
  const int32_t *src, *pos;

  int64_t row(int64_t token) const { return token + token / kept + 1; }  // in [B * (1 + K), D]
};

// The tokens' gradients, chunk by chunk turned around: [chunks][D][chunk], zeros past the last token.
template <class Scalar, class Factor>
Tensor turn_around(const Tensor& gradient, const Batch& batch) {
  const int64_t chunks = (batch.tokens + chunk - 1) / chunk;
  constexpr int64_t strip = 16;
  Tensor turned = at::empty({chunks, batch.dim, chunk}, at::TensorOptions(c10::CppTypeToScalarType<Factor>()));
  const Scalar* from = gradient.const_data_ptr<Scalar>();
  Factor* to = turned.mutable_data_ptr<Factor>();
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      Factor* out = to + c * batch.dim * chunk;
      const int64_t count = std::min(chunk, batch.tokens - c * chunk);
      if (count < chunk) std::fill(out, out + batch.dim * chunk, Factor(0));
      for (int64_t first = 0; first < batch.dim; first += strip) {
        const int64_t last = std::min(first + strip, batch.dim);
        for (int64_t i = 0; i < count; ++i) {
          const Scalar* row = from + batch.row(c * chunk + i) * batch.dim;
          for (int64_t d = first; d < last; ++d) out[d * chunk + i] = rounded<Factor>(row[d]);
        }
      }
    }
  });
  return turned;
}

// The columns of one chunk's patches that the runs [first, last) hold, as the right matrix of a product.
template <class Pixel, class Factor>
void gather_chunk(const Pixel* image, const Pixels& pixels, const Batch& batch, int64_t begin, int64_t end,
                  const Runs& runs, int64_t first, int64_t last, const Normalisation<Sum<Factor>>& by, Factor* out) {
  const auto patch = [&](int64_t token) {
    return image + token / batch.kept * pixels.image_stride + patch_start(pixels, batch.src[token]);
  };
  const int64_t columns = (last - first) * runs.length;
  for (int64_t token = begin; token < end; token += pairing<Factor>, out += columns * pairing<Factor>) {
    if constexpr (pairing<Factor> == 2) {
      // past the last token any patch will do: its gradient is zero
      write_pair(patch(token), patch(std::min(token + 1, end - 1)), runs, first, last, by,
                 reinterpret_cast<uint32_t*>(out));
    } else {
      write_row(patch(token), runs, first, last, by, out);
    }
  }
}

template <class Scalar, class Wide>
void write_weight(const Tensor& partial, const Pixels& pixels, Tensor& result) {
  const int64_t splits = partial.size(0), dim = partial.size(1), num_pixels = partial.size(2);
  std::vector<int32_t> index(num_pixels);
  for (int32_t walked = 0; walked < num_pixels; ++walked) index[walked] = weight_index(pixels, walked);
  const Wide* from = partial.const_data_ptr<Wide>();
  Scalar* to = result.mutable_data_ptr<Scalar>();
  at::parallel_for(0, dim, 16, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      for (int64_t walked = 0; walked < num_pixels; ++walked) {
        Wide sum = 0;
        for (int64_t s = 0; s < splits; ++s) sum += from[(s * dim + d) * num_pixels + walked];
        to[d * num_pixels + index[walked]] = rounded<Scalar>(sum);
      }
    }
  });
}

// d weight[d, pixel] = sum over tokens of gradient[token, d] * patch[token, pixel]
template <class Scalar, class Factor, class Pixel>
void weight_gradient(const Tensor& gradient, const Tensor& images, const Pixels& pixels, const Batch& batch,
                     at::ArrayRef<double> scale, at::ArrayRef<double> shift, Tensor& result) {
  const int64_t num_pixels = result.numel() / batch.dim, chunks = (batch.tokens + chunk - 1) / chunk;
  const Tensor turned = turn_around<Scalar, Factor>(gradient, batch);
  const Runs runs(pixels);
  const Normalisation<Sum<Factor>> by(pixels, scale, shift);
  const int64_t runs_at_once = (block_columns + runs.length - 1) / runs.length;
  const int64_t blocks = (runs.count + runs_at_once - 1) / runs_at_once;
  const int64_t splits = std::clamp<int64_t>(tasks / blocks, 1, chunks);
  const Tensor partial =
      at::empty({splits, batch.dim, num_pixels}, turned.options().dtype(c10::CppTypeToScalarType<Sum<Factor>>()));
  const Pixel* image = images.const_data_ptr<Pixel>();
  const Factor* left = turned.const_data_ptr<Factor>();
  Sum<Factor>* sums = partial.mutable_data_ptr<Sum<Factor>>();
  at::parallel_for(0, splits * blocks, 1, [&](int64_t begin, int64_t end) {
    const Tensor scratch = at::empty({chunk, runs_at_once * runs.length}, turned.options());
    Factor* right = scratch.mutable_data_ptr<Factor>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t split = task / blocks, first = task % blocks * runs_at_once;
      const int64_t last = std::min(first + runs_at_once, runs.count), columns = (last - first) * runs.length;
      Sum<Factor>* out = sums + split * batch.dim * num_pixels + first * runs.length;
      const int64_t start = split * chunks / splits;
      for (int64_t c = start; c < (split + 1) * chunks / splits; ++c) {
        const int64_t past = std::min((c + 1) * chunk, batch.tokens);
        gather_chunk(image, pixels, batch, c * chunk, past, runs, first, last, by, right);
        multiply(batch.dim, columns, round_up(past - c * chunk, pairing<Factor>), left + c * batch.dim * chunk, chunk,
                 right, columns, out, num_pixels, c > start);
      }
    }
    done_multiplying<Factor>();
  });
  write_weight<Scalar, Sum<Factor>>(partial, pixels, result);
}

// The weight as the right matrix [D / pairing][P][pairing], pixels in walking order, a zero row where D is odd.
template <class Scalar, class Factor>
Tensor weight_rows(const Tensor& weight, const Pixels& pixels) {
  const int64_t dim = weight.size(0), num_pixels = weight.numel() / dim;
  constexpr int64_t pair = pairing<Factor>;
  Tensor rows = at::zeros({round_up(dim, pair), num_pixels}, at::TensorOptions(c10::CppTypeToScalarType<Factor>()));
  const Scalar* from = weight.const_data_ptr<Scalar>();
  Factor* to = rows.mutable_data_ptr<Factor>();
  for (int64_t d = 0; d < dim; ++d) {
    for (int32_t walked = 0; walked < num_pixels; ++walked) {
      to[(d / pair * num_pixels + walked) * pair + d % pair] =
          rounded<Factor>(from[d * num_pixels + weight_index(pixels, walked)]);
    }
  }
  return rows;
}

// d pixel = scale * sum over d of gradient[token, d] * weight[d, pixel], added up where a patch is kept twice
template <class Scalar, class Factor>
void image_gradient(const Tensor& gradient, const Tensor& weight, const Pixels& pixels, const Batch& batch,
                    at::ArrayRef<double> scale, Tensor& result) {
  using Wide = Sum<Factor>;
  const int64_t num_pixels = weight.numel() / batch.dim, depth = round_up(batch.dim, pairing<Factor>);
  const int64_t rows = std::min<int64_t>(64, batch.kept);
  const Tensor right = weight_rows<Scalar, Factor>(weight, pixels);
  const Runs runs(pixels);
  const Normalisation<Wide> by(pixels, scale, scale);
  const Scalar* from = gradient.const_data_ptr<Scalar>();
  Wide* image = result.mutable_data_ptr<Wide>();
  at::parallel_for(0, batch.images, 1, [&](int64_t begin, int64_t end) {
    const Tensor tile = at::zeros({rows, depth}, right.options());
    const Tensor product = at::empty({rows, num_pixels}, result.options());
    Factor* left = tile.mutable_data_ptr<Factor>();
    Wide* sums = product.mutable_data_ptr<Wide>();
    const int64_t past = end * batch.kept;
    for (int64_t first = begin * batch.kept; first < past; first += rows) {
      const int64_t count = std::min(rows, past - first);
      for (int64_t i = 0; i < count; ++i) {
        const Scalar* row = from + batch.row(first + i) * batch.dim;
        for (int64_t d = 0; d < batch.dim; ++d) left[i * depth + d] = rounded<Factor>(row[d]);
      }
      const Factor* factors = right.const_data_ptr<Factor>();
      multiply(rows, num_pixels, depth, left, depth, factors, num_pixels, sums, num_pixels, false);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t start = patch_start(pixels, batch.src[first + i]);
        Wide* patch = image + (first + i) / batch.kept * pixels.image_stride + start;
        for (int64_t walked = 0; walked < num_pixels; ++walked) {
          patch[runs.offset[walked / runs.length] + walked % runs.length] +=
              sums[i * num_pixels + walked] * by.scale[walked];
        }
      }
    }
    done_multiplying<Factor>();
  });
}

template <class Wide>
using Slice = std::array<Wide, slice>;

// What one task sums: `slice` columns of every token.
template <class Wide>
struct TableSums {
  Slice<Wide> bias{}, class_token{}, no_position{};
  std::vector<Slice<Wide>> table;  // rows 1 .. L of the table; none where it is not wanted
};

template <class Scalar, class Wide>
void add(Slice<Wide>& sum, const Scalar* row, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<Wide>(row[i]);
}

// Sums of sums: over an image, over a group of images, over the batch; the error grows with their depths only.
template <class Scalar, class Wide>
void sum_slice(const Scalar* gradient, const Batch& batch, bool only_class, int64_t count, TableSums<Wide>& sums) {
  for (int64_t first = 0; first < batch.images; first += group) {
    Slice<Wide> all{}, classes{}, unknown{};
    for (int64_t image = first; image < std::min(first + group, batch.images); ++image) {
      const Scalar* row = gradient + image * (1 + batch.kept) * batch.dim;
      add(classes, row, count);
      if (only_class) continue;
      Slice<Wide> of_image{}, of_unknown{};
      for (int64_t k = 0; k < batch.kept; ++k) {
        row += batch.dim;
        add(of_image, row, count);
        const int32_t pos = batch.pos[image * batch.kept + k];
        if (pos < 0) add(of_unknown, row, count);
        if (pos >= 0 && !sums.table.empty()) add(sums.table[pos], row, count);
      }
      add(all, of_image.data(), count);
      add(unknown, of_unknown.data(), count);
    }
    add(sums.bias, all.data(), count);
    add(sums.class_token, classes.data(), count);
    add(sums.no_position, unknown.data(), count);
  }
}

template <class Scalar>
void table_gradients(const Tensor& gradient, const Batch& batch, const Wanted& wanted, int64_t num_patches,
                     Gradients& results) {
  using Wide = Sum<Scalar>;
  const bool only_class = !wanted[of_bias] && !wanted[of_table] && !wanted[of_no_position];
  if (only_class && !wanted[of_class_token]) return;
  const Scalar* from = gradient.const_data_ptr<Scalar>();
  at::parallel_for(0, (batch.dim + slice - 1) / slice, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * slice; first < std::min(end * slice, batch.dim); first += slice) {
      const int64_t count = std::min(slice, batch.dim - first);
      TableSums<Wide> sums;
      if (wanted[of_table]) sums.table.resize(num_patches);
      sum_slice(from + first, batch, only_class, count, sums);
      const auto write = [&](const Slice<Wide>& sum, Gradient of, int64_t row) {
        if (wanted[of]) std::copy_n(sum.begin(), count, results[of].mutable_data_ptr<Wide>() + row * batch.dim + first);
      };
      write(sums.bias, of_bias, 0);
      write(sums.class_token, of_class_token, 0);
      write(sums.no_position, of_no_position, 0);
      write(sums.class_token, of_table, 0);
      for (size_t patch = 0; patch < sums.table.size(); ++patch) write(sums.table[patch], of_table, 1 + patch);
    }
  });
}

Results patch_embed_backward_cpu(const Tensor& gradient_, const OptionalTensor& images_, const OptionalTensor& weight,
                                   const Tensor& src_, const Tensor& pos_, at::ArrayRef<double> scale,
                                   at::ArrayRef<double> shift, bool channels_last, int64_t patch_size, int64_t height,
                                   int64_t width, Wanted wanted) {
  const Tensor gradient = gradient_.contiguous(), src = src_.to(at::kInt).contiguous();
  const Tensor pos = pos_.to(at::kInt).contiguous();
  check_plan(src, pos, gradient.size(0));
  const int64_t num_patches = (height / patch_size) * (width / patch_size), channels = scale.size();
  check_range(src, pos, num_patches, true);
  Gradients results = empty_gradients(gradient, patch_size, height, width, channels, channels_last, wanted);
  for (Tensor& result : results) result.zero_();
  if (gradient.numel() == 0) return as_tuple(results);
  const Batch batch{src.size(0),
                    src.size(1),
                    gradient.size(2),
                    src.numel(),
                    src.const_data_ptr<int32_t>(),
                    pos.const_data_ptr<int32_t>()};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, gradient.scalar_type(), "patch_embed_backward", [&] {
    using Scalar = scalar_t;
    table_gradients<Scalar>(gradient, batch, wanted, num_patches, results);
    with_factor<Scalar>([&](auto factor) {
      using Factor = decltype(factor);
      if (wanted[of_weight]) {
        Tensor images = images_.value();
        const Pixels pixels = pixels_of(images, patch_size, channels_last);
        MISPLACE_DISPATCH_PIXELS(images.scalar_type(), [&] {
          weight_gradient<Scalar, Factor, scalar_t>(gradient, images, pixels, batch, scale, shift, results[of_weight]);
        });
      }
      if (wanted[of_images]) {
        const Pixels pixels = pixels_of(results[of_images], patch_size, channels_last);
        image_gradient<Scalar, Factor>(gradient, weight.value().contiguous(), pixels, batch, scale, results[of_images]);
      }
    });
  });
  return as_tuple(results);
}

}  // namespace
}  // namespace misplace::patch_embed

TORCH_LIBRARY_IMPL(misplace, CPU, m) {
  m.impl("patch_embed_backward", &misplace::patch_embed::patch_embed_backward_cpu);
}
