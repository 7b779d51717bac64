#include <algorithm>
#include <cmath>
#include <cstring>

#include "ipc/layout/half.h"
#include "ipc/layout/vectors.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"

// The definition of the scores in plain loops; kernels/README.md says the same in words.
namespace skv {
namespace {

float load_half(const std::byte* from, size_t index) {
  uint16_t half = 0;
  std::memcpy(&half, from + index * 2, sizeof half);
  return half_to_float(half);
}

void coarse_sentence(const CoarseJob& job, const std::byte* tile, uint32_t lane, size_t at) {
  const std::byte* codes = tile + RankAreaLayout::spread_codes(job.k_dim);
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* query = job.query + size_t{q} * job.k_dim;
    float dot = 0.0F;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      dot = std::fma(query[d], load_half(tile, size_t{d} * kTileSentences + lane), dot);
    }
    job.mean_dots[q * job.stride + at] = dot;
    if (job.query_square == nullptr) continue;
    const float* square = job.query_square + size_t{q} * job.k_dim;
    float variance = 0.0F;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      const auto code = static_cast<uint8_t>(codes[size_t{d} * kTileSentences + lane]);
      variance = std::fma(square[d], log_code_square(code), variance);
    }
    const float m = load_half(tile + RankAreaLayout::spread_m(job.k_dim), lane);
    job.coarse[q * job.stride + at] = clean_logit(std::fma(variance * (m * m), kHalfLn2, dot));
  }
}

void coarse(const CoarseJob& job) {
  const uint32_t tile_bytes = RankAreaLayout::coarse_tile_bytes(job.kind, job.k_dim);
  for (uint32_t tile = 0; tile < job.tile_count; ++tile) {
    for (uint32_t lane = 0; lane < kTileSentences; ++lane) {
      coarse_sentence(job, job.area + size_t{tile} * tile_bytes, lane,
                      size_t{tile} * kTileSentences + lane);
    }
  }
}

int residual_of(const std::byte* tiles, uint32_t k_dim, uint32_t runs, uint32_t run, uint32_t d) {
  const uint32_t first_run = run / kTileRuns * kTileRuns;
  const uint32_t row_bytes = VectorRecordLayout::tile_width(runs, first_run) / 2;
  const std::byte* tile = tiles + VectorRecordLayout::tile_offset(k_dim, first_run);
  const uint32_t lane = run - first_run;
  const auto pair = static_cast<uint32_t>(tile[size_t{d} * row_bytes + lane / 2]);
  const auto nibble = static_cast<int>((pair >> (lane % 2 * 4)) & 0xFU);
  return nibble < 8 ? nibble : nibble - 16;
}

// Neighbours first: ((0 + 1) + (2 + 3)) + ..; `count` is a power of two.
float sum_of_neighbours(float* values, uint32_t count) {
  for (; count > 1; count /= 2) {
    for (uint32_t i = 0; i < count / 2; ++i)
      values[i] = values[size_t{2} * i] + values[size_t{2} * i + 1];
  }
  return values[0];
}

void fine(const FineJob& job) {
  const std::byte* tiles = job.fine + job.k_dim;
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* query = job.query + size_t{q} * job.k_dim;
    float* scaled = job.query_scale;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      scaled[d] = query[d] * (job.scale_m * log_code_factor(static_cast<uint8_t>(job.fine[d])));
    }
    float logits[kSentenceTokensMax];
    float max = kLogitNone;
    for (uint32_t run = 0; run < job.runs; ++run) {
      float dot = 0.0F;
      for (uint32_t d = 0; d < job.k_dim; ++d) {
        const int residual = residual_of(tiles, job.k_dim, job.runs, run, d);
        dot = std::fma(scaled[d], static_cast<float>(residual), dot);
      }
      logits[run] = clean_logit(dot + job.mean_dots[q * job.mean_stride]);
      max = std::max(max, logits[run]);
    }
    job.sentence_max[q * job.max_stride] = max;
    for (uint32_t run = 0; run < job.runs; ++run) logits[run] = exp2_of(logits[run] - max);
    for (uint32_t first = 0; first < job.runs; first += job.runs_per_block) {
      job.block_sums[q * job.sum_stride + first / job.runs_per_block] =
          sum_of_neighbours(logits + first, job.runs_per_block) * job.run_tokens;
    }
  }
}

float max_of(const float* values, size_t count) {
  float max = kLogitNone;
  for (size_t i = 0; i < count; ++i) max = std::max(max, values[i]);
  return max;
}

float weigh(const float* logits, const float* counts, float max, size_t count, float* to) {
  float lanes[16] = {};
  for (size_t i = 0; i < count; ++i) {
    to[i] = exp2_of(logits[i] - max);
    lanes[i % 16] = std::fma(counts[i], to[i], lanes[i % 16]);
  }
  return sum_of_lanes(lanes);
}

void add(const float* weights, float factor, RankReduction reduction, size_t count, float* totals) {
  for (size_t i = 0; i < count; ++i) {
    totals[i] = reduction == RankReduction::kMean ? std::fma(weights[i], factor, totals[i])
                                                  : std::max(totals[i], weights[i] * factor);
  }
}

}  // namespace

const RankOps& reference_ops() {
  static constexpr RankOps kOps = {coarse, fine, max_of, weigh, add};
  return kOps;
}

}  // namespace skv
