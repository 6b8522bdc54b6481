// Philox4x32-10 (Salmon et al., SC 2011), the same text for CPU and GPU; the twin of kernels/philox.py.
//
// A number is named by a 64-bit seed (the key) and four 32-bit counter words:
//   word 0   item | view << 16 | stream << 24
//   word 1   epoch
//   word 2   low  32 bits of the global sample index
//   word 3   high 32 bits of the global sample index
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace misplace {

enum class Stream : uint32_t {
  token_plan = 0,
  augmentation = 1,
  sample_order = 2,
  replacement = 3,
  render = 4,
};

struct Words {
  uint32_t word[4];
};

constexpr uint32_t philox_rounds = 10;
constexpr uint32_t philox_weyl0 = 0x9E3779B9u, philox_weyl1 = 0xBB67AE85u;

MISPLACE_HOST_DEVICE Words philox4x32(Words c, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (uint32_t round = 0; round < philox_rounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c.word[0]) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c.word[2]) * 0xCD9E8D57u;
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += philox_weyl0;
    key1 += philox_weyl1;
  }
  return c;
}

MISPLACE_HOST_DEVICE uint32_t first_word(uint32_t item, uint32_t view, Stream stream) {
  return item | view << 16 | static_cast<uint32_t>(stream) << 24;
}

// The four words of one item of one view of one sample; kernels/philox.py's `draw`.
MISPLACE_HOST_DEVICE Words draw(uint32_t item, uint64_t index, uint64_t seed, uint32_t epoch, uint32_t view,
                                Stream stream) {
  return philox4x32({{first_word(item, view, stream), epoch, static_cast<uint32_t>(index),
                      static_cast<uint32_t>(index >> 32)}},
                    seed);
}

}  // namespace misplace
