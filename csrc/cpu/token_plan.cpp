// Token plans on the CPU: one image at a time on the stack, images in parallel; only the result is allocated.
//
// An image costs L Philox calls (vectorised), one bucket pass and an insertion pass over nearly sorted keys:
// the keys are uniform, so both are O(L).
#include "token_plan.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>

#include "cpu/draw_keys.h"

namespace misplace::token_plan {
namespace {

constexpr int images_per_task = 16;

struct Sizes {
  int num_patches;
  int num_kept;
  int bucket_shift;  // word 0 >> bucket_shift is the bucket; there are at least as many buckets as patches
};

struct Scratch {
  std::array<uint64_t, max_patches> drawn;        // keys in patch order
  std::array<uint64_t, max_patches> permutation;  // keys in ascending order
  std::array<uint16_t, max_patches + 1> bucket_end;
  std::array<uint16_t, max_patches> wrong_rank;   // permutation rank of each wrong token, by ordinal
  std::array<int32_t, max_patches> position;      // per patch; -1 = dropped
};

void sort_keys(Scratch& s, const Sizes& sizes) {
  const int shift = 32 + sizes.bucket_shift, num_buckets = 1 << (32 - sizes.bucket_shift);
  uint16_t* end = s.bucket_end.data();
  std::fill(end, end + num_buckets + 1, uint16_t{0});
  for (int patch = 0; patch < sizes.num_patches; ++patch) ++end[(s.drawn[patch] >> shift) + 1];
  for (int bucket = 1; bucket < num_buckets; ++bucket) end[bucket] += end[bucket - 1];
  for (int patch = 0; patch < sizes.num_patches; ++patch) {
    s.permutation[end[s.drawn[patch] >> shift]++] = s.drawn[patch];
  }
  // nobody reads beyond rank 2 K: K tokens are kept, and at most as many take a position from the tail
  const int needed = std::min(2 * sizes.num_kept, sizes.num_patches);
  const int last = end[s.permutation[needed - 1] >> shift];
  for (int i = 1; i < last; ++i) {
    const uint64_t key = s.permutation[i];
    int hole = i;
    for (; hole > 0 && s.permutation[hole - 1] > key; --hole) {
      s.permutation[hole] = s.permutation[hole - 1];
    }
    s.permutation[hole] = key;
  }
}

void place(Scratch& s, const Sizes& sizes) {
  const int num_dropped = sizes.num_patches - sizes.num_kept;
  int num_wrong = 0;
  std::fill(s.position.begin(), s.position.begin() + sizes.num_patches, -1);
  for (int rank = 0; rank < sizes.num_kept; ++rank) {
    const uint64_t key = s.permutation[rank];
    s.position[patch_of(key)] = static_cast<int32_t>(patch_of(key));
    s.wrong_rank[num_wrong] = static_cast<uint16_t>(rank);
    num_wrong += flag_of(key);
  }
  for (int ordinal = 0; ordinal < num_wrong; ++ordinal) {
    const int taken_from = ordinal < num_dropped
                               ? sizes.num_kept + ordinal
                               : s.wrong_rank[next_remaining(ordinal, num_wrong, num_dropped)];
    const uint32_t patch = patch_of(s.permutation[s.wrong_rank[ordinal]]);
    s.position[patch] = static_cast<int32_t>(patch_of(s.permutation[taken_from]));
  }
}

// Kept tokens in ascending patch order; a slot is written until its patch is a kept one: no branch.
void write(const Scratch& s, int num_kept, int32_t* src, int32_t* pos, bool* wrong) {
  for (int patch = 0, slot = 0; slot < num_kept; ++patch) {
    src[slot] = patch;
    pos[slot] = s.position[patch];
    wrong[slot] = s.position[patch] != patch;
    slot += s.position[patch] >= 0;
  }
}

Plan token_plan_cpu(const at::Tensor& index, int64_t num_patches, int64_t num_kept, int64_t seed,
                    int64_t epoch, int64_t view, int64_t wrong_threshold) {
  check(index, num_patches, num_kept, wrong_threshold);
  const int bucket_bits = std::max<int>(1, std::bit_width(static_cast<uint64_t>(num_patches - 1)));
  const Sizes sizes{static_cast<int>(num_patches), static_cast<int>(num_kept), 32 - bucket_bits};
  const Draw by = make_draw(seed, epoch, view, wrong_threshold);
  const int64_t num_images = index.size(0), stride = index.stride(0);
  const auto [src, pos, wrong] = empty_plan(index, num_kept);
  const int64_t* indices = index.const_data_ptr<int64_t>();
  int32_t *src_out = src.mutable_data_ptr<int32_t>(), *pos_out = pos.mutable_data_ptr<int32_t>();
  bool* wrong_out = wrong.mutable_data_ptr<bool>();
  at::parallel_for(0, num_images, images_per_task, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t image = begin; image < end; ++image) {
      draw_keys(scratch.drawn.data(), sizes.num_patches, indices[image * stride], by);
      sort_keys(scratch, sizes);
      place(scratch, sizes);
      const int64_t row = image * num_kept;
      write(scratch, sizes.num_kept, src_out + row, pos_out + row, wrong_out + row);
    }
  });
  return {src, pos, wrong};
}

}  // namespace
}  // namespace misplace::token_plan

TORCH_LIBRARY_IMPL(misplace, CPU, m) { m.impl("token_plan", &misplace::token_plan::token_plan_cpu); }
