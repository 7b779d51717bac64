#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace skv {

// Ids are types, so that two cannot be swapped. All are given by the daemon, per session where a
// client sees them, and never reused within one daemon instance.
enum class SessionId : uint32_t {};
enum class SpaceId : uint32_t {};
enum class ModelId : uint32_t {};
enum class ContextId : uint32_t {};
enum class WindowId : uint32_t {};
enum class ChannelId : uint32_t {};
enum class MemoryId : uint32_t {};  // 0 is the session's staging memory
enum class LeaseId : uint64_t {};
enum class LeaseMapId : uint32_t {};
enum class Ticket : uint64_t {};       // given by the client, unique per session
enum class SentenceUid : uint64_t {};  // one stored sentence inside one daemon instance; 0 is none

template <typename Id>
constexpr auto raw(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// 32 bytes of SHA-256 (digests, keys, fingerprints, salts, `extra`).
struct Digest {
  std::array<uint8_t, 32> bytes{};
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

// A digest is uniformly distributed, so eight of its bytes are a hash; tables keyed by what a
// client can choose use keyed digests (space salt), see ipc/identity.
struct DigestHash {
  size_t operator()(const Digest& digest) const {
    size_t hash = 0;
    std::memcpy(&hash, digest.bytes.data(), sizeof hash);
    return hash;
  }
};

// Half open ranges; units are in the name.
struct LayerRange {
  uint32_t first = 0;
  uint32_t count = 0;
  uint32_t end() const { return first + count; }
  friend bool operator==(const LayerRange&, const LayerRange&) = default;
};

// A sentence on the position grid of its context, in blocks.
struct SentenceSpan {
  uint32_t first_block = 0;
  uint32_t block_count = 0;
  uint32_t end_block() const { return first_block + block_count; }
  friend bool operator==(const SentenceSpan&, const SentenceSpan&) = default;
};

}  // namespace skv
