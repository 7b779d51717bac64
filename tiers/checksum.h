#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace skv {

// XXH3-128 (seed 0) over the bytes of one chunk, one vectors blob or one on-disk structure: it
// finds accidents (torn, flipped, misdirected, stale bytes), not an attacker.
struct ChunkSum {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const ChunkSum&, const ChunkSum&) = default;
};
static_assert(sizeof(ChunkSum) == 16);

// Thread: any.
ChunkSum checksum(std::span<const std::byte> bytes);

// The same sum over bytes that come in pieces, in order: sum() equals checksum() of all of them.
//
// copy() is the one pass of a put: from memory that somebody else may be writing, into memory of
// ours, with the sum of what was written. Each 64 bytes are loaded once, into registers; the store
// and the sum both come from there. The store goes around the caches where the stripes of the sum
// are lines of the destination, as in a chunk that begins on a line: see copy_around_caches
// (tiers/copy.h), also for stores_done(). It runs at that copy's speed: the sum hides behind the
// memory.
//
// Thread  the owner's.
class ChecksumStream {
 public:
  ChecksumStream() { reset(); }

  void update(std::span<const std::byte> bytes) { append(nullptr, bytes.data(), bytes.size(), 0); }
  // What lies `ask_ahead` behind each line is asked for with it: of short runs that lie apart the
  // hardware finds each anew. 0: nothing; an address that is not mapped is no access.
  // Requires: no overlap.
  void copy(std::byte* to, const std::byte* from, size_t bytes, size_t ask_ahead) {
    append(to, from, bytes, ask_ahead);
  }
  ChunkSum sum() const;  // of what came so far; more may follow
  void reset();

  // What the instruction sets' loops work on (tiers/checksum_stream.cc).
  struct State {
    static constexpr size_t kStripeBytes = 64;
    static constexpr size_t kShortBytesMax = 240;  // up to here the sum is another function

    alignas(64) uint64_t lanes[8];
    // The stripe before, and the one that comes: it is taken in once a byte follows it, since the
    // last one counts differently.
    alignas(64) std::byte before[kStripeBytes];
    std::byte coming[kStripeBytes];
    size_t coming_bytes;
    uint32_t place;  // of `coming` in its block of stripes
    uint64_t total_bytes;
    std::byte head[kShortBytesMax];
  };

 private:
  void append(std::byte* to, const std::byte* from, size_t bytes, size_t ask_ahead);
  void append_part(std::byte* to, const std::byte* from, size_t bytes);

  State state_;
};

}  // namespace skv
