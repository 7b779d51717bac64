#pragma once

#include <cstddef>
#include <cstdint>

#include "ipc/layout/vectors.h"
#include "kernels/rank_pages.h"

namespace skv {

// Where one (layer, kv head) of a flat kind lies inside its area of a page: runs of the page's
// sentences one after the other, in tiles of 16 runs, dimension by dimension, so that a scan is one
// stream and a lane is a run. Tiles cross sentences; a page begins with a tile of its own.
//
//   scales fp16 [runs_max]   kInt8, kInt4: scale; kBox: step; kBall: radius
//   tiles                    kFp16, kBf16, kKeys, kBall: [d][16] of 2 bytes
//                            kInt8: [d / 2][16][2]
//                            kInt4: [d / 8][16] u32: channel 8g + 2i + h in bits 16h + 4i
//                            kMinMax: [d][smallest 16, largest 16]
//                            kBox: [d][16] centre, then [d][16] half widths u8
// All offsets are multiples of 64 where k_dim is one of 8.
struct FlatAreaLayout {
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
  static constexpr uint32_t area_bytes(IndexKind kind, uint32_t k_dim, uint32_t run_tokens) {
    return tiles(kind, run_tokens) + runs_max(run_tokens) * lane_bytes(kind, k_dim);
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
