#pragma once

#include <cstddef>
#include <cstdint>

#include "daemon/data/data_messages.h"
#include "ipc/layout/body_layout.h"
#include "tiers/checksum.h"

namespace skv {

// The host tier of a space, as copies see it.
struct ArenaView {
  std::byte* base = nullptr;
  uint64_t bytes = 0;
};

// Whether a strided view stays inside `memory_bytes` for these layers and tokens. Overflow-safe:
// all of `view` is a client's word. kInvalidArgument says which end leaves it.
Result<void> check_view(const StridedKv& view,
                        uint64_t memory_bytes,
                        const BodyLayout& layout,
                        LayerRange layers,
                        SentenceSpan span);

// Where the extent of a chunk begins in this process. The loop's numbers: a wrong one is our bug.
// `first_chunk`: that of extents[0].
std::byte* chunk_at(const ArenaView& arena,
                    const BodyLayout& layout,
                    const SentenceExtents& sentence,
                    uint32_t first_chunk,
                    uint32_t chunk);

// K and V of one (sentence, layer, kv head): the unit of copying. Both return bytes copied.
// Requires: check_view().
struct HeadCopy {
  const CopyTask& task;
  const SentenceExtents& sentence;
  std::byte* chunk;
  uint32_t layer;
  uint32_t kv_head;
};
// From the client's memory into the chunk, each byte read once; the stream (may be null) gets what
// was written. Stores are visible after stores_done().
uint64_t put_head(const HeadCopy& head, ChecksumStream* stream);
// From the chunk into the client's memory. `around_caches`: much more comes with it.
uint64_t load_head(const HeadCopy& head, bool around_caches);

}  // namespace skv
