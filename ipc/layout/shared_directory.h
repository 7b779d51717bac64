#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "ipc/types/ids.h"

namespace skv {

// The shared directory of one space (docs/protocol.md section 9): which boundaries stored and
// pending sentences end at. Written by the daemon's loop alone, mapped read-only by the clients of
// the space; what is read in it is a hint.
//
//   [SharedDirectoryHeader, one page][SharedDirectorySlot x slot_count]
//
// A slot is found by linear probing from tag mod slot_count. A slot whose tag is 0 was never used
// and ends a search; one whose state has no bit set holds no boundary any more.

inline constexpr uint64_t kSharedDirectoryMagic = 0x3031524944564B53;  // "SKVDIR10"
inline constexpr uint32_t kSharedDirectoryVersion = 1;
inline constexpr uint64_t kSharedDirectorySlotsOffset = 4096;
inline constexpr uint64_t kSharedDirectorySlotsMin = 1024;
inline constexpr uint32_t kSharedDirectoryProbesMax = 128;

struct SharedDirectoryHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slot_bytes;
  uint64_t slot_count;           // a power of two
  uint64_t generation;           // of this memory; later ones are higher
  std::atomic<uint64_t> newest;  // generation of the space's present memory: another one, if this
                                 // has been replaced
  std::atomic<uint64_t> incomplete;  // not 0: some boundaries found no place
};
static_assert(sizeof(SharedDirectoryHeader) == 48);

struct SharedDirectorySlot {
  std::atomic<uint64_t> tag;  // first 8 bytes of the boundary key (1 if these are 0)
  std::atomic<uint64_t> state;
};
static_assert(sizeof(SharedDirectorySlot) == 16);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

inline uint64_t shared_directory_tag(const Digest& boundary_key) {
  uint64_t tag = 0;
  std::memcpy(&tag, boundary_key.bytes.data(), sizeof tag);
  return tag == 0 ? 1 : tag;
}

// The sentences that end at one boundary, as bits by their length: bit j is the one of 32 / B + j
// blocks. `pending`: reserved, or committed without a path; `owner`: the session that puts them,
// kManyOwners if several do.
struct BoundaryEdges {
  static constexpr uint32_t kBits = 10;  // (64 - 32) / 4 + 1 lengths at most
  static constexpr uint32_t kMask = (1U << kBits) - 1;
  static constexpr uint32_t kManyOwners = (1U << 24) - 1;

  uint32_t stored = 0;
  uint32_t host = 0;  // of `stored`: the whole body is in host memory
  uint32_t pending = 0;
  uint32_t owner = 0;  // low 24 bits of the session's id

  constexpr bool any() const { return (stored | pending) != 0; }
  constexpr uint64_t pack() const {
    return uint64_t{stored} | uint64_t{host} << kBits | uint64_t{pending} << (2 * kBits) |
           uint64_t{owner} << 40;
  }
  static constexpr BoundaryEdges unpack(uint64_t state) {
    const auto bits = [state](uint32_t shift) {
      return static_cast<uint32_t>(state >> shift) & kMask;
    };
    return {bits(0), bits(kBits), bits(2 * kBits), static_cast<uint32_t>(state >> 40)};
  }
};

}  // namespace skv
