#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ipc/types/ids.h"
#include "tiers/checksum.h"

namespace skv {

// Checksums of chunks while they are being written, so that the pass that copies also sums: a chunk
// may come in several puts, one layer range each, in any order and more than once.
//
// A sum goes on only where the bytes that come now follow those it has; whatever else was written
// (a later layer first, a layer again) ends it, and the chunk is summed where it lies once it is
// whole. So a sum that is_whole() is always that of the bytes in the extent.
//
// Limits  kOpenSumsMax chunks that are neither whole nor being copied; the oldest gives way.
// Thread  data thread.
class OpenSums {
 public:
  static constexpr uint32_t kOpenSumsMax = 128;  // 576 bytes each

  struct Sum {
    SessionId session{};
    SentenceUid uid{};
    uint32_t chunk = 0;
    uint64_t bytes = 0;  // summed so far, from the chunk's start
    uint64_t used = 0;   // when it was last taken; 0: free
    bool busy = false;   // a task is writing
    ChecksumStream stream;
  };
  struct Chunk {
    SessionId session{};
    SentenceUid uid{};  // 0: no other task writes this chunk
    uint32_t index = 0;
  };

  // Bytes from `offset` of the chunk on will be written now: the sum that they belong to, or null.
  // give_back() when they are; until then it is not taken away.
  Sum* take(const Chunk& chunk, uint64_t offset);
  // It may go on in a later task. The owner adds to `bytes` what it fed to the stream.
  void give_back(Sum& sum);
  // It is finished, or of no use.
  void free(Sum& sum);
  // Its session is gone.
  void drop(SessionId session);

  size_t open() const;

 private:
  Sum* find(const Chunk& chunk);
  Sum& fresh();

  std::vector<std::unique_ptr<Sum>> sums_;  // grows to the most that were ever open at once
  uint64_t clock_ = 0;
};

}  // namespace skv
