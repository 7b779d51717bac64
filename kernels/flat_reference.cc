#include <algorithm>
#include <cmath>
#include <cstring>

#include "ipc/layout/half.h"
#include "kernels/flat_pages.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"

// The flat kinds of kernels/README.md in plain loops.
namespace skv {
namespace {

uint16_t load_u16(const std::byte* from, size_t index) {
  uint16_t value = 0;
  std::memcpy(&value, from + index * 2, sizeof value);
  return value;
}
float load_half(const std::byte* from, size_t index) {
  return half_to_float(load_u16(from, index));
}

int nibble_of(const std::byte* tile, uint32_t d, uint32_t lane) {
  uint32_t word = 0;
  std::memcpy(&word, tile + (size_t{d / 8} * kTileRuns + lane) * 4, sizeof word);
  const auto nibble = static_cast<int>((word >> (16 * (d % 2) + 4 * (d % 8 / 2))) & 0xFU);
  return nibble < 8 ? nibble : nibble - 16;
}

// A sum in integers has no order: exact, below 2^31 for kHeadDimMax channels.
int32_t sum_of_steps(const FlatJob& job, const std::byte* tile, uint32_t lane, uint32_t query) {
  const int16_t* steps = job.queries->steps + size_t{query} * job.k_dim;
  int32_t sum = 0;
  for (uint32_t d = 0; d < job.k_dim; ++d) {
    const int value =
        job.kind == IndexKind::kInt4
            ? nibble_of(tile, d, lane)
            : static_cast<int8_t>(tile[(size_t{d / 2} * kTileRuns + lane) * 2 + d % 2]);
    sum += steps[d] * value;
  }
  return sum;
}

float logit_of(const FlatJob& job, const std::byte* tile, uint32_t run, uint32_t query) {
  const uint32_t lane = run % kTileRuns;
  const float* first = job.queries->first + size_t{query} * job.k_dim;
  const float* second = job.queries->second + size_t{query} * job.k_dim;
  float dot = 0.0F;
  float other = 0.0F;
  switch (job.kind) {
    case IndexKind::kInt8:
    case IndexKind::kInt4:
      return static_cast<float>(sum_of_steps(job, tile, lane, query)) *
             (job.queries->factors[query] * load_half(job.area, run));
    case IndexKind::kMinMax:
      for (uint32_t d = 0; d < job.k_dim; ++d) {
        dot = std::fma(second[d], load_half(tile, size_t{d} * 32 + lane), dot);
        dot = std::fma(first[d], load_half(tile, size_t{d} * 32 + 16 + lane), dot);
      }
      return dot;
    case IndexKind::kBf16:
      for (uint32_t d = 0; d < job.k_dim; ++d) {
        dot = std::fma(first[d], bfloat_to_float(load_u16(tile, size_t{d} * 16 + lane)), dot);
      }
      return dot;
    default:
      break;
  }
  for (uint32_t d = 0; d < job.k_dim; ++d) {
    dot = std::fma(first[d], load_half(tile, size_t{d} * 16 + lane), dot);
  }
  if (job.kind == IndexKind::kBall) {
    return std::fma(job.queries->factors[query], load_half(job.area, run), dot);
  }
  if (job.kind != IndexKind::kBox) return dot;
  const std::byte* widths = tile + FlatAreaLayout::box_widths(job.k_dim);
  for (uint32_t d = 0; d < job.k_dim; ++d) {
    const auto width = static_cast<float>(static_cast<uint8_t>(widths[size_t{d} * 16 + lane]));
    other = std::fma(second[d], width, other);
  }
  return std::fma(other, load_half(job.area, run), dot);
}

void scan(const FlatJob& job) {
  const std::byte* tiles = job.area + FlatAreaLayout::tiles(job.kind, job.run_tokens);
  const size_t tile_bytes = FlatAreaLayout::tile_bytes(job.kind, job.k_dim);
  for (uint32_t query = 0; query < job.query_count; ++query) {
    for (uint32_t run = 0; run < job.run_count; ++run) {
      const float logit =
          clean_logit(logit_of(job, tiles + run / kTileRuns * tile_bytes, run, query));
      job.logits[query * job.stride + run] = logit;
      job.maxima[query] = std::max(job.maxima[query], logit);
    }
  }
}

float masses(
    float* logits, float max, uint32_t run_count, uint32_t runs_per_block, float run_tokens) {
  for (uint32_t run = 0; run < run_count; ++run) logits[run] = exp2_of(logits[run] - max);
  uint32_t count = run_count;
  for (uint32_t width = runs_per_block; width > 1; width /= 2) {
    count /= 2;
    for (uint32_t i = 0; i < count; ++i) logits[i] = logits[2 * i] + logits[2 * i + 1];
  }
  float lanes[16] = {};
  for (uint32_t i = 0; i < count; ++i) {
    logits[i] = logits[i] * run_tokens;
    lanes[i % 16] = lanes[i % 16] + logits[i];
  }
  return sum_of_lanes(lanes);
}

void first_share(const float* masses, float factor, size_t count, float* totals) {
  for (size_t i = 0; i < count; ++i) totals[i] = masses[i] * factor;
}

}  // namespace

const FlatOps& reference_flat_ops() {
  static constexpr FlatOps kOps = {scan, masses, first_share};
  return kOps;
}

}  // namespace skv
