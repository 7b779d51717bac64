#pragma once

#include <atomic>
#include <cstdint>

#include "ipc/layout/window.h"

namespace skv {

// What a client that ranks for itself reads of one context: one sealed memfd that the daemon writes
// and the session's process maps for reading. Pages of vectors are in a memory of their own, one
// per space.
//
//   [FeedHeader 4 KiB][page offset u64 x pages][FeedSentenceEntry x capacity]
//   [host page u32 x chunk_count x capacity], arrays at multiples of 64 bytes
//
// Sentence i is valid once sentence_count is above i (acquire); it and its page's offset never
// change then. A page holds kFeedPageSentences sentences.
//
// Host pages: where chunk c of sentence i lies in the host memory of the space, in units of 4 KiB,
// plus 1; 0: not there. It changes at any time. A client may read a chunk in place if it found it
// while WindowHeader::making was set, until readers_done has passed the version it was making
// (docs/protocol.md "Ranking in the client").
inline constexpr uint32_t kFeedMagic = 0x46565653;  // "SVVF"
inline constexpr uint32_t kFeedVersion = 2;  // also of the pages' layout (kernels/rank_pages.h)
inline constexpr uint32_t kFeedPageSentences = 64;
inline constexpr uint64_t kFeedHostUnit = 4096;

struct FeedHeader {
  uint32_t magic;
  uint32_t version;
  uint32_t sentence_capacity;
  uint32_t chunk_count;
  uint64_t page_bytes;  // of one page of vectors
  uint64_t bytes;       // of this memory
  // Sentences that can be ranked.
  alignas(64) std::atomic<uint32_t> sentence_count;
  std::atomic<uint32_t> ended;  // 1: no memory for more vectors, the count stays what it is
  // Sentences that replies to the client have promised; the difference is being laid out.
  alignas(64) std::atomic<uint32_t> promised_count;
};
static_assert(sizeof(FeedHeader) == 192);
inline constexpr uint64_t kFeedHeaderBytes = 4096;

struct FeedSentenceEntry {
  uint32_t first_block;
  uint16_t block_count;
  uint16_t fine_unit;  // where its fine vectors begin in its page
};
static_assert(sizeof(FeedSentenceEntry) == 8);

// Byte offsets.
struct FeedLayout {
  uint64_t pages, sentences, host_pages, bytes;

  static constexpr FeedLayout of(uint32_t sentence_capacity, uint32_t chunk_count) {
    const uint64_t capacity = sentence_capacity;
    FeedLayout at{};
    at.pages = kFeedHeaderBytes;
    at.sentences =
        round_up(at.pages + 8 * ((capacity + kFeedPageSentences - 1) / kFeedPageSentences), 64);
    at.host_pages = round_up(at.sentences + sizeof(FeedSentenceEntry) * capacity, 64);
    at.bytes = round_up(at.host_pages + 4 * capacity * chunk_count, 4096);
    return at;
  }
};

}  // namespace skv
