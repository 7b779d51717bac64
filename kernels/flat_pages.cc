#include "kernels/flat_pages.h"

#include <cstring>

namespace skv {
namespace {

// `count` values of 2 bytes, one per dimension, to their lane; rows of the tile are `row` bytes.
void scatter_pairs(
    std::byte* tile, size_t row, uint32_t lane, const std::byte* values, uint32_t count) {
  for (uint32_t d = 0; d < count; ++d) {
    std::memcpy(tile + d * row + size_t{lane} * 2, values + size_t{d} * 2, 2);
  }
}

void scatter_bytes(std::byte* rows, uint32_t lane, const std::byte* values, uint32_t count) {
  for (uint32_t d = 0; d < count; ++d) rows[size_t{d} * kTileRuns + lane] = values[d];
}

// Four channels to one word, so that none is below 0.
void scatter_quads(std::byte* tile, uint32_t lane, const std::byte* values, uint32_t k_dim) {
  for (uint32_t d = 0; d < k_dim; ++d) {
    tile[(size_t{d / 4} * kTileRuns + lane) * 4 + d % 4] = values[d] ^ std::byte{0x80};
  }
}

// Nibbles of 8 channels to one word, so that none is below 0: the first four to the low halves of
// its bytes.
void scatter_nibbles(std::byte* tile, uint32_t lane, const std::byte* values, uint32_t k_dim) {
  const auto nibble = [values](uint32_t d) {
    return (static_cast<uint32_t>(values[d / 2]) >> (d % 2 * 4) & 0xFU) ^ 8U;
  };
  for (uint32_t d = 0; d < k_dim; d += 8) {
    for (uint32_t i = 0; i < 4; ++i) {
      tile[(size_t{d / 8} * kTileRuns + lane) * 4 + i] =
          static_cast<std::byte>(nibble(d + i) | nibble(d + i + 4) << 4);
    }
  }
}

void append_run(
    std::byte* tile, IndexKind kind, uint32_t k_dim, uint32_t lane, const std::byte* values) {
  switch (kind) {
    case IndexKind::kFp16:
    case IndexKind::kBf16:
    case IndexKind::kKeys:
    case IndexKind::kBall:
    case IndexKind::kBox:
      for (uint32_t d = 0; d < k_dim; d += 4) {
        std::memcpy(tile + FlatAreaLayout::value(k_dim, d, lane), values + size_t{d} * 2, 8);
      }
      if (kind == IndexKind::kBox) {
        scatter_bytes(tile + FlatAreaLayout::box_widths(k_dim), lane,
                      values + size_t{2} * k_dim + 2, k_dim);
      }
      return;
    case IndexKind::kInt8:
      scatter_quads(tile, lane, values + 2, k_dim);
      return;
    case IndexKind::kInt4:
      scatter_nibbles(tile, lane, values + 2, k_dim);
      return;
    case IndexKind::kMinMax:
      scatter_pairs(tile, 64, lane, values, k_dim);
      scatter_pairs(tile + 32, 64, lane, values + size_t{2} * k_dim, k_dim);
      return;
    case IndexKind::kMeanSpreadRuns:
    case IndexKind::kMean:
      return;
  }
}

// Offset of the fp16 scale in a run's part of the record.
uint32_t scale_offset(IndexKind kind, uint32_t k_dim) {
  return kind == IndexKind::kInt8 || kind == IndexKind::kInt4 ? 0 : 2 * k_dim;
}

}  // namespace

void append_flat(std::byte* area,
                 const IndexDescriptor& index,
                 // NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
                 uint32_t k_dim,
                 uint32_t first_run,
                 uint32_t runs,
                 const std::byte* record) {
  const size_t run_bytes = flat_run_bytes(index.kind, k_dim);
  const size_t tile_bytes = FlatAreaLayout::tile_bytes(index.kind, k_dim);
  std::byte* tiles = area + FlatAreaLayout::tiles(index.kind, index.run_tokens);
  std::byte* sketch = area + FlatAreaLayout::sketch(index.kind, k_dim, index.run_tokens);
  const SketchLayout sketch_at{k_dim, FlatAreaLayout::runs_max(index.run_tokens)};
  for (uint32_t i = 0; i < runs; ++i) {
    const uint32_t run = first_run + i;
    const uint32_t lane = run % kTileRuns;
    std::byte* tile = tiles + run / kTileRuns * tile_bytes;
    // Lanes of runs still to come are scanned with the others and their results thrown away.
    if (lane == 0) std::memset(tile, 0, tile_bytes);
    const std::byte* values = record + i * run_bytes;
    append_run(tile, index.kind, k_dim, lane, values);
    if (FlatAreaLayout::has_sketch(index.kind)) {
      append_sketch(sketch, sketch_at, run, values, index.kind == IndexKind::kBf16);
    }
    if (!FlatAreaLayout::has_scale(index.kind)) continue;
    if (lane == 0) std::memset(area + size_t{run} * 2, 0, size_t{2} * kTileRuns);
    std::memcpy(area + size_t{run} * 2, values + scale_offset(index.kind, k_dim), 2);
  }
}

}  // namespace skv
