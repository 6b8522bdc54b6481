// The two passes of prototype_ce over the prototypes, for features held in F and prototypes in T.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/patch_embed_matmul.h"
#include "cpu/prototype_ce_tile.h"
#include "prototype_ce.h"

namespace misplace::prototype_ce {

constexpr int64_t most_chunks = 12;  // of prototypes: each has its own sums, which are added in their order
constexpr float log2_e = 1.4426950408889634f;

// How many rows of the right factor of a product lie as one.
template <class F>
constexpr int64_t pairing = sizeof(F) == 2 ? 2 : 1;

// c[m, n] (+)= a[m, k] . b[k, n] in contiguous tiles; of bf16 b is [k / 2, n, 2].
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c, /*is_vnni=*/false);
}

inline void multiply(int64_t m, int64_t n, int64_t k, const uint16_t* a, const uint16_t* b, float* c, bool add) {
  const auto of = [](const uint16_t* bits) { return reinterpret_cast<const c10::BFloat16*>(bits); };
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, of(a), of(b), c, /*is_vnni=*/true);
}

inline at::Tensor floats(at::IntArrayRef shape) { return at::empty(shape, at::kFloat); }

template <class F>
at::Tensor factors(at::IntArrayRef shape) {
  return at::zeros(shape, sizeof(F) == 2 ? at::kShort : at::kFloat);
}

template <class F>
F* data(const at::Tensor& tensor) {
  return static_cast<F*>(tensor.mutable_data_ptr());
}

template <class T, class F>
constexpr auto normalise_of(const Kernels<F>& kernels) {
  if constexpr (sizeof(T) == 2) return kernels.normalise_bf16;
  else return kernels.normalise_fp32;
}

template <class T, class F>
constexpr auto backward_of(const Kernels<F>& kernels) {
  if constexpr (sizeof(T) == 2) return kernels.backward_bf16;
  else return kernels.backward_fp32;
}

// Normalised rows as right factors of the products over their elements and over the rows.
template <class F>
struct Features {
  at::Tensor by_element, by_row, inverse;  // [columns, lanes] and [lanes, columns], in pairs; [rows]

  template <class T>
  Features(const T* rows, int64_t count, int64_t width, const Kernels<F>& kernels) {
    const int64_t lanes = Sizes::padded(count), columns = Sizes::padded(width);
    const at::Tensor unit = factors<F>({lanes, columns});
    by_element = factors<F>({columns, lanes});
    by_row = factors<F>({lanes, columns});
    inverse = floats({count});
    normalise_of<T>(kernels)(rows, count, width, columns, data<float>(inverse), data<F>(unit));
    constexpr int64_t pair = pairing<F>;
    const F* from = data<F>(unit);
    F *elements = data<F>(by_element), *of_rows = data<F>(by_row);
    for (int64_t row = 0; row < lanes; ++row) {
      for (int64_t c = 0; c < columns; ++c) {
        const F value = from[row * columns + c];
        elements[(c / pair * lanes + row) * pair + c % pair] = value;
        of_rows[(row / pair * columns + c) * pair + row % pair] = value;
      }
    }
  }
};

// One thread's memory for a tile; rows of the tile past its last prototype are 0 in `unit`.
template <class F>
struct Tile {
  std::vector<F> unit, transposed, natural, paired;
  std::vector<float> inverse, logits, of_teacher, partners, moved, partners_moved, d_unit, others;

  Tile(const Sizes& sizes, bool gradients)
      : unit(sizes.tile() * sizes.columns()), transposed(gradients ? unit.size() : 0),
        natural(gradients && sizeof(F) == 2 ? sizes.tile() * sizes.lanes() : 0), paired(natural.size()),
        inverse(sizes.tile()), logits(sizes.tile() * sizes.lanes()), of_teacher(sizes.tile() * sizes.teacher_lanes()),
        partners(gradients ? 0 : of_teacher.size()), moved(gradients ? 0 : sizes.lanes()),
        partners_moved(gradients ? 0 : sizes.teacher_lanes()), d_unit(gradients ? unit.size() : 0),
        others((sizes.teacher_views + 1) * sizes.batch) {}
};

template <class T, class F>
class Passes {
 public:
  template <class Feature>
  Passes(const Sizes& sizes, const Feature* student, const Feature* teacher, const T* prototypes,
         const T* teacher_prototypes, const float* centre, float student_scale, float teacher_scale,
         const Kernels<F>& kernels)
      : sizes_(sizes), kernels_(kernels), student_(student, sizes.rows(), sizes.width, kernels),
        teacher_(teacher, sizes.teacher_rows(), sizes.width, kernels), prototypes_(prototypes),
        teacher_prototypes_(teacher_prototypes), centre_(centre), student_scale_(student_scale),
        teacher_scale_(teacher_scale) {
    num_tiles_ = (sizes.prototypes + sizes.tile() - 1) / sizes.tile();
    num_chunks_ = std::min(most_chunks, num_tiles_);
    log_sum_ = at::zeros({2, sizes.lanes() + sizes.teacher_lanes()}, at::kFloat);
    compared_ = at::zeros({sizes.lanes()}, at::kFloat);
    for (int64_t row = 0; row < sizes.rows(); ++row) {
      const bool shared = row / sizes.batch < sizes.teacher_views;
      data<float>(compared_)[row] = static_cast<float>(sizes.teacher_views - (shared ? 1 : 0));
    }
  }

  // The loss, and every row's log-sum-exp for the second pass.
  double find_loss(float* batch_centre) {
    const int64_t lanes = sizes_.lanes(), teacher_lanes = sizes_.teacher_lanes();
    const int64_t numbers = 2 * lanes + 3 * teacher_lanes;
    const at::Tensor sums = at::zeros({num_chunks_, numbers}, at::kFloat);
    each_tile(false, [&](int64_t chunk, bool is_first, int64_t first, int64_t count, Tile<F>& tile) {
      float* of_chunk = data<float>(sums) + chunk * numbers;
      const Running student{of_chunk, of_chunk + lanes};
      float* of_teacher = of_chunk + 2 * lanes;
      const Running teacher{of_teacher, of_teacher + teacher_lanes};
      if (is_first) {
        std::fill_n(student.largest, lanes, lowest);
        std::fill_n(teacher.largest, teacher_lanes, lowest);
      }
      make_logits(first, count, count, tile);
      kernels_.centre_teacher(tile.of_teacher.data(), count, sizes_, centre_ + first, teacher_scale_,
                              batch_centre + first);
      kernels_.accumulate(tile.logits.data(), count, lanes, student_scale_, student, nullptr, tile.moved.data());
      kernels_.subtract_largest(tile.logits.data(), count, lanes, student.largest);
      kernels_.sum_partners(tile.logits.data(), count, sizes_, tile.partners.data());
      kernels_.sum_partners(tile.moved.data(), 1, sizes_, tile.partners_moved.data());
      const Weighted weighted{tile.partners.data(), tile.partners_moved.data(), of_teacher + 2 * teacher_lanes};
      kernels_.accumulate(tile.of_teacher.data(), count, teacher_lanes, 1, teacher, &weighted, nullptr);
    });
    return merge(data<float>(sums), numbers);
  }

  // Gradients by the student's unit rows, [chunks, columns, lanes], and by the prototypes; either may be null.
  void find_gradients(float* d_student, T* d_prototypes, float scale) {
    const int64_t lanes = sizes_.lanes(), columns = sizes_.columns();
    each_tile(true, [&](int64_t chunk, bool is_first, int64_t first, int64_t count, Tile<F>& tile) {
      const int64_t padded = padded_tile(count);
      make_logits(first, count, padded, tile);
      kernels_.centre_teacher(tile.of_teacher.data(), count, sizes_, centre_ + first, teacher_scale_, nullptr);
      kernels_.to_probabilities(tile.of_teacher.data(), count, sizes_.teacher_lanes(), 1, log_sum(lanes), nullptr);
      kernels_.to_probabilities(tile.logits.data(), count, lanes, student_scale_, log_sum(0), data<float>(compared_));
      kernels_.subtract_teacher(tile.logits.data(), tile.of_teacher.data(), count, sizes_, tile.others.data());
      std::fill(tile.logits.begin() + count * lanes, tile.logits.begin() + padded * lanes, 0.0f);
      const F *natural = tile.natural.data(), *paired = tile.paired.data();
      if constexpr (sizeof(F) == 2) {
        kernels_.to_factors(tile.logits.data(), padded, lanes, tile.natural.data(), tile.paired.data());
      } else {
        natural = paired = tile.logits.data();
      }
      if (d_student) {
        kernels_.transpose_tile(tile.unit.data(), padded, columns, tile.transposed.data());
        float* to = d_student + chunk * columns * lanes;
        multiply(columns, lanes, padded, tile.transposed.data(), paired, to, !is_first);
      }
      if (d_prototypes) {
        multiply(count, columns, lanes, natural, data<F>(student_.by_row), tile.d_unit.data(), false);
        backward_of<T>(kernels_)(tile.d_unit.data(), prototypes_ + first * sizes_.width, tile.inverse.data(), count,
                                 sizes_.width, columns, scale, d_prototypes + first * sizes_.width);
      }
    });
  }

  int64_t num_chunks() const { return num_chunks_; }
  const float* inverse_lengths() const { return data<float>(student_.inverse); }

 private:
  static int64_t padded_tile(int64_t count) { return (count + 31) / 32 * 32; }

  int64_t first_of(int64_t chunk) const { return chunk * num_tiles_ / num_chunks_ * sizes_.tile(); }
  LogSum log_sum(int64_t first_lane) const {
    const float* largest = data<float>(log_sum_) + first_lane;
    return {largest, largest + log_sum_.size(1)};
  }

  template <class Work>
  void each_tile(bool gradients, const Work& work) {
    at::parallel_for(0, num_chunks_, 1, [&](int64_t begin, int64_t end) {
      Tile<F> tile(sizes_, gradients);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t last = std::min(first_of(chunk + 1), sizes_.prototypes);
        for (int64_t first = first_of(chunk); first < last; first += sizes_.tile()) {
          work(chunk, first == first_of(chunk), first, std::min(sizes_.tile(), last - first), tile);
        }
      }
      if constexpr (sizeof(F) == 2) at::native::cpublas::brgemm_release(true);
    });
  }

  // Logits of the teacher and of the student; leaves the student's prototypes in the tile.
  void make_logits(int64_t first, int64_t count, int64_t padded, Tile<F>& tile) {
    const int64_t columns = sizes_.columns();
    std::fill(tile.unit.begin() + count * columns, tile.unit.begin() + padded * columns, F(0));
    for (const bool of_teacher : {true, false}) {
      const T* from = (of_teacher ? teacher_prototypes_ : prototypes_) + first * sizes_.width;
      normalise_of<T>(kernels_)(from, count, sizes_.width, columns, tile.inverse.data(), tile.unit.data());
      const Features<F>& features = of_teacher ? teacher_ : student_;
      multiply(padded, of_teacher ? sizes_.teacher_lanes() : sizes_.lanes(), columns, tile.unit.data(),
               data<F>(features.by_element), of_teacher ? tile.of_teacher.data() : tile.logits.data(), false);
    }
  }

  // Sums of the chunks [chunks, numbers] as find_loss lays them out -> the sum of the pairs' losses.
  double merge(const float* sums, int64_t numbers) {
    const int64_t lanes = sizes_.lanes();
    double loss = 0;
    for (int64_t row = 0; row < sizes_.rows(); ++row) {
      const double log_total = merge_row(sums + row, lanes, numbers, student_scale_, row);
      loss += static_cast<double>(data<float>(compared_)[row]) * log_total;
    }
    for (int64_t row = 0; row < sizes_.teacher_rows(); ++row) {
      merge_row(sums + 2 * lanes + row, sizes_.teacher_lanes(), numbers, 1, lanes + row);
      loss -= mean_of_partners(sums, numbers, row) * student_scale_;
    }
    return loss / log2_e;
  }

  // Keeps a row's largest logit and log2 of its sum over that.
  double merge_row(const float* sums, int64_t lanes, int64_t numbers, double scale, int64_t place) {
    float largest = sums[0];
    for (int64_t chunk = 1; chunk < num_chunks_; ++chunk) largest = std::max(largest, sums[chunk * numbers]);
    double total = 0;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const float* of_chunk = sums + chunk * numbers;
      total += std::exp2((static_cast<double>(of_chunk[0]) - largest) * scale) * of_chunk[lanes];
    }
    float* kept = data<float>(log_sum_) + place;
    kept[0] = largest;
    kept[log_sum_.size(1)] = static_cast<float>(std::log2(total));
    return std::log2(total);
  }

  // Under the probabilities of a teacher's row, the mean of what its partners' logits lack to their largest.
  double mean_of_partners(const float* sums, int64_t numbers, int64_t row) const {
    const int64_t lanes = sizes_.lanes(), teacher_lanes = sizes_.teacher_lanes();
    const float* largest = data<float>(log_sum_);
    double total = 0, weighted = 0;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const float *of_students = sums + chunk * numbers, *of_chunk = of_students + 2 * lanes + row;
      double moved = 0;
      for (int64_t partner = row % sizes_.batch; partner < sizes_.rows(); partner += sizes_.batch) {
        if (partner != row) moved += static_cast<double>(of_students[partner]) - largest[partner];
      }
      const double share = std::exp2(static_cast<double>(of_chunk[0]) - largest[lanes + row]);
      total += share * of_chunk[teacher_lanes];
      weighted += share * (of_chunk[2 * teacher_lanes] + moved * of_chunk[teacher_lanes]);
    }
    return weighted / total;
  }

  const Sizes sizes_;
  const Kernels<F>& kernels_;
  const Features<F> student_, teacher_;
  const T *prototypes_, *teacher_prototypes_;
  const float* centre_;
  const float student_scale_, teacher_scale_;
  int64_t num_tiles_, num_chunks_;
  at::Tensor log_sum_, compared_;  // [2, lanes + teacher_lanes], as LogSum; [lanes], the number of a row's pairs
};

}  // namespace misplace::prototype_ce
