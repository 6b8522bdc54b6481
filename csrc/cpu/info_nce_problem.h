// What the kernels of info_nce on the CPU work on, one struct for all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace misplace::info_nce {

constexpr int64_t panel = 64;  // keys, or elements of a row, that a product makes side by side

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// c[m, n] (+)= a[m, k] . b[k, n] of bf16 bits, b as [k / 2, n, 2]: oneDNN's brgemm, which finds AMX for itself.
void multiply_pairs(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                    float* c, int64_t ldc, bool add);
void done_multiplying_pairs();  // by a thread: a core's tile registers are its own to give back
bool multiplies_pairs();        // whether brgemm, asked once, gets 1 * 3 + 2 * 4 right

// Row i at data + i * stride, its elements side by side.
template <class T>
struct Rows {
  T* data;
  int64_t stride;

  T* operator[](int64_t i) const { return data + i * stride; }
};

// T: of the tensors, float or the bits of a bf16; Factor: what the products take, of those two.
template <class T, class Factor>
struct Problem {
  Rows<const T> query, key;
  int64_t queries, keys, width, first_row;
  bool pairs, needs_largest;
  int64_t block_rows, round_rows;  // queries whose similarities are held by a thread, by all
  float temperature;
  bool query_gradient, key_gradient;
  // normalised keys, panel by panel: [width][64], and [64][width] as `multiply` takes it
  Factor *by_element, *by_row;
  float *query_inverse, *key_inverse;  // 1 / length of a row
  float* slope;                        // [queries], 1 - probability of the positive
  double* losses;                      // [queries]
  T *d_query, *d_key;
  // for the gradient of the keys
  Factor* powers;    // [panels][round_rows][64], of this round
  Factor* weighted;  // [width][round_rows], queries / their sums of powers
  float* d_keys;     // [panels][width][64]
  // where the queries are their own keys
  float* column_sums;             // [blocks][panels][64]
  double* row_sums;               // [queries]
  float *positive, *inverse_sum;  // [queries], [panels][64]

  int64_t padded() const { return round_up(width, panel); }
  int64_t panels() const { return (keys + panel - 1) / panel; }
  int64_t blocks() const { return (queries + block_rows - 1) / block_rows; }
  int64_t steps() const { return sizeof(Factor) == 2 ? round_up(width, 32) : width; }
  // Also the query whose positive is key first_row + i.
  int64_t partner(int64_t i) const { return pairs ? (i + queries / 2) % queries : i; }
  float share() const { return 1 / (temperature * static_cast<float>(queries)); }
};

// Memory of one thread, taken piece by piece; pieces start on cache lines.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : start_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}))), next_(start_.get()) {}

  void take_back() { next_ = start_.get(); }

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += round_up(count * sizeof(T), 64);
    return piece;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> start_;
  std::byte* next_;
};

}  // namespace misplace::info_nce
