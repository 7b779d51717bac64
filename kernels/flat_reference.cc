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

// Of channel d as it is stored: value + 128, or value + 8.
int byte_of(const std::byte* tile, uint32_t d, uint32_t lane) {
  return static_cast<int>(tile[(size_t{d / 4} * kTileRuns + lane) * 4 + d % 4]);
}
int nibble_of(const std::byte* tile, uint32_t d, uint32_t lane) {
  const auto pair = static_cast<int>(tile[(size_t{d / 8} * kTileRuns + lane) * 4 + d % 4]);
  return d % 8 < 4 ? pair & 0xF : pair >> 4;
}

// A sum in integers has no order: exact, below 2^31 for kHeadDimMax channels.
int32_t sum_of_steps(const FlatJob& job, const std::byte* tile, uint32_t lane, uint32_t query) {
  const int8_t* steps = job.queries->steps + size_t{query} * job.k_dim;
  const bool bytes = job.kind == IndexKind::kInt8;
  int32_t sum = job.queries->offsets[query];
  for (uint32_t d = 0; d < job.k_dim; ++d) {
    sum += steps[d] * (bytes ? byte_of(tile, d, lane) : nibble_of(tile, d, lane));
  }
  return sum;
}

// Not inlined: the caller sets the environment.
[[gnu::noinline]] float logit_of(const FlatJob& job,
                                 const std::byte* tile,
                                 uint32_t run,
                                 uint32_t query) {
  const uint32_t lane = run % kTileRuns;
  const float* first = job.queries->first + size_t{query} * job.k_dim;
  const float* second = job.queries->second + size_t{query} * job.k_dim;
  float dots[2] = {};  // of even channels, of odd ones
  float others[2] = {};
  switch (job.kind) {
    case IndexKind::kInt8:
    case IndexKind::kInt4:
      return static_cast<float>(sum_of_steps(job, tile, lane, query)) *
             (job.queries->factors[query] * load_half(job.area, run));
    case IndexKind::kMinMax:
      for (uint32_t d = 0; d < job.k_dim; ++d) {
        float& dot = dots[d % 2];
        dot = std::fma(second[d], load_half(tile, size_t{d} * 32 + lane), dot);
        dot = std::fma(first[d], load_half(tile, size_t{d} * 32 + 16 + lane), dot);
      }
      return dots[0] + dots[1];
    default:
      break;
  }
  const float dot = dot_of_halves(job.kind, tile, lane, job.k_dim, first);
  if (job.kind == IndexKind::kBall) {
    return std::fma(job.queries->factors[query], load_half(job.area, run), dot);
  }
  if (job.kind != IndexKind::kBox) return dot;
  const std::byte* widths = tile + FlatAreaLayout::box_widths(job.k_dim);
  for (uint32_t d = 0; d < job.k_dim; ++d) {
    const auto width = static_cast<float>(static_cast<uint8_t>(widths[size_t{d} * 16 + lane]));
    others[d % 2] = std::fma(second[d], width, others[d % 2]);
  }
  return std::fma(others[0] + others[1], load_half(job.area, run), dot);
}

void scan(const FlatJob& job) {
  const FloatEnvironment environment(subnormals_of(job.kind));
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

float masses(float* logits,
             // NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
             float max,
             uint32_t run_count,
             uint32_t runs_per_block,
             float run_tokens) {
  for (uint32_t run = 0; run < run_count; ++run) logits[run] = exp2_of(logits[run] - max);
  uint32_t count = run_count;
  for (uint32_t width = runs_per_block; width > 1; width /= 2) {
    count /= 2;
    for (uint32_t i = 0; i < count; ++i)
      logits[i] = logits[size_t{2} * i] + logits[size_t{2} * i + 1];
  }
  float lanes[16] = {};
  for (uint32_t i = 0; i < count; ++i) {
    logits[i] = logits[i] * run_tokens;
    lanes[i % 16] = lanes[i % 16] + logits[i];
  }
  return sum_of_lanes(lanes);
}

void shares(const ShareJob& job) {
  const bool is_mean = job.reduction == RankReduction::kMean;
  const float per_query = 1.0F / static_cast<float>(job.query_count);
  for (size_t i = 0; i < job.count; ++i) {
    float total = job.masses[i] * job.factors[0];
    for (uint32_t q = 1; q < job.query_count; ++q) {
      const float mass = job.masses[q * job.stride + i];
      total =
          is_mean ? std::fma(mass, job.factors[q], total) : std::max(total, mass * job.factors[q]);
    }
    job.totals[i] = is_mean && job.query_count > 1 ? total * per_query : total;
  }
}

}  // namespace

float dot_of_halves(
    IndexKind kind, const std::byte* tile, uint32_t lane, uint32_t k_dim, const float* query) {
  const auto bits = [&](uint32_t d) {
    return load_u16(tile + FlatAreaLayout::value(k_dim, d, lane), 0);
  };
  if (kind == IndexKind::kBf16) {
    float pairs[2] = {};
    for (uint32_t d = 0; d < k_dim; d += 2) {
      float& sum = pairs[d / 2 % 2];
      sum = std::fma(query[d + 1], bfloat_to_float(bits(d + 1)), sum);
      sum = std::fma(query[d], bfloat_to_float(bits(d)), sum);
    }
    return pairs[0] + pairs[1];
  }
  float lanes[4] = {};
  for (uint32_t d = 0; d < k_dim; ++d) {
    lanes[d % 4] = std::fma(query[d], half_to_float(bits(d)), lanes[d % 4]);
  }
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

const FlatOps& reference_flat_ops() {
  static constexpr FlatOps kOps = {scan, masses, shares};
  return kOps;
}

}  // namespace skv
