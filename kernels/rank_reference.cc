#include <algorithm>
#include <bit>
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
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* query = job.query + size_t{q} * job.k_dim;
    float dot = 0.0F;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      dot = std::fma(query[d], load_half(tile, size_t{d} * kTileSentences + lane), dot);
    }
    job.mean_dots[q * job.stride + at] = dot;
    if (job.square_steps == nullptr) continue;
    const int8_t* steps = job.square_steps + size_t{q} * job.k_dim;
    int sum = 0;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      sum += steps[d] * static_cast<int>(tile[RankAreaLayout::square(job.k_dim, d, lane)]);
    }
    const float variance = static_cast<float>(sum) * job.square_values[q];
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

int residual_of(const std::byte* residuals, uint32_t k_dim, uint32_t run, uint32_t channel) {
  const ResidualPlace at = residual_place(k_dim, run, channel);
  return static_cast<int>((static_cast<uint32_t>(residuals[at.byte]) >> at.shift) & 0xFU) - 8;
}

// Nearest even; 0 where that is no step (the query is not finite, and its logits none).
int step_of(float value) {
  const float whole = (value + kRoundMagic) - kRoundMagic;
  return std::fabs(whole) <= static_cast<float>(kQuerySteps) ? static_cast<int>(whole) : 0;
}

void fine(const FineJob& job) {
  const uint32_t padded = padded_to_line(job.k_dim);
  float scaled[kHeadDimMax];
  int steps[kHeadDimMax];
  for (uint32_t q = 0; q < job.query_count; ++q) {
    float largest = 0.0F;
    for (uint32_t d = 0; d < job.k_dim; ++d) {
      // Channels in their own order: a line is two halves.
      const uint32_t line = d / kLineChannels * kLineChannels;
      const uint32_t half = std::min(job.k_dim - line, kLineChannels) / 2;
      const uint32_t place = d - line < half ? d : d - half + kLineChannels / 2;
      scaled[d] = job.query_lines[q * padded + place] *
                  (job.scale_m * log_code_factor(static_cast<uint8_t>(job.fine[d])));
      largest = std::max(largest, std::fabs(scaled[d]));
    }
    const bool any = largest >= kStepsMin;
    const float per_step = any ? static_cast<float>(kQuerySteps) / largest : 0.0F;
    float step = any ? largest / static_cast<float>(kQuerySteps) : 0.0F;
    if (!std::isfinite(job.scale_m)) step = std::bit_cast<float>(0x7FC00000U);
    for (uint32_t d = 0; d < job.k_dim; ++d) steps[d] = step_of(scaled[d] * per_step);
    for (uint32_t run = 0; run < job.runs; ++run) {
      int sum = 0;
      for (uint32_t d = 0; d < job.k_dim; ++d) {
        sum += steps[d] * residual_of(job.fine + job.k_dim, job.k_dim, run, d);
      }
      job.logits[q * job.logit_stride + run] =
          clean_logit(std::fma(static_cast<float>(sum), step, job.mean_dots[q * job.mean_stride]));
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
