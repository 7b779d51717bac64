#include "kernels/sketch.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "ipc/identity/model.h"
#include "ipc/layout/half.h"
#include "kernels/flat_pages.h"
#include "kernels/float_environment.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"

namespace skv {
namespace {

// Channels outside have no scale or step: products of what is inside neither overflow nor become
// subnormal.
constexpr float kLeast = 0x1p-40F;
constexpr float kMost = 0x1p40F;
// A residual is at least this, so that the 2^-12 by which SketchQuery::length is too long covers
// what is lost to subnormal numbers.
constexpr double kResidualMin = 0x1p-60;
// More than the rounding of a root of a sum of 1024 squares in fp32, of numbers rounded once
// before.
constexpr double kUp = 1.0 + 0x1p-12;

// Smallest bf16 >= value, for value >= 0; infinity beyond the largest.
uint16_t bfloat_up(double value) {
  auto single = static_cast<float>(value);
  if (static_cast<double>(single) < value) single = std::nextafter(single, HUGE_VALF);
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(single) + 0xFFFFU) >> 16);
}
float float_up(double value) {
  const auto single = static_cast<float>(value);
  return static_cast<double>(single) < value ? std::nextafter(single, HUGE_VALF) : single;
}

void store_u16(std::byte* at, uint16_t value) { std::memcpy(at, &value, sizeof value); }

// Nearest even, held in -127..127.
float steps_of(float value) {
  return (std::clamp(value, -127.0F, 127.0F) + kRoundMagic) - kRoundMagic;
}

}  // namespace

void append_sketch(
    std::byte* sketch, const SketchLayout& at, uint32_t run, const std::byte* values, bool bfloat) {
  const FloatEnvironment environment;
  const uint32_t lane = run % kTileRuns;
  std::byte* tile = sketch + size_t{run / kTileRuns} * at.tile_bytes();
  std::byte* sides = sketch + at.sides() + size_t{run / kTileRuns} * SketchLayout::kSideBytes;
  std::byte* scale_at = sides + SketchLayout::kScales + size_t{lane} * 2;
  std::byte* residual_at = sides + SketchLayout::kResiduals + size_t{lane} * 2;
  std::byte* length_at = sides + SketchLayout::kLengths + size_t{lane} * 2;
  if (lane == 0) {
    std::memset(tile, 128, at.tile_bytes());
    std::memset(sides, 0, SketchLayout::kSideBytes);
  }
  uint16_t halves[kHeadDimMax];
  std::memcpy(halves, values, size_t{2} * at.k_dim);
  std::fill_n(halves + at.k_dim, (16 - at.k_dim % 16) % 16, uint16_t{0});
  uint16_t magnitude = 0;
  for (uint32_t d = 0; d < at.k_dim; ++d) {
    magnitude = std::max(magnitude, static_cast<uint16_t>(halves[d] & 0x7FFFU));
  }
  if (magnitude >= (bfloat ? 0x7F80U : 0x7C00U)) return;
  const float largest = bfloat ? bfloat_to_float(magnitude) : half_to_float(magnitude);
  uint16_t scale_bits = 0;
  if (largest >= kLeast && largest <= kMost) scale_bits = bfloat_up(double{largest} / 127.0);
  uint8_t bytes[kHeadDimMax];
  SketchRun run_job;
  run_job.values = halves;
  run_job.bfloat = bfloat;
  run_job.count = (at.k_dim + 15) / 16 * 16;
  run_job.scale = bfloat_to_float(scale_bits);
  run_job.per_scale = scale_bits == 0 ? 0.0F : 1.0F / run_job.scale;
  run_job.bytes = bytes;
  simd_sketch_ops().measure(run_job);
  for (uint32_t d = 0; d < at.k_dim; d += 4) {
    std::memcpy(tile + (size_t{d / 4} * kTileRuns + lane) * 4, bytes + d, 4);
  }
  const auto root = [](float square) { return std::sqrt(static_cast<double>(square)) * kUp; };
  store_u16(scale_at, scale_bits);
  store_u16(residual_at, bfloat_up(std::max(root(run_job.residual), kResidualMin)));
  store_u16(length_at, bfloat_up(root(run_job.length)));
}

bool sketch_query(const float* query, uint32_t k_dim, int8_t* steps, SketchQuery& to) {
  float largest = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) {
    if (!std::isfinite(query[d])) return false;
    largest = std::max(largest, std::fabs(query[d]));
  }
  if (!(largest >= kLeast && largest <= kMost)) return false;
  const float per_step = 127.0F / largest;
  to.step = largest / 127.0F;
  double length = 0.0;
  double residual = 0.0;
  int32_t sum = 0;
  for (uint32_t d = 0; d < k_dim; ++d) {
    const float whole = steps_of(query[d] * per_step);
    steps[d] = static_cast<int8_t>(whole);
    sum += steps[d];
    const double left = double{query[d]} - double{to.step} * double{whole};
    residual += left * left;
    length += double{query[d]} * double{query[d]};
  }
  length = std::sqrt(length) * kUp;
  residual = std::sqrt(residual) * kUp;
  // Per unit of |q| |x|, the logit's sum of fp32 products is off by at most k_dim * 2^-24 (and a
  // little), the bound's own operations by 2^-22: twice that is added.
  constexpr double kMargin = 1.0 + 0x1p-12;
  to.length = float_up(length * kMargin);
  to.error = float_up(residual * kMargin + length * (k_dim + 16.0) * 0x1p-23);
  to.offset = -128 * sum;
  return true;
}

namespace {

void measure(SketchRun& run) {
  float residuals[16] = {};
  float lengths[16] = {};
  for (uint32_t d = 0; d < run.count; ++d) {
    const float value = run.bfloat ? bfloat_to_float(run.values[d]) : half_to_float(run.values[d]);
    const float steps = steps_of(value * run.per_scale);
    const float product = run.scale * steps;
    const float left = value - product;
    residuals[d % 16] = std::fma(left, left, residuals[d % 16]);
    lengths[d % 16] = std::fma(product, product, lengths[d % 16]);
    run.bytes[d] = static_cast<uint8_t>(static_cast<int>(steps) + 128);
  }
  run.residual = sum_of_lanes(residuals);
  run.length = sum_of_lanes(lengths);
}

void bounds(const SketchJob& job) {
  for (uint32_t query = 0; query < job.query_count; ++query) {
    const int8_t* steps = job.steps + size_t{query} * job.at.k_dim;
    const SketchQuery& of = job.queries[query];
    for (uint32_t run = 0; run < job.run_count; ++run) {
      const std::byte* tile = job.sketch + size_t{run / kTileRuns} * job.at.tile_bytes();
      int32_t sum = of.offset;
      for (uint32_t d = 0; d < job.at.k_dim; ++d) {
        sum += steps[d] *
               static_cast<int>(tile[(size_t{d / 4} * kTileRuns + run % kTileRuns) * 4 + d % 4]);
      }
      const auto side = [&](uint32_t which) { return side_of_run(job.sketch, job.at, run, which); };
      const float error = std::fma(side(SketchLayout::kLengths), of.error,
                                   side(SketchLayout::kResiduals) * of.length);
      job.bounds[query * job.stride + run] =
          std::fma(static_cast<float>(sum), side(SketchLayout::kScales) * of.step, error);
    }
  }
}

void logits(const PieceJob& job) {
  const FloatEnvironment environment(subnormals_of(job.kind));
  for (size_t i = 0; i < job.count; ++i) {
    for (uint32_t lane = 0; lane < kPieceRuns; ++lane) {
      job.logits[i * kPieceRuns + lane] =
          clean_logit(dot_of_halves(job.kind, job.pieces[i], lane, job.k_dim, job.query));
    }
  }
}

}  // namespace

const SketchOps& reference_sketch_ops() {
  static constexpr SketchOps kOps = {measure, bounds, logits};
  return kOps;
}

}  // namespace skv
