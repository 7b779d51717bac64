#include "kernels/vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "ipc/layout/half.h"
#include "ipc/types/check.h"
#include "kernels/derive.h"
#include "kernels/float_environment.h"

namespace skv {
namespace {

// Smallest code whose value, made larger by half a step, reaches `wanted`: the nearest in ratio.
uint8_t log_code(float m, float wanted) {
  constexpr float kHalfStep = 0x1.059b0ep+0F;  // 2^(1/32)
  if (!(wanted > 0.0F)) return 0;
  uint32_t low = 1;
  uint32_t high = 255;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    const float value = m * log_code_factor(static_cast<uint8_t>(middle));
    if (value * kHalfStep >= wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return static_cast<uint8_t>(low);
}

// Writes m and the codes of `values` (finite, >= 0).
void write_codes(const float* values, uint32_t k_dim, std::byte* m_at, std::byte* codes_at) {
  float largest = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) largest = std::max(largest, values[d]);
  const uint16_t m_half = float_to_half_up(largest);
  const float m = half_to_float(m_half);
  store_u16(m_at, m_half);
  for (uint32_t d = 0; d < k_dim; ++d) {
    codes_at[d] = static_cast<std::byte>(log_code(m, values[d]));
  }
}

// The arrays of one derivation, all [k_dim], in DeriveScratch::channels.
struct Channels {
  float* mean;    // as rounded to fp16; 0 where poisoned
  float* bad;     // 1 where some key was not finite
  float* spread;  // also the sums on the way
  float* scale;

  Channels(DeriveScratch& scratch, uint32_t k_dim) {
    if (scratch.channels.size() < size_t{4} * k_dim) scratch.channels.resize(size_t{4} * k_dim);
    mean = scratch.channels.data();
    bad = mean + k_dim;
    spread = bad + k_dim;
    scale = spread + k_dim;
  }
};

// Rows as fp32 [token][k_dim]; channels with a key that is not finite are marked and set to 0.
void load_rows(const KeyRows& keys, const TokenMask& mask, DeriveScratch& scratch, Channels& at) {
  const uint32_t d_count = keys.k_dim;
  const uint32_t tokens = keys.block_count * keys.block_tokens;
  if (scratch.rows.size() < size_t{tokens} * d_count) {
    scratch.rows.resize(size_t{tokens} * d_count);
  }
  std::fill_n(at.bad, d_count, 0.0F);
  bool any_bad = false;
  for (uint32_t token = 0; token < tokens; ++token) {
    float* row = scratch.rows.data() + size_t{token} * d_count;
    const std::byte* from = keys.blocks + token / keys.block_tokens * keys.block_stride +
                            token % keys.block_tokens * keys.row_stride;
    load_row(from, keys.dtype, d_count, row);
    if (!mask.holds(token)) continue;
    for (uint32_t d = 0; d < d_count; ++d) {
      const float nothing = row[d] - row[d];  // NaN for infinity and NaN
      at.bad[d] = nothing == 0.0F ? at.bad[d] : 1.0F;
    }
  }
  for (uint32_t d = 0; d < d_count; ++d) any_bad |= at.bad[d] != 0.0F;
  if (!any_bad) return;
  for (uint32_t token = 0; token < tokens; ++token) {
    float* row = scratch.rows.data() + size_t{token} * d_count;
    for (uint32_t d = 0; d < d_count; ++d) row[d] = at.bad[d] != 0.0F ? 0.0F : row[d];
  }
}

void write_means(const KeyRows& keys,
                 const TokenMask& mask,
                 const DeriveScratch& scratch,
                 Channels& at,
                 std::byte* record) {
  const uint32_t d_count = keys.k_dim;
  float* sum = at.spread;
  std::fill_n(sum, d_count, 0.0F);
  for (uint32_t token = 0; token < keys.block_count * keys.block_tokens; ++token) {
    if (!mask.holds(token)) continue;
    const float* row = scratch.rows.data() + size_t{token} * d_count;
    for (uint32_t d = 0; d < d_count; ++d) sum[d] += row[d];
  }
  const auto count = static_cast<float>(mask.count);
  for (uint32_t d = 0; d < d_count; ++d) {
    const uint16_t half = float_to_half(held_finite(sum[d]) / count);
    at.mean[d] = half_to_float(half);
    store_u16(record + size_t{2} * d, at.bad[d] != 0.0F ? kHalfNan : half);
  }
}

void write_spread(const KeyRows& keys,
                  const TokenMask& mask,
                  const DeriveScratch& scratch,
                  Channels& at,
                  const VectorRecordLayout& layout,
                  std::byte* record) {
  const uint32_t d_count = keys.k_dim;
  std::fill_n(at.spread, d_count, 0.0F);
  for (uint32_t token = 0; token < keys.block_count * keys.block_tokens; ++token) {
    if (!mask.holds(token)) continue;
    const float* row = scratch.rows.data() + size_t{token} * d_count;
    for (uint32_t d = 0; d < d_count; ++d) {
      const float off = row[d] - at.mean[d];
      at.spread[d] += off * off;
    }
  }
  const auto count = static_cast<float>(mask.count);
  for (uint32_t d = 0; d < d_count; ++d) {
    at.spread[d] = std::sqrt(held_finite(at.spread[d]) / count);
  }
  write_codes(at.spread, d_count, record + layout.spread_m, record + layout.spread_codes);
}

void write_residuals(const KeyRows& keys,
                     uint32_t run_tokens,
                     const TokenMask& mask,
                     DeriveScratch& scratch,
                     Channels& at,
                     const VectorRecordLayout& layout,
                     std::byte* record) {
  const uint32_t d_count = keys.k_dim;
  const uint32_t runs = run_count(keys.block_count, keys.block_tokens, run_tokens);
  if (scratch.residuals.size() < size_t{runs} * d_count) {
    scratch.residuals.resize(size_t{runs} * d_count);
  }
  std::fill_n(at.scale, d_count, 0.0F);
  for (uint32_t run = 0; run < runs; ++run) {
    float* residual = scratch.residuals.data() + size_t{run} * d_count;
    std::fill_n(residual, d_count, 0.0F);
    uint32_t count = 0;
    for (uint32_t token = run * run_tokens; token < (run + 1) * run_tokens; ++token) {
      if (!mask.holds(token)) continue;
      const float* row = scratch.rows.data() + size_t{token} * d_count;
      for (uint32_t d = 0; d < d_count; ++d) residual[d] += row[d];
      ++count;
    }
    if (count == 0) continue;
    const auto divisor = static_cast<float>(count);
    for (uint32_t d = 0; d < d_count; ++d) {
      residual[d] = held_finite(held_finite(residual[d]) / divisor - at.mean[d]);
      at.scale[d] = std::max(at.scale[d], std::fabs(residual[d]));
    }
  }
  for (uint32_t d = 0; d < d_count; ++d) at.scale[d] = at.scale[d] / 7.0F;
  write_codes(at.scale, d_count, record + layout.scale_m, record + layout.scale_codes);

  const float m = half_to_float(load_u16(record + layout.scale_m));
  for (uint32_t d = 0; d < d_count; ++d) {
    at.scale[d] = m * log_code_factor(static_cast<uint8_t>(record[layout.scale_codes + d]));
  }
  std::memset(record + layout.tiles, 0, layout.bytes - layout.tiles);
  for (uint32_t run = 0; run < runs; ++run) {
    const float* residual = scratch.residuals.data() + size_t{run} * d_count;
    const uint32_t first_run = run / kTileRuns * kTileRuns;
    const uint32_t row_bytes = VectorRecordLayout::tile_width(runs, first_run) / 2;
    std::byte* tile = record + layout.tiles + VectorRecordLayout::tile_offset(d_count, first_run);
    const uint32_t lane = run - first_run;
    for (uint32_t d = 0; d < d_count; ++d) {
      const float steps = at.scale[d] > 0.0F ? residual[d] / at.scale[d] : 0.0F;
      const auto code = static_cast<int>(round_to_even(std::clamp(steps, -7.0F, 7.0F)));
      const auto nibble = static_cast<std::byte>((code & 0xF) << (lane % 2 * 4));
      tile[size_t{d} * row_bytes + lane / 2] |= nibble;
    }
  }
}

Result<void> check_record(const VectorsLayout& vectors,
                          uint32_t layer,
                          uint32_t blocks,
                          const std::byte* record) {
  const uint32_t k_dim = vectors.k_dim(layer);
  const VectorRecordLayout layout = vectors.record(layer, blocks);
  const IndexKind kind = vectors.index().kind;
  if (is_flat(kind)) return check_flat(kind, k_dim, vectors.runs(blocks), record);
  for (uint32_t d = 0; d < k_dim; ++d) {
    if (!half_is_finite(load_u16(record + size_t{2} * d))) {
      return invalid_vectors("channel " + std::to_string(d) + ": mean is not finite");
    }
  }
  if (kind == IndexKind::kMean) return {};
  for (const uint32_t at : {layout.scale_m, layout.spread_m}) {
    const uint16_t half = load_u16(record + at);
    if (!half_is_finite(half) || (half & 0x8000U) != 0) {
      return invalid_vectors(std::string(at == layout.scale_m ? "scale_m" : "spread_m") +
                             ": not a finite number >= 0");
    }
  }
  for (uint32_t at = layout.tiles; at < layout.bytes; ++at) {
    const auto pair = static_cast<uint32_t>(record[at]);
    if ((pair & 0xFU) == 8U || (pair >> 4) == 8U) {
      return invalid_vectors("residual -8 at byte " + std::to_string(at) + " of the record");
    }
  }
  return {};
}

}  // namespace

void derive_record(const KeyRows& keys,
                   const IndexDescriptor& index,
                   const uint8_t* token_mask,
                   std::span<std::byte> record,
                   DeriveScratch& scratch) {
  const uint32_t tokens = keys.block_count * keys.block_tokens;
  SKV_CHECK(tokens != 0 && keys.block_tokens % index.run_tokens == 0, "runs divide blocks");
  const VectorRecordLayout layout = VectorRecordLayout::of(
      index.kind, keys.k_dim, run_count(keys.block_count, keys.block_tokens, index.run_tokens));
  SKV_CHECK(record.size() == layout.bytes, "record size");

  const FloatEnvironment environment;
  const TokenMask mask(token_mask, tokens);
  if (is_flat(index.kind)) {
    derive_flat(keys, index, mask, record.data(), scratch);
    return;
  }
  Channels at(scratch, keys.k_dim);
  load_rows(keys, mask, scratch, at);
  write_means(keys, mask, scratch, at, record.data());
  if (index.kind == IndexKind::kMean) return;
  write_spread(keys, mask, scratch, at, layout, record.data());
  write_residuals(keys, index.run_tokens, mask, scratch, at, layout, record.data());
}

void derive_layers(const BodyLayout& body,
                   const VectorsLayout& vectors,
                   const DeriveChunk& task,
                   std::span<std::byte> blob,
                   DeriveScratch& scratch) {
  SKV_CHECK(blob.size() == vectors.blob_bytes(task.blocks), "blob size");
  for (uint32_t layer = task.layers.first; layer < task.layers.end(); ++layer) {
    KeyRows keys;
    keys.row_stride = size_t{body.k_dim(layer)} * body.element_bytes();
    keys.dtype = task.dtype;
    keys.block_count = task.blocks;
    keys.block_tokens = body.block_tokens();
    keys.k_dim = body.k_dim(layer);
    const uint32_t bytes = vectors.record(layer, task.blocks).bytes;
    const uint64_t first = vectors.offset(layer, 0, task.blocks);
    for (uint32_t head = 0; head < body.kv_heads(layer); ++head) {
      keys.blocks = task.chunk + body.block_offset(layer, head, 0, task.blocks);
      keys.block_stride = body.block_bytes(layer);
      derive_record(keys, vectors.index(), task.token_mask,
                    blob.subspan(first + uint64_t{head} * bytes, bytes), scratch);
    }
  }
}

Result<void> check_blob(const VectorsLayout& vectors,
                        uint32_t blocks,
                        std::span<const std::byte> blob) {
  const uint64_t expected = vectors.blob_bytes(blocks);
  if (blob.size() != expected) {
    return invalid_vectors("vectors of " + std::to_string(blocks) + " blocks are " +
                           std::to_string(expected) + " bytes, not " + std::to_string(blob.size()));
  }
  const std::byte* record = blob.data();
  for (uint32_t layer = 0; layer < vectors.layer_count(); ++layer) {
    for (uint32_t head = 0; head < vectors.kv_heads(layer); ++head) {
      const Result<void> checked = check_record(vectors, layer, blocks, record);
      if (!checked.ok()) {
        return invalid_vectors("vectors: layer " + std::to_string(layer) + ", kv head " +
                               std::to_string(head) + ", " + checked.error().message);
      }
      record += vectors.record(layer, blocks).bytes;
    }
  }
  return {};
}

}  // namespace skv
