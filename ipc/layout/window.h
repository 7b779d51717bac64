#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace skv {

// The tables of one window, in one sealed memfd that the daemon writes and its one client reads
// (only `readers_done` is the client's). Where the client ranks for itself (RankIn::kClient) all
// but the header's first line is the client's to write. The daemon never trusts a table.
//
//   [WindowHeader 4 KiB] then per layer: [LayerTableHeader, 64 B][buffer 0][buffer 1]
//   then, where the client ranks: [touched u8 x sentences of the context]
//
// A buffer is [TableHeader 64 B][indptr u32 x (heads + 1)][slot u32 x entries][block u32 x entries]
// [sentence u32 x entries][score f32 x entries][origin u8 x entries], arrays at multiples of 64
// bytes. CSR: entries of head h are [indptr[h], indptr[h+1]), ascending by block.
//
// `slot`      index from the window's slot base, in units of WindowHeader::slot_unit_bytes
// `block`     position / block_tokens of the entry on the context's grid
// `sentence`  index of its sentence in the context
// `score`     estimated share of attention mass; sinks and recents too
// `origin`    Origin
inline constexpr uint32_t kWindowMagic = 0x57565653;  // "SVVW"
inline constexpr uint32_t kWindowVersion = 1;
enum class RankIn : uint8_t { kDaemon = 0, kClient = 1, kEither = 2 };  // kEither: in requests only
enum class Origin : uint8_t { kDevice = 0, kHost = 1, kNvme = 2 };

struct WindowHeader {
  uint32_t magic;
  uint32_t version;
  uint32_t layer_count;
  uint32_t width;  // most entries of one (layer, head)
  uint32_t slot_unit_bytes;
  uint32_t recall_every;  // where the client ranks: RecallSampler::due (kernels/recall.h); 0: never
  uint64_t slots_bytes;
  uint64_t
      touched_offset;  // the client sets a byte for each sentence it reads; 0: the daemon ranks
  // The engine's promise: it no longer reads any table of a version <= this. One per window, in
  // order.
  alignas(64) std::atomic<uint64_t> readers_done;
  // Of a client that ranks. `making`: the version of the prefetch under way, 0: none; set before
  // the first look at what is in host memory (a full fence between), 0 again after its tables are
  // there.
  alignas(64) std::atomic<uint64_t> making;
  std::atomic<uint64_t> prefetches;  // sums since the window was opened, for statistics
  std::atomic<uint64_t> read_blocks;
  std::atomic<uint64_t> misses;
  std::atomic<uint64_t> recall_rankings;  // RecallCounts
  std::atomic<uint64_t> recall_wanted;
  std::atomic<uint64_t> recall_found;
};
static_assert(sizeof(WindowHeader) == 192);
inline constexpr uint64_t kWindowHeaderBytes = 4096;

struct LayerTableHeader {
  std::atomic<uint64_t> current;  // version << 1 | buffer; 0: never published
  uint8_t reserved[56];
};
static_assert(sizeof(LayerTableHeader) == 64);

struct TableHeader {
  uint64_t version;
  uint32_t covered_to;  // tokens: the window stands for all before it, the engine attends the rest
                        // itself
  uint32_t entry_count;
  uint32_t head_count;
  float unread_mass;
  uint8_t reserved[40];
};
static_assert(sizeof(TableHeader) == 64);

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Byte offsets inside one buffer, for `heads` kv heads of up to `width` entries.
struct TableLayout {
  uint64_t indptr, slot, block, sentence, score, origin, bytes;

  static constexpr TableLayout of(uint32_t heads, uint32_t width) {
    const uint64_t entries = static_cast<uint64_t>(heads) * width;
    TableLayout at{};
    at.indptr = sizeof(TableHeader);
    at.slot = round_up(at.indptr + 4 * (static_cast<uint64_t>(heads) + 1), 64);
    at.block = round_up(at.slot + 4 * entries, 64);
    at.sentence = round_up(at.block + 4 * entries, 64);
    at.score = round_up(at.sentence + 4 * entries, 64);
    at.origin = round_up(at.score + 4 * entries, 64);
    at.bytes = round_up(at.origin + entries, 64);
    return at;
  }
};

}  // namespace skv
