#include <cmath>

#include "kernels/derive.h"

namespace skv {
namespace {

// One run: its keys as fp32, only those of tokens that count, and their mean. Arrays of [k_dim].
struct Run {
  const float* keys = nullptr;  // [count][k_dim]
  const float* mean = nullptr;
  uint32_t count = 0;
  uint32_t k_dim = 0;
  bool finite = true;

  const float* key(uint32_t i) const { return keys + size_t{i} * k_dim; }
};

float largest_of(const float* values, uint32_t count) {
  float largest = 0.0F;
  for (uint32_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

float squared_distance(const float* a, const float* b, uint32_t k_dim) {
  float sum = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return held_finite(sum);
}

void write_halves(const float* values, uint32_t k_dim, std::byte* to) {
  for (uint32_t d = 0; d < k_dim; ++d) store_u16(to + size_t{2} * d, float_to_half(values[d]));
}

// value / scale, nearest even, held in -limit..limit.
int steps_of(float value, float scale, float limit) {
  if (!(scale > 0.0F)) return 0;
  return static_cast<int>(round_to_even(std::clamp(value / scale, -limit, limit)));
}

void write_bytes(const Run& run, std::byte* to) {
  const uint16_t half = float_to_half_up(largest_of(run.mean, run.k_dim) / 127.0F);
  store_u16(to, half);
  for (uint32_t d = 0; d < run.k_dim; ++d) {
    to[2 + d] = static_cast<std::byte>(steps_of(run.mean[d], half_to_float(half), 127.0F));
  }
}

void write_nibbles(const Run& run, std::byte* to) {
  const uint16_t half = float_to_half_up(largest_of(run.mean, run.k_dim) / 7.0F);
  store_u16(to, half);
  const float scale = half_to_float(half);
  for (uint32_t d = 0; d < run.k_dim; d += 2) {
    const int low = steps_of(run.mean[d], scale, 7.0F);
    const int high = steps_of(run.mean[d + 1], scale, 7.0F);
    to[2 + d / 2] = static_cast<std::byte>((low & 0xF) | (high & 0xF) << 4);
  }
}

struct Range {
  float least;
  float largest;
};
Range range_of(const Run& run, uint32_t d) {
  Range range{run.key(0)[d], run.key(0)[d]};
  for (uint32_t i = 1; i < run.count; ++i) {
    range.least = std::min(range.least, run.key(i)[d]);
    range.largest = std::max(range.largest, run.key(i)[d]);
  }
  return range;
}

void write_min_max(const Run& run, std::byte* to) {
  for (uint32_t d = 0; d < run.k_dim; ++d) {
    const Range range = range_of(run, d);
    store_u16(to + size_t{2} * d, float_to_half_below(range.least));
    store_u16(to + size_t{2} * (run.k_dim + d), float_to_half_above(range.largest));
  }
}

// `widths` is working memory of [k_dim].
void write_box(const Run& run, float* widths, std::byte* to) {
  for (uint32_t d = 0; d < run.k_dim; ++d) {
    const Range range = range_of(run, d);
    const uint16_t half = float_to_half(range.least * 0.5F + range.largest * 0.5F);
    const float centre = half_to_float(half);
    store_u16(to + size_t{2} * d, half);
    widths[d] = held_finite(std::max(range.largest - centre, centre - range.least));
  }
  const uint16_t step_half = float_to_half_up(largest_of(widths, run.k_dim) / 255.0F);
  const float step = half_to_float(step_half);
  store_u16(to + size_t{2} * run.k_dim, step_half);
  for (uint32_t d = 0; d < run.k_dim; ++d) {
    // The smallest count of steps that reaches the width: a bound stays one.
    float steps = step > 0.0F ? std::min(255.0F, std::floor(widths[d] / step)) : 0.0F;
    while (steps < 255.0F && steps * step < widths[d]) steps += 1.0F;
    to[2 * run.k_dim + 2 + d] = static_cast<std::byte>(static_cast<int>(steps));
  }
}

// `centre` is working memory of [k_dim].
void write_ball(const Run& run, float* centre, std::byte* to) {
  write_halves(run.mean, run.k_dim, to);
  for (uint32_t d = 0; d < run.k_dim; ++d) centre[d] = half_to_float(load_u16(to + size_t{2} * d));
  float largest = 0.0F;
  for (uint32_t i = 0; i < run.count; ++i) {
    largest = std::max(largest, squared_distance(run.key(i), centre, run.k_dim));
  }
  // The sum and the root are rounded: by less than 2^-14 in all, which is added.
  store_u16(to + size_t{2} * run.k_dim, float_to_half_up(std::sqrt(largest) * (1.0F + 0x1p-14F)));
}

void write_nearest_key(const Run& run, std::byte* to) {
  uint32_t best = 0;
  float best_distance = 0.0F;
  for (uint32_t i = 0; i < run.count; ++i) {
    const float distance = squared_distance(run.key(i), run.mean, run.k_dim);
    if (i != 0 && !(distance < best_distance)) continue;
    best = i;
    best_distance = distance;
  }
  write_halves(run.key(best), run.k_dim, to);
}

// The run scores 0 against every query.
void write_nothing(IndexKind kind, uint32_t k_dim, std::byte* to) {
  std::memset(to, 0, flat_run_bytes(kind, k_dim));
  const bool scale_first = kind == IndexKind::kInt8 || kind == IndexKind::kInt4;
  const bool scale_last = kind == IndexKind::kBox || kind == IndexKind::kBall;
  if (scale_first || !scale_last) {
    store_u16(to, kind == IndexKind::kBf16 ? kBfloatNan : kHalfNan);
  } else {
    store_u16(to + size_t{2} * k_dim, kHalfNan);
  }
}

void write_run(IndexKind kind, const Run& run, float* work, std::byte* to) {
  if (run.count == 0 || !run.finite) {
    write_nothing(kind, run.k_dim, to);
    return;
  }
  switch (kind) {
    case IndexKind::kFp16:
      return write_halves(run.mean, run.k_dim, to);
    case IndexKind::kBf16:
      for (uint32_t d = 0; d < run.k_dim; ++d) {
        store_u16(to + size_t{2} * d, float_to_bfloat(run.mean[d]));
      }
      return;
    case IndexKind::kInt8:
      return write_bytes(run, to);
    case IndexKind::kInt4:
      return write_nibbles(run, to);
    case IndexKind::kMinMax:
      return write_min_max(run, to);
    case IndexKind::kBox:
      return write_box(run, work, to);
    case IndexKind::kBall:
      return write_ball(run, work, to);
    case IndexKind::kKeys:
      return write_nearest_key(run, to);
    case IndexKind::kMeanSpreadRuns:
    case IndexKind::kMean:
      return;
  }
}

Result<void> check_halves(const std::byte* halves, uint32_t count, bool bfloat) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint16_t value = load_u16(halves + size_t{2} * i);
    if (bfloat ? bfloat_is_finite(value) : half_is_finite(value)) continue;
    return invalid_vectors("value " + std::to_string(i) + " is not finite");
  }
  return {};
}

Result<void> check_scale(const std::byte* at) {
  const uint16_t half = load_u16(at);
  if (half_is_finite(half) && (half & 0x8000U) == 0) return {};
  return invalid_vectors("scale: not a finite number >= 0");
}

Result<void> check_run(IndexKind kind, uint32_t k_dim, const std::byte* run) {
  switch (kind) {
    case IndexKind::kInt8:
    case IndexKind::kInt4:
      for (uint32_t at = 2; at < flat_run_bytes(kind, k_dim); ++at) {
        const auto byte = static_cast<uint32_t>(run[at]);
        if (kind == IndexKind::kInt8 ? byte != 0x80U : (byte & 0xFU) != 8U && byte >> 4 != 8U) {
          continue;
        }
        return invalid_vectors("smallest integer, which has no opposite, at byte " +
                               std::to_string(at));
      }
      return check_scale(run);
    case IndexKind::kMinMax:
      if (Result<void> checked = check_halves(run, 2 * k_dim, false); !checked.ok()) return checked;
      for (uint32_t d = 0; d < k_dim; ++d) {
        if (half_to_float(load_u16(run + size_t{2} * d)) <=
            half_to_float(load_u16(run + size_t{2} * (k_dim + d)))) {
          continue;
        }
        return invalid_vectors("channel " + std::to_string(d) + ": smallest above largest");
      }
      return {};
    case IndexKind::kBox:
    case IndexKind::kBall:
      if (Result<void> checked = check_halves(run, k_dim, false); !checked.ok()) return checked;
      return check_scale(run + size_t{2} * k_dim);
    default:
      return check_halves(run, k_dim, kind == IndexKind::kBf16);
  }
}

}  // namespace

void derive_flat(const KeyRows& keys,
                 const IndexDescriptor& index,
                 const TokenMask& mask,
                 std::byte* record,
                 DeriveScratch& scratch) {
  const uint32_t k_dim = keys.k_dim;
  if (scratch.rows.size() < size_t{index.run_tokens} * k_dim) {
    scratch.rows.resize(size_t{index.run_tokens} * k_dim);
  }
  if (scratch.channels.size() < size_t{2} * k_dim) scratch.channels.resize(size_t{2} * k_dim);
  float* mean = scratch.channels.data();
  const uint32_t runs = run_count(keys.block_count, keys.block_tokens, index.run_tokens);
  for (uint32_t i = 0; i < runs; ++i) {
    Run run;
    run.keys = scratch.rows.data();
    run.mean = mean;
    run.k_dim = k_dim;
    std::fill_n(mean, k_dim, 0.0F);
    for (uint32_t token = i * index.run_tokens; token < (i + 1) * index.run_tokens; ++token) {
      if (!mask.holds(token)) continue;
      float* key = scratch.rows.data() + size_t{run.count++} * k_dim;
      load_row(keys.blocks + token / keys.block_tokens * keys.block_stride +
                   token % keys.block_tokens * keys.row_stride,
               keys.dtype, k_dim, key);
      for (uint32_t d = 0; d < k_dim; ++d) {
        run.finite = run.finite && key[d] - key[d] == 0.0F;
        mean[d] += key[d];
      }
    }
    for (uint32_t d = 0; d < k_dim && run.count != 0; ++d) {
      mean[d] = held_finite(mean[d]) / static_cast<float>(run.count);
    }
    write_run(index.kind, run, mean + k_dim,
              record + size_t{i} * flat_run_bytes(index.kind, k_dim));
  }
}

Result<void> check_flat(IndexKind kind, uint32_t k_dim, uint32_t runs, const std::byte* record) {
  for (uint32_t i = 0; i < runs; ++i) {
    const Result<void> checked =
        check_run(kind, k_dim, record + size_t{i} * flat_run_bytes(kind, k_dim));
    if (checked.ok()) continue;
    return invalid_vectors("run " + std::to_string(i) + ", " + checked.error().message);
  }
  return {};
}

}  // namespace skv
