#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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
// Thread  the owner's.
class ChecksumStream {
 public:
  ChecksumStream();
  ~ChecksumStream();
  ChecksumStream(const ChecksumStream&) = delete;
  ChecksumStream& operator=(const ChecksumStream&) = delete;
  ChecksumStream(ChecksumStream&&) noexcept;
  ChecksumStream& operator=(ChecksumStream&&) noexcept;

  void update(std::span<const std::byte> bytes);
  ChunkSum sum() const;  // of what came so far; more may follow
  void reset();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace skv
