#pragma once

#include <cstddef>
#include <cstdint>

#include "ipc/layout/vectors.h"
#include "kernels/rank_pages.h"
#include "kernels/sketch.h"

namespace skv {

inline constexpr uint32_t kPieceRuns = 8;

// Where one (layer, kv head) of a flat kind lies inside its area of a page: runs of the page's
// sentences one after the other, in tiles of 16 runs, dimension by dimension, so that a scan is one
// stream and a lane is a run. Tiles cross sentences; a page begins with a tile of its own.
//
//   scales fp16 [runs_max]   kInt8, kInt4: scale; kBox: step; kBall: radius
//   tiles                    kFp16, kBf16, kKeys, kBall: two pieces [d / 4][8][4] of 2 bytes, so
//                            that a line is 4 channels of 8 runs, a run in half of the tile
//                            kInt8: [d / 4][16][4] of value + 128
//                            kInt4: [d / 8][16][4]: value + 8 of channels 8g + i in the low nibble
//                            of byte i, 8g + 4 + i in the high one
//                            kMinMax: [d][smallest 16, largest 16]
//                            kBox: centre as kFp16, then [d][16] half widths u8
//   sketch                   kFp16, kBf16, kKeys: kernels/sketch.h
// All offsets are multiples of 64 where k_dim is one of 8.
struct FlatAreaLayout {
  // Of channel d of a run, in a tile of kFp16, kBf16, kKeys, kBall or kBox.
  static constexpr uint32_t value(uint32_t k_dim, uint32_t d, uint32_t lane) {
    return lane / kPieceRuns * piece_bytes(k_dim) + d / 4 * 64 + lane % kPieceRuns * 8 + d % 4 * 2;
  }
  static constexpr uint32_t piece_bytes(uint32_t k_dim) { return kPieceRuns * 2 * k_dim; }
  static constexpr uint32_t runs_max(uint32_t run_tokens) {
    return kPageSentences * kSentenceTokensMax / run_tokens;
  }
  static constexpr bool has_scale(IndexKind kind) {
    return kind == IndexKind::kInt8 || kind == IndexKind::kInt4 || kind == IndexKind::kBox ||
           kind == IndexKind::kBall;
  }
  static constexpr uint32_t tiles(IndexKind kind, uint32_t run_tokens) {
    return has_scale(kind) ? 2 * runs_max(run_tokens) : 0;
  }
  // What a tile holds of one run, without its scale.
  static constexpr uint32_t lane_bytes(IndexKind kind, uint32_t k_dim) {
    return flat_run_bytes(kind, k_dim) - (has_scale(kind) ? 2 : 0);
  }
  static constexpr uint32_t tile_bytes(IndexKind kind, uint32_t k_dim) {
    return kTileRuns * lane_bytes(kind, k_dim);
  }
  static constexpr bool has_sketch(IndexKind kind) {
    return kind == IndexKind::kFp16 || kind == IndexKind::kBf16 || kind == IndexKind::kKeys;
  }
  static constexpr uint32_t sketch(IndexKind kind, uint32_t k_dim, uint32_t run_tokens) {
    return tiles(kind, run_tokens) + runs_max(run_tokens) * lane_bytes(kind, k_dim);
  }
  static constexpr uint32_t area_bytes(IndexKind kind, uint32_t k_dim, uint32_t run_tokens) {
    return sketch(kind, k_dim, run_tokens) +
           (has_sketch(kind) ? SketchLayout::bytes(k_dim, runs_max(run_tokens)) : 0);
  }
  static constexpr uint32_t box_widths(uint32_t k_dim) { return 2 * kTileRuns * k_dim; }
};
static_assert(FlatAreaLayout::tile_bytes(IndexKind::kFp16, 128) == 4096);
static_assert(FlatAreaLayout::tile_bytes(IndexKind::kInt4, 128) == 1024);

// Puts the record of a sentence behind the `first_run` runs that its page holds already.
void append_flat(std::byte* area,
                 const IndexDescriptor& index,
                 uint32_t k_dim,
                 uint32_t first_run,
                 uint32_t runs,
                 const std::byte* record);

}  // namespace skv
