#pragma once

#include <atomic>
#include <cstdint>

#include "ipc/layout/window.h"

namespace skv {

// How a client leases the chunks of one context in host memory without a message (docs/protocol.md
// "Leases without a message"). Two sealed memfds of one geometry:
//
//   places  [LeaseMapHeader 4 KiB][host page u32 x chunk_count x sentence_capacity]
//           the daemon writes, the client's process maps it for reading
//   words   [LeaseWordsHeader 4 KiB][word u32 x chunk_count x sentence_capacity]
//           the client writes; the daemon looks, and takes back kLeaseTouched
//
// Sentence by sentence, so that what one lease looks at lies together.
//
// Host pages are as in a feed (ipc/layout/feed.h): units of 4 KiB of the host memory, plus 1; 0:
// not there, or nobody may begin to read it. They change at any time.
//
// A word counts the leases on its chunk. The client adds one, then looks at the host page: if it is
// there, the chunk is leased until the client takes the one back. The daemon zeroes the host page,
// then looks at the word. All four are sequentially consistent, so one of the two sees the other.
inline constexpr uint32_t kLeaseMapMagic = 0x4D4C5653;  // "SVLM"
inline constexpr uint32_t kLeaseMapVersion = 1;
inline constexpr uint32_t kLeaseTouched = 1U << 31;  // set by the client: it has read the chunk
inline constexpr uint32_t kLeaseCount = kLeaseTouched - 1;

struct LeaseMapHeader {
  uint32_t magic;
  uint32_t version;
  uint32_t sentence_capacity;
  uint32_t chunk_count;  // of a sentence
};
static_assert(sizeof(LeaseMapHeader) == 16);

struct LeaseWordsHeader {
  std::atomic<uint64_t> leases;  // ever taken, for statistics
};
static_assert(sizeof(LeaseWordsHeader) == 8);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// Byte offsets, of both memories.
struct LeaseMapLayout {
  uint32_t chunk_count;
  uint64_t bytes;

  static constexpr uint64_t kItems = 4096;
  static constexpr LeaseMapLayout of(uint32_t sentence_capacity, uint32_t chunk_count) {
    return {chunk_count, round_up(kItems + 4 * uint64_t{sentence_capacity} * chunk_count, 4096)};
  }
  constexpr uint64_t item(uint32_t sentence, uint32_t chunk) const {
    return kItems + 4 * (uint64_t{sentence} * chunk_count + chunk);
  }
};

}  // namespace skv
