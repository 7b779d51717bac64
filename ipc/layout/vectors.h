#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "ipc/identity/model.h"
#include "ipc/types/ids.h"

namespace skv {

// The semantic vectors of one sentence, as stored, sent and shared: a *blob* of one record per
// (layer, kv head), layers ascending, heads ascending inside, back to back, no padding.
//
// Record, kMeanSpreadRuns, d = k_dim, r = runs of the sentence, little-endian:
//   mean         fp16 [d]
//   scale_m      fp16        the m of the scale codes
//   spread_m     fp16        the m of the spread codes
//   spread codes u8 [d]      log codes: standard deviation of the sentence's keys in a channel
//   scale codes  u8 [d]      log codes: what a residual of 1 stands for in a channel
//   tiles        int4        runs [16t, 16t + 16) for t = 0, 1, ..: [d][w / 2] bytes, run 16t + 2j
//                            in the low nibble of byte j, run 16t + 2j + 1 in the high one;
//                            two's complement, -7..7 (-8 is read as -8, never written).
//                            w = 16, in the last tile the remaining runs rounded up to a
//                            multiple of 4 (residual 0 in runs that do not exist).
// Run i stands for tokens [i * run_tokens, (i + 1) * run_tokens) of the sentence; its key is
// mean + scale * residual, channel by channel.
// Record, kMean: mean fp16 [d], nothing else.
// Record of a flat kind: run after run, each
//   kFp16, kBf16  the run's mean [d], fp16 or bf16;  kKeys: one of its keys, fp16
//   kInt8, kInt4  scale fp16, then int8 [d] (-127..127), or nibbles [d / 2] (-7..7), channel 2j in
//                 the low one of byte j; a channel is scale * value
//   kMinMax       smallest fp16 [d], largest fp16 [d], rounded outwards
//   kBox          centre fp16 [d], step fp16, half width u8 [d]: step * value, rounded up
//   kBall         mean fp16 [d], radius fp16: euclidean, rounded up
//
// Worked example: d = 128, 40 tokens, run_tokens = 2: r = 20, tiles of 16 and 4 runs;
// 256 + 2 + 2 + 128 + 128 + 128 * 10 = 1796 bytes, 44.9 per token.
//
// Log code c with its m: 0 stands for exactly 0; c = 1..255 for the fp32 product m * T[c], where
// T[c] = 2^((c - 255) / 16) rounded to fp32 (log_code_factor). m = 0 makes every code 0. m is
// finite and >= 0. The smallest value is 2^-24 * 2^-15.875, so no code is ever subnormal in fp32.
//
// A NaN (kHalfNan) in `mean` marks a channel in which some key was not finite: such a record scores
// mass 0 against every query (kernels/README.md). In a flat kind the NaN stands in the channel, or
// in the run's fp16 scale, and the run scores 0. Only derivation writes it; a blob from a client
// has to be finite (kernels/vectors.h, check_blob).
inline constexpr uint32_t kTileRuns = 16;
inline constexpr uint32_t kTileRunsUnit = 4;  // the last tile is 4, 8, 12 or 16 wide

namespace detail {
// 2^(-i / 16), rounded to fp32.
inline constexpr std::array<float, 16> kSixteenthPowers = {
    0x1.000000p+0F, 0x1.ea4afap-1F, 0x1.d5818ep-1F, 0x1.c199bep-1F, 0x1.ae89fap-1F, 0x1.9c4918p-1F,
    0x1.8ace54p-1F, 0x1.7a1148p-1F, 0x1.6a09e6p-1F, 0x1.5ab07ep-1F, 0x1.4bfdaep-1F, 0x1.3dea64p-1F,
    0x1.306fe0p-1F, 0x1.2387a6p-1F, 0x1.172b84p-1F, 0x1.0b5586p-1F};
// value * 2^-n, for normal results.
constexpr float scaled_down(float value, uint32_t n) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) - (n << 23));
}
}  // namespace detail

// T[c]; 0 for c = 0.
constexpr float log_code_factor(uint8_t code) {
  if (code == 0) return 0.0F;
  const uint32_t below = 255U - code;
  return detail::scaled_down(detail::kSixteenthPowers[below & 15U], below >> 4);
}
// 2^((c - 255) / 8) rounded to fp32, 0 for c = 0: what stands for T[c]^2.
constexpr float log_code_square(uint8_t code) {
  if (code == 0) return 0.0F;
  const uint32_t below = 255U - code;
  return detail::scaled_down(detail::kSixteenthPowers[size_t{below & 7U} * 2U], below >> 3);
}

// Runs of a sentence, and runs that its tiles have room for.
constexpr uint32_t run_count(uint32_t blocks, uint32_t block_tokens, uint32_t run_tokens) {
  return blocks * block_tokens / run_tokens;
}
constexpr uint32_t stored_runs(uint32_t runs) {
  return (runs + kTileRunsUnit - 1) / kTileRunsUnit * kTileRunsUnit;
}

// Bytes of one run in the record of a flat kind; 0 for the others.
constexpr uint32_t flat_run_bytes(IndexKind kind, uint32_t k_dim) {
  switch (kind) {
    case IndexKind::kFp16:
    case IndexKind::kBf16:
    case IndexKind::kKeys:
      return 2 * k_dim;
    case IndexKind::kInt8:
      return 2 + k_dim;
    case IndexKind::kInt4:
      return 2 + k_dim / 2;
    case IndexKind::kMinMax:
      return 4 * k_dim;
    case IndexKind::kBox:
      return 3 * k_dim + 2;
    case IndexKind::kBall:
      return 2 * k_dim + 2;
    case IndexKind::kMeanSpreadRuns:
    case IndexKind::kMean:
      break;
  }
  return 0;
}

// Byte offsets inside one record.
struct VectorRecordLayout {
  uint32_t mean = 0;
  uint32_t scale_m = 0;
  uint32_t spread_m = 0;
  uint32_t spread_codes = 0;
  uint32_t scale_codes = 0;
  uint32_t tiles = 0;
  uint32_t bytes = 0;

  static constexpr VectorRecordLayout of(IndexKind kind, uint32_t k_dim, uint32_t runs) {
    VectorRecordLayout at{};
    if (is_flat(kind)) {
      at.bytes = runs * flat_run_bytes(kind, k_dim);
      return at;
    }
    at.bytes = 2 * k_dim;
    if (kind == IndexKind::kMean) return at;
    at.scale_m = at.bytes;
    at.spread_m = at.scale_m + 2;
    at.spread_codes = at.spread_m + 2;
    at.scale_codes = at.spread_codes + k_dim;
    at.tiles = at.scale_codes + k_dim;
    at.bytes = at.tiles + k_dim * stored_runs(runs) / 2;
    return at;
  }
  // Of the tile that begins with run `first_run` (a multiple of 16): all tiles before it are full.
  static constexpr uint32_t tile_offset(uint32_t k_dim, uint32_t first_run) {
    return k_dim * first_run / 2;
  }
  // Runs stored in that tile: 16, or less in the last.
  static constexpr uint32_t tile_width(uint32_t runs, uint32_t first_run) {
    const uint32_t left = stored_runs(runs) - first_run;
    return left < kTileRuns ? left : kTileRuns;
  }
};
static_assert(VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, 128, 20).bytes == 1796);
static_assert(VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, 64, 32).bytes == 1284);
static_assert(VectorRecordLayout::of(IndexKind::kMean, 128, 20).bytes == 256);

// Where the records of a blob are, for one model and one index.
//
// Requires validate(model).ok() and run_tokens | block_tokens.
// Units   bytes; `blocks` is the sentence's block count.
// Thread  immutable after construction; any.
class VectorsLayout {
 public:
  VectorsLayout(const ModelDescriptor& model, const IndexDescriptor& index)
      : index_(index), block_tokens_(model.block_tokens) {
    layers_.reserve(model.layers.size());
    for (const LayerDescriptor& layer : model.layers) {
      layers_.push_back({layer.kv_heads, layer.k_dim});
    }
  }

  const IndexDescriptor& index() const { return index_; }
  uint32_t block_tokens() const { return block_tokens_; }
  uint32_t layer_count() const { return static_cast<uint32_t>(layers_.size()); }
  uint32_t kv_heads(uint32_t layer) const { return layers_[layer].kv_heads; }
  uint32_t k_dim(uint32_t layer) const { return layers_[layer].k_dim; }
  uint32_t runs(uint32_t blocks) const {
    return run_count(blocks, block_tokens_, index_.run_tokens);
  }

  VectorRecordLayout record(uint32_t layer, uint32_t blocks) const {
    return VectorRecordLayout::of(index_.kind, layers_[layer].k_dim, runs(blocks));
  }
  uint64_t offset(uint32_t layer, uint32_t head, uint32_t blocks) const {
    uint64_t at = 0;
    for (uint32_t before = 0; before < layer; ++before) {
      at += static_cast<uint64_t>(layers_[before].kv_heads) * record(before, blocks).bytes;
    }
    return head == 0 ? at : at + static_cast<uint64_t>(head) * record(layer, blocks).bytes;
  }
  uint64_t blob_bytes(uint32_t blocks) const { return offset(layer_count(), 0, blocks); }

 private:
  struct Layer {
    uint32_t kv_heads;
    uint32_t k_dim;
  };
  IndexDescriptor index_;
  uint32_t block_tokens_;
  std::vector<Layer> layers_;
};

}  // namespace skv
