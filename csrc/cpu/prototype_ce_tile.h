// What prototype_ce's loops take, of every instruction set: a tile is up to `tile` prototypes by all rows.
//
// Logits are held transposed, [prototype][row]: a sum over the prototypes runs down the tile, a row per lane, and the
// rows, packed once a call, are the right factor of every product.
#pragma once

#include <cstdint>

namespace misplace::prototype_ce {

constexpr float shortest = 1e-12f;  // a row or prototype shorter than this is divided by this

struct Sizes {
  int64_t views, teacher_views, batch, width, prototypes;

  static int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
  int64_t rows() const { return views * batch; }
  int64_t teacher_rows() const { return teacher_views * batch; }
  int64_t lanes() const { return padded(rows()); }
  int64_t teacher_lanes() const { return padded(teacher_rows()); }
  int64_t columns() const { return padded(width); }
  // the logits of a tile stay in a core's cache
  int64_t tile() const { return lanes() <= 320 ? 128 : 64; }
};

// Of every row, over the prototypes so far: the largest logit and the sum of e^(logit - largest).
struct Running {
  float *largest, *total;
};

// Of a teacher's row also the sum of e^(logit - largest) weighted by what its partners' logits lack to their largest:
// a loss near 0 is a sum of small numbers, not a difference of large ones. `partners` are those of a tile, and
// `moved` is by how much the partners' largest have grown with it, below 0.
struct Weighted {
  const float *partners, *moved;
  float* sum;
};

constexpr float lowest = -1e30f;  // below any logit; its product with 0 is 0

// Of every row: log2 of the sum of 2^(logit - largest), times scale.
struct LogSum {
  const float *largest, *log_total;
};

// Functions of one instruction set; F is what the factors of the products are held in.
template <class F>
struct Kernels {
  void (*normalise_fp32)(const float* rows, int64_t count, int64_t width, int64_t columns, float* inverse, F* out);
  void (*normalise_bf16)(const uint16_t* rows, int64_t count, int64_t width, int64_t columns, float* inverse, F* out);
  void (*backward_fp32)(const float* d_unit, const float* rows, const float* inverse, int64_t count, int64_t width,
                        int64_t columns, float scale, float* out);
  void (*backward_bf16)(const float* d_unit, const uint16_t* rows, const float* inverse, int64_t count, int64_t width,
                        int64_t columns, float scale, uint16_t* out);
  void (*transpose_tile)(const F* from, int64_t rows, int64_t columns, F* to);
  void (*accumulate)(const float* logits, int64_t count, int64_t lanes, float scale, const Running& running,
                     const Weighted* weighted, float* moved);
  void (*centre_teacher)(float* logits, int64_t count, const Sizes& sizes, const float* centre, float scale,
                         float* batch_centre);
  void (*subtract_largest)(float* logits, int64_t count, int64_t lanes, const float* largest);
  void (*sum_partners)(const float* logits, int64_t count, const Sizes& sizes, float* partners);
  void (*to_probabilities)(float* logits, int64_t count, int64_t lanes, float scale, const LogSum& log_sum,
                           const float* factor);
  void (*subtract_teacher)(float* gradients, const float* q, int64_t count, const Sizes& sizes, float* others);
  void (*to_factors)(const float* gradients, int64_t count, int64_t lanes, F* natural, F* paired);
};

}  // namespace misplace::prototype_ce
