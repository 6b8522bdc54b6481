// The sequences of one call, of one length or of many, and their heads shared out among threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/attention_head.h"

namespace misplace::attention {

using Shape = c10::SmallVector<int64_t, 4>;

// [B, H, 2, N]; of mixed lengths flat, [H, 2, length] one sequence after another.
inline Shape statistics_shape(const at::Tensor& q) {
  if (q.dim() == 3) return {2 * q.size(0) * q.size(1)};
  return {q.size(0), q.size(2), 2, q.size(1)};
}

struct Item {  // one head of one sequence
  int64_t sequence, head;
  int64_t first;       // token of the sequence, counted from the beginning of its image
  int64_t statistics;  // where its numbers begin
  Sizes sizes;
};

class Sequences {
 public:
  Sequences(const at::Tensor& q, const at::Tensor& k, double scale, const std::optional<at::Tensor>& cu_seqlens)
      : heads_(q.size(-2)),
        mixed_(cu_seqlens.has_value()),
        largest_{q.size(-3), k.size(-3), q.size(-1), static_cast<float>(scale)} {
    if (mixed_) {
      read_bounds(cu_seqlens->contiguous(), q.size(0));
    } else {
      add_cost(q.size(0), largest_);
    }
  }

  int64_t heads() const { return heads_; }
  int64_t count() const { return static_cast<int64_t>(cost_.size()) - 1; }
  const Sizes& largest() const { return largest_; }

  Item at(int64_t sequence, int64_t head) const {
    if (!mixed_) return {sequence, head, 0, (sequence * heads_ + head) * 2 * largest_.queries, largest_};
    const int64_t first = bounds_[sequence], length = bounds_[sequence + 1] - first;
    return {sequence, head, first, 2 * (heads_ * first + head * length),
            {length, length, largest_.head_dim, largest_.scale}};
  }

  // Work before a sequence, and in all, of one head: threads get equal shares of it, whatever the lengths.
  int64_t cost_before(int64_t sequence) const { return cost_[sequence]; }
  int64_t cost() const { return cost_.back(); }
  int64_t sequence_at(int64_t cost) const {
    return std::lower_bound(cost_.begin(), cost_.end() - 1, cost) - cost_.begin();
  }

 private:
  void add_cost(int64_t count, const Sizes& sizes) {
    const int64_t packing = 64;  // in keys: what a query costs however few keys there are
    for (int64_t i = 0; i < count; ++i) cost_.push_back(cost_.back() + sizes.queries * (sizes.keys + packing));
  }

  void read_bounds(const at::Tensor& cu_seqlens, int64_t tokens) {
    const int32_t* bounds = cu_seqlens.const_data_ptr<int32_t>();
    bounds_.assign(bounds, bounds + cu_seqlens.numel());
    TORCH_CHECK_VALUE(bounds_.front() == 0 && bounds_.back() == tokens, "attention: cu_seqlens go from ",
                      bounds_.front(), " to ", bounds_.back(), ", not from 0 to the ", tokens, " tokens");
    int64_t longest = 0;
    for (size_t i = 1; i < bounds_.size(); ++i) {
      const int64_t length = int64_t{bounds_[i]} - bounds_[i - 1];
      TORCH_CHECK_VALUE(length >= 0, "attention: cu_seqlens decrease at ", i);
      longest = std::max(longest, length);
      add_cost(1, {length, length, 0, 0});
    }
    largest_.queries = largest_.keys = longest;
  }

  int64_t heads_;
  bool mixed_;
  Sizes largest_;
  std::vector<int32_t> bounds_;
  std::vector<int64_t> cost_{0};
};

// run(item, scratch) for every head of every sequence that has queries; each item on one thread, whole.
template <class Run>
void each_head(const Sequences& sequences, const Run& run) {
  const int64_t heads = sequences.heads();
  // an item belongs to the share that its cost begins in: (sequence, head) begins at heads * before + head * own
  at::parallel_for(0, heads * sequences.cost(), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_bytes(sequences.largest()));
    std::byte* const start = scratch.mark();
    for (int64_t s = std::max<int64_t>(0, sequences.sequence_at(begin / heads) - 1); s < sequences.count(); ++s) {
      const int64_t before = heads * sequences.cost_before(s);
      if (before >= end) break;
      const int64_t own = sequences.cost_before(s + 1) - sequences.cost_before(s);
      for (int64_t head = 0; own > 0 && head < heads; ++head) {
        const int64_t at = before + head * own;
        if (at < begin || at >= end) continue;
        scratch.back_to(start);
        run(sequences.at(s, head), scratch);
      }
    }
  });
}

}  // namespace misplace::attention
