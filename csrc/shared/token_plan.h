// The rules of a token plan that CPU and GPU share; kernels/token_plan/reference.py is the specification.
#pragma once

#include <cstdint>

#include "shared/philox.h"

namespace misplace::token_plan {

constexpr int max_patches = 1024;

struct Draw {
  uint64_t seed;
  uint32_t epoch;
  uint32_t view;
  uint64_t wrong_threshold;  // a token is wrong when its word 1 is below; in [0, 2^32]
};

// One patch's sort key: word 0, then the patch, so no two are equal; the lowest bit carries the wrong flag.
MISPLACE_HOST_DEVICE uint64_t make_key(uint32_t patch, uint64_t index, const Draw& by) {
  const Words words = draw(patch, index, by.seed, by.epoch, by.view, Stream::token_plan);
  const uint32_t flag = words.word[1] < by.wrong_threshold;
  return static_cast<uint64_t>(words.word[0]) << 32 | patch << 1 | flag;
}

MISPLACE_HOST_DEVICE uint32_t patch_of(uint64_t key) { return static_cast<uint32_t>(key) >> 1; }
MISPLACE_HOST_DEVICE bool flag_of(uint64_t key) { return key & 1; }

// The ordinal of the wrong token whose place wrong token `ordinal` takes: the next remaining one, cyclically.
// Only for ordinal >= num_dropped. A lone remainder gets itself, so it does not move and is not wrong.
MISPLACE_HOST_DEVICE int next_remaining(int ordinal, int num_wrong, int num_dropped) {
  return ordinal + 1 < num_wrong ? ordinal + 1 : num_dropped;
}

}  // namespace misplace::token_plan
