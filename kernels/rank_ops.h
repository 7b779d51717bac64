#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/float_environment.h"
#include "kernels/rank.h"

namespace skv {

// The inner loops of rank, in two versions with the same bits: plain (rank_reference.cc) and
// vectorised (rank_simd.cc). What joins them is one driver, rank.cc.

// All tiles of one page of one (layer, kv head). Query arrays are [query][k_dim].
struct CoarseJob {
  const std::byte* area = nullptr;
  const std::byte* next = nullptr;  // of the page after it, or null: asked for on the way
  uint32_t tile_count = 0;
  uint32_t k_dim = 0;
  IndexKind kind = IndexKind::kMeanSpreadRuns;
  const float* query = nullptr;
  // The squares of a query's channels in steps; null: means only, nothing is written to `coarse`.
  const int8_t* square_steps = nullptr;
  // [query]: what a step of the query times a step of the spread's square stands for.
  const float* square_values = nullptr;
  uint32_t query_count = 0;
  size_t stride = 0;           // of the outputs, from query to query
  float* mean_dots = nullptr;  // of the page's first sentence
  float* coarse = nullptr;
};

// The runs of one sentence.
struct FineJob {
  const std::byte* fine = nullptr;  // scale codes, then residuals
  const std::byte* next = nullptr;  // what is read after this sentence: asked for on the way
  uint32_t next_bytes = 0;
  float scale_m = 0.0F;
  uint32_t k_dim = 0;
  uint32_t runs = 0;
  const float* query_lines = nullptr;  // [query][padded_to_line(k_dim)], see line_query
  uint32_t query_count = 0;
  const float* mean_dots = nullptr;  // of this sentence and query 0
  size_t mean_stride = 0;
  float* logits =
      nullptr;  // of its first run and query 0; up to 15 behind its last are written too
  size_t logit_stride = 0;
};

// A query in the order in which lines of residuals have its channels, the last one padded with 0:
// 16 channels go with the low halves of a line, 16 with the high ones.
void line_query(const float* query, uint32_t k_dim, float* to);

// The squares of a query's channels in steps of the largest; returns what one step of those times
// one of a sentence's squares stands for.
float squares_to_steps(const float* query, uint32_t k_dim, int8_t* steps);

// Queries of a flat scan, [query][k_dim] each; kernels/README.md says what the kinds make of them.
struct FlatQueries {
  const float* first = nullptr;   // kMinMax: the part above 0; else the query
  const float* spread = nullptr;  // kinds of 16-bit values: the query as spread_query leaves it
  const float* second = nullptr;  // kMinMax: the part below 0; kBox: magnitudes
  // kInt8, kInt4: the query in steps, [query][k_dim], and what is to be added to their sums,
  // [query], for values that are stored as value + 128 or value + 8.
  const int8_t* steps = nullptr;
  const int32_t* offsets = nullptr;
  const float* factors = nullptr;  // [query]: kInt8, kInt4: what a step stands for; kBall: length
};

// All runs of one page of a flat kind against all queries.
struct FlatJob {
  const std::byte* area = nullptr;
  const std::byte* next = nullptr;  // the area that is read after it: asked for on the way
  IndexKind kind = IndexKind::kFp16;
  uint32_t run_count = 0;
  uint32_t run_tokens = 0;
  uint32_t k_dim = 0;
  const FlatQueries* queries = nullptr;
  uint32_t query_count = 0;
  size_t stride = 0;        // of the logits, from query to query
  float* logits = nullptr;  // of the page's first run; up to 15 behind its last are written too
  float* maxima = nullptr;  // [query]: made larger
};

// What is asked for ahead of a scan, and from how many queries on: fewer keep up with what the CPU
// asks for by itself.
inline constexpr size_t kScanAhead = 8192;  // bytes
inline constexpr uint32_t kAheadQueries = 4;
inline constexpr uint32_t kByteAheadQueries = 8;  // of kInt8 and of sketches
inline constexpr uint32_t kFlatRoom = 512;        // logits behind the last of a query: 16 blocks

// A query times `scale`, as the kind has it: kBf16 rounds it to bf16.
void scale_query(IndexKind kind, const float* query, float scale, uint32_t k_dim, float* to);

// Every 4 channels of a scaled query as often as a vector of 16 lanes holds them, [k_dim / 4][16]:
// fp32, or for kBf16 pairs of bf16, the lower channel in the low half.
inline constexpr uint32_t kQuerySpread = 4;
void spread_query(IndexKind kind, const float* query, uint32_t k_dim, float* to);

// From masses to scores, all queries of a row in one pass.
struct ShareJob {
  const float* masses = nullptr;   // [query][block]
  size_t stride = 0;               // from query to query
  const float* factors = nullptr;  // [query]
  uint32_t query_count = 0;
  RankReduction reduction = RankReduction::kMean;
  size_t count = 0;         // blocks
  float* totals = nullptr;  // 15 values behind the last are written too
};

struct FlatOps {
  void (*scan)(const FlatJob& job);
  // Logits of all runs to masses of their blocks, in place: run_tokens * the tree of 2^(logit -
  // max) over the runs_per_block of each. Returns the sum of the masses over 16 lanes. `run_count`
  // is a multiple of runs_per_block; up to kFlatRoom values behind it are written too.
  float (*masses)(
      float* logits, float max, uint32_t run_count, uint32_t runs_per_block, float run_tokens);
  // masses * factor of the first query, then fma(masses, factor, that), or the larger; the mean of
  // several times 1 / queries.
  void (*shares)(const ShareJob& job);
};

struct RankOps {
  void (*coarse)(const CoarseJob& job);
  // Logits of runs.
  void (*fine)(const FineJob& job);
  // Arrays of these are padded to a multiple of 16.
  float (*max_of)(const float* values, size_t count);
  // to[i] = 2^(logits[i] - max); returns sum of counts[i] * to[i] over 16 lanes.
  float (*weigh)(const float* logits, const float* counts, float max, size_t count, float* to);
  // totals[i] = fma(weights[i], factor, totals[i]), or max(totals[i], weights[i] * factor).
  void (*add)(
      const float* weights, float factor, RankReduction reduction, size_t count, float* totals);
};

const RankOps& reference_ops();
const RankOps& simd_ops();  // of the target that is chosen now; reference_ops() without fma
const FlatOps& reference_flat_ops();
const FlatOps& simd_flat_ops();

// The dot product of a scaled query with run `lane` of a tile of 16-bit values, as it is defined.
// Requires: an environment of subnormals_of(kind).
float dot_of_halves(
    IndexKind kind, const std::byte* tile, uint32_t lane, uint32_t k_dim, const float* query);

// What the dot products of a kind make of subnormal numbers.
constexpr Subnormals subnormals_of(IndexKind kind) {
  return kind == IndexKind::kBf16 ? Subnormals::kFlushed : Subnormals::kKept;
}

}  // namespace skv
