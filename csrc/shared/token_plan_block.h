// One image's plan by a block of threads, thread p for patch p: three phases with a barrier after each.
//
// No thread reads in a phase what another writes in it, so the phases give the same plan whatever the order of the
// threads: csrc/cuda/token_plan.cu runs them on a GPU, tests/kernels/token_plan_block.cpp one thread after another.
//
// The permutation is never sorted: a patch's rank is the number of smaller keys, counted over all of them, and its
// ordinal the number of flagged ones among those.
#pragma once

#include <cstdint>

#include "shared/token_plan.h"

namespace misplace::token_plan {

constexpr int bits_per_word = 32;

struct Sizes {
  int num_patches;
  int num_kept;
};

// What the threads of a block share.
struct Board {
  uint64_t key[max_patches];                     // by patch
  uint16_t permutation[max_patches];             // patch by rank
  uint16_t wrong_rank[max_patches];              // rank of each wrong token, by ordinal
  uint32_t kept[max_patches / bits_per_word];    // a bit per patch
  int num_wrong;
};

// What the thread of a patch remembers between phases.
struct Token {
  uint64_t key;
  int rank;
  int ordinal;
  bool wrong;  // flagged and kept
};

MISPLACE_HOST_DEVICE int count_bits(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// Phase 1: every patch's key. Threads beyond the last patch help with nothing but the words of `kept`.
MISPLACE_HOST_DEVICE void draw_phase(int patch, Token& token, Board& board, const Sizes& sizes, uint64_t index,
                                     const Draw& by) {
  if (patch < max_patches / bits_per_word) board.kept[patch] = 0;
  if (patch >= sizes.num_patches) return;
  token.key = make_key(static_cast<uint32_t>(patch), index, by);
  board.key[patch] = token.key;
}

// Phase 2: rank and ordinal by counting. `set_kept(word, bit)` sets a bit that other threads set bits beside.
template <class SetKept>
MISPLACE_HOST_DEVICE void rank_phase(int patch, Token& token, Board& board, const Sizes& sizes, SetKept set_kept) {
  if (patch >= sizes.num_patches) return;
  int rank = 0, ordinal = 0;
  for (int other = 0; other < sizes.num_patches; ++other) {
    const uint64_t key = board.key[other];
    const int below = key < token.key;
    rank += below;
    ordinal += below & static_cast<int>(key & 1);
  }
  const bool kept = rank < sizes.num_kept;
  token.rank = rank;
  token.ordinal = ordinal;
  token.wrong = kept && flag_of(token.key);
  board.permutation[rank] = static_cast<uint16_t>(patch);
  if (kept) set_kept(&board.kept[patch / bits_per_word], uint32_t{1} << patch % bits_per_word);
  if (token.wrong) board.wrong_rank[ordinal] = static_cast<uint16_t>(rank);
  if (rank == sizes.num_kept - 1) board.num_wrong = ordinal + (token.wrong ? 1 : 0);
}

// Phase 3: a kept token finds its position and its place in ascending patch order.
MISPLACE_HOST_DEVICE void write_phase(int patch, const Token& token, const Board& board, const Sizes& sizes,
                                      int32_t* src, int32_t* pos, bool* wrong) {
  if (patch >= sizes.num_patches || token.rank >= sizes.num_kept) return;
  const int num_dropped = sizes.num_patches - sizes.num_kept;
  int position = patch;
  if (token.wrong) {
    const int from = token.ordinal < num_dropped
                         ? sizes.num_kept + token.ordinal
                         : board.wrong_rank[next_remaining(token.ordinal, board.num_wrong, num_dropped)];
    position = board.permutation[from];
  }
  int slot = count_bits(board.kept[patch / bits_per_word] & ((uint32_t{1} << patch % bits_per_word) - 1));
  for (int word = 0; word < patch / bits_per_word; ++word) slot += count_bits(board.kept[word]);
  src[slot] = patch;
  pos[slot] = position;
  wrong[slot] = position != patch;
}

}  // namespace misplace::token_plan
