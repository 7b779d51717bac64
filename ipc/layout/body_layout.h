#pragma once

#include <cstdint>
#include <vector>

#include "ipc/identity/model.h"
#include "ipc/types/ids.h"

namespace skv {

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kChunkBytesTarget = 64ULL * 1024;

// Where the bytes of a body are, for one model: [layer][kv_head][block] of K [block_tokens][k_dim],
// then V [block_tokens][v_dim], cut into chunks of a layer group.
//
// Shape   a chunk is layers [first, end) of one sentence, layers back to back, no gap inside; a
// chunk's
//         place begins at a multiple of 4 KiB and its storage is rounded up to that
//         (the gap is outside the checksum). G layers per chunk: the fewest whose 32-token chunk is
//         >= 64 KiB; the last chunk may have fewer.
// Units   bytes, blocks. `blocks`: of the sentence, 4..8 at 8 tokens.
// Thread  immutable after construction; any.
class BodyLayout {
 public:
  explicit BodyLayout(const ModelDescriptor& model);  // Requires: validate(model).ok()

  uint32_t layer_count() const;
  uint32_t block_tokens() const;
  uint32_t kv_heads(uint32_t layer) const;
  uint32_t k_dim(uint32_t layer) const;
  uint32_t v_dim(uint32_t layer) const;
  uint32_t element_bytes() const;
  uint32_t block_bytes(
      uint32_t layer) const;  // one kv head: block_tokens * (k_dim + v_dim) * element
  uint32_t block_bytes_max() const;

  uint32_t chunk_count() const;
  uint32_t chunk_of(uint32_t layer) const;
  LayerRange chunk_layers(uint32_t chunk) const;
  uint64_t chunk_bytes(uint32_t chunk, uint32_t blocks) const;          // what the checksum covers
  uint64_t chunk_storage_bytes(uint32_t chunk, uint32_t blocks) const;  // rounded up to 4 KiB
  uint64_t body_bytes(uint32_t blocks) const;                           // sum of chunk_bytes
  uint64_t body_storage_bytes(uint32_t blocks) const;

  // Offset of (layer, head, block) from the start of the chunk that holds `layer`.
  uint64_t block_offset(uint32_t layer, uint32_t head, uint32_t block, uint32_t blocks) const;

 private:
  struct Layer {
    uint32_t kv_heads, k_dim, v_dim, block_bytes;
    uint64_t bytes_per_block;  // all heads, one block
    uint32_t chunk;
    uint64_t before_in_chunk;  // bytes per block of the layers before it in its chunk
  };
  uint32_t block_tokens_ = 0;
  uint32_t element_bytes_ = 0;
  std::vector<Layer> layers_;
  std::vector<LayerRange> chunks_;
};

}  // namespace skv
