// The block algorithm of csrc/shared/token_plan_block.h with one thread after another where the GPU has them at once.
// Compiled and called by test_token_plan_block.py.
#include "shared/token_plan_block.h"

#include <cstring>
#include <vector>

namespace plan = misplace::token_plan;

// Threads take their turns in steps of `turn` (coprime to num_threads), another order in every phase.
extern "C" void run_block(int64_t index, int num_patches, int num_kept, uint64_t seed, uint32_t epoch, uint32_t view,
                          uint64_t wrong_threshold, int num_threads, int turn, int32_t* src, int32_t* pos,
                          bool* wrong) {
  const plan::Sizes sizes{num_patches, num_kept};
  const plan::Draw by{seed, epoch, view, wrong_threshold};
  plan::Board board;
  std::memset(&board, 0xEE, sizeof board);  // shared memory begins with anything
  std::vector<plan::Token> tokens(num_threads);
  const auto each_thread = [&](int first, auto phase) {
    for (int i = 0; i < num_threads; ++i) {
      const int thread = ((first + i * turn) % num_threads + num_threads) % num_threads;
      phase(thread, tokens[thread]);
    }
  };
  each_thread(0, [&](int p, plan::Token& t) {
    plan::draw_phase(p, t, board, sizes, static_cast<uint64_t>(index), by);
  });
  each_thread(1, [&](int p, plan::Token& t) {
    plan::rank_phase(p, t, board, sizes, [](uint32_t* word, uint32_t bit) { *word |= bit; });
  });
  each_thread(2, [&](int p, plan::Token& t) { plan::write_phase(p, t, board, sizes, src, pos, wrong); });
}
