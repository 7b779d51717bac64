#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ipc/layout/half.h"
#include "ipc/layout/vectors.h"
#include "kernels/rank_math.h"
#include "kernels/rank_pages.h"

namespace skv {

// A small copy of the vectors of kFp16, kBf16 and kKeys, from which the logit of every run is
// bounded before any is read whole: x ~ x' = scale * n, n in -127..127, and how far x is from that.
// A query is taken apart in the same way, q ~ q' = step * Q, and then
//
//   q.x <= q'.x' + |q| |x - x'| + |q - q'| |x'|       (Cauchy-Schwarz, twice)
//
// q'.x' is a sum of integers. What rounding adds, of the logit as it is defined
// (kernels/README.md) and of the bound itself, is in the factors of SketchQuery: the bound holds
// for the fp32 numbers, not only for the real ones.
//
// Of one (layer, kv head) of a page, from FlatAreaLayout::sketch:
//   tiles   [d / 4][16][4] of n + 128, as the tiles of kInt8
//   sides   of each tile: bf16 scales [16], residuals [16]: |x - x'|, rounded up, lengths [16]:
//           |x'|, rounded up
// A vector beyond all measure, or none, has scale 0; one that is not finite has all of them 0, as
// its logit never counts.
struct SketchLayout {
  uint32_t k_dim;
  uint32_t runs_max;

  constexpr uint32_t tile_bytes() const { return kTileRuns * k_dim; }
  constexpr uint32_t sides() const { return k_dim * runs_max; }
  static constexpr uint32_t kSideBytes = 6 * kTileRuns;  // of a tile
  static constexpr uint32_t kScales = 0;
  static constexpr uint32_t kResiduals = 2 * kTileRuns;
  static constexpr uint32_t kLengths = 4 * kTileRuns;
  static constexpr uint32_t bytes(uint32_t k_dim, uint32_t runs_max) {
    return (k_dim + 6) * runs_max;
  }
};

// Puts run `run` of a page, of 2 bytes per channel, into its sketch.
void append_sketch(
    std::byte* sketch, const SketchLayout& at, uint32_t run, const std::byte* values, bool bfloat);

// What the bound of a logit needs of one query, beside its steps.
struct SketchQuery {
  float step = 0.0F;
  float length = 0.0F;  // what a residual counts for
  float error = 0.0F;   // what a length counts for
  int32_t offset = 0;   // -128 * the sum of the steps
};
// Takes apart a query that is already scaled. False: not finite, zero or beyond all measure.
bool sketch_query(const float* query, uint32_t k_dim, int8_t* steps, SketchQuery& to);

// All runs of one page's sketch against all queries.
struct SketchJob {
  const std::byte* sketch = nullptr;
  const std::byte* next = nullptr;  // what is read after it: asked for on the way
  SketchLayout at{};
  uint32_t run_count = 0;
  const int8_t* steps = nullptr;  // [query][k_dim]
  const SketchQuery* queries = nullptr;
  uint32_t query_count = 0;
  size_t stride = 0;        // of the bounds, from query to query
  float* bounds = nullptr;  // [query][run]; up to 15 behind the last are written too
};
// What a side of one run says.
inline float side_of_run(const std::byte* sketch,
                         const SketchLayout& at,
                         uint32_t run,
                         uint32_t side) {
  uint16_t value = 0;
  std::memcpy(&value,
              sketch + at.sides() + size_t{run / kTileRuns} * SketchLayout::kSideBytes + side +
                  size_t{run % kTileRuns} * 2,
              sizeof value);
  return bfloat_to_float(value);
}
// What no logit of a run is below where `bound` is what none is above; kLogitNone of a run that
// never counts. The factors of SketchQuery leave room for what is rounded here too.
inline float least_logit(const std::byte* sketch,
                         const SketchLayout& at,
                         uint32_t run,
                         const SketchQuery& query,
                         float bound) {
  const float residual = side_of_run(sketch, at, run, SketchLayout::kResiduals);
  const float error =
      side_of_run(sketch, at, run, SketchLayout::kLengths) * query.error + residual * query.length;
  return residual == 0.0F ? kLogitNone : std::max(bound - 2.0F * error, kLogitNone);
}

// Pieces of tiles (kernels/flat_pages.h) against one query.
struct PieceJob {
  const std::byte* const* pieces = nullptr;
  size_t count = 0;
  IndexKind kind = IndexKind::kFp16;  // one that has a sketch
  uint32_t k_dim = 0;
  const float* query = nullptr;
  const float* spread = nullptr;  // FlatQueries::spread
  float* logits = nullptr;        // [piece][8]; up to 8 behind the last are written too
};

// One vector taken apart: what append_sketch asks for.
struct SketchRun {
  const uint16_t* values = nullptr;
  bool bfloat = false;
  uint32_t count = 0;  // a multiple of 16; channels behind k_dim are 0
  float scale = 0.0F;
  float per_scale = 0.0F;    // 1 / scale, or 0
  uint8_t* bytes = nullptr;  // n + 128
  float residual = 0.0F;     // |x - x'|^2, sum16 by fma
  float length = 0.0F;       // |x'|^2
};

struct SketchOps {
  void (*measure)(SketchRun& run);
  // bound = fma(sum, scale * step, fma(length, error, residual * query length)).
  void (*bounds)(const SketchJob& job);
  void (*logits)(const PieceJob& job);
};
const SketchOps& reference_sketch_ops();
const SketchOps& simd_sketch_ops();  // of the target that is chosen now

}  // namespace skv
