// One head of one image, as the kernels of every instruction set take it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace misplace::attention {

constexpr int query_block = 64;  // queries whose scores against every key are held at once

// Row i at data + i * stride, its elements side by side.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

struct Sizes {
  int64_t queries, keys, head_dim;
  float scale;

  int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t padded_keys() const { return (keys + 15) / 16 * 16; }
};

template <class T>
struct ForwardHead {
  Rows<const T> q, k, v;
  Rows<T> out;
  float* statistics;  // [2, queries]: largest, 1 / sum; null where nobody will ask for gradients
};

template <class T>
struct BackwardHead {
  Rows<const T> q, k, v, dout;
  Rows<T> dq, dk, dv;
  const float* statistics;
};

// Memory of one thread, taken piece by piece and given back from the end; pieces start on cache lines.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : start_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}))), next_(start_.get()) {}

  std::byte* mark() const { return next_; }
  void back_to(std::byte* mark) { next_ = mark; }

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> start_;
  std::byte* next_;
};

// Enough for the forward or backward of one head. Tiles of scores: 6; operands with a row per key: 6 (fp32),
// with a row per query of a block: 5; and a line lost per piece.
inline size_t scratch_bytes(const Sizes& sizes) {
  const int64_t keys = sizes.padded_keys(), dim = sizes.padded_dim();
  const int64_t floats = 6 * keys * query_block + 6 * keys * dim + 5 * query_block * dim + 8 * query_block;
  return sizeof(float) * floats + 32 * 64;
}

}  // namespace misplace::attention
