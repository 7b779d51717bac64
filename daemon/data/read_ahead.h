#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/data/prefetch.h"
#include "kernels/cut.h"

namespace skv {

class Feed;

// Which chunks are likely to be asked for next: those of the best blocks below the cut that are not
// on the host. Costs nothing while all chunks of all feeds are.
//
// Units   a chunk's worth is the share of attention of its blocks below the cut, over all heads of
//         its layers.
// Thread  data thread.
class ReadAhead {
 public:
  explicit ReadAhead(Residency& residency) : residency_(residency) {}

  // After a cut with `options` gave `read` for one head of `layer`.
  void collect(Feed& feed,
               uint32_t layer,
               const RankResult& ranked,
               const CutOptions& options,
               std::span<const uint32_t> read);
  // The best of what was collected, best first; each at most once in kAgainNs.
  std::vector<ChunkRef> take(uint64_t now_ns);

  // Of one take(): what NVMe delivers in a step of some ten milliseconds.
  static constexpr size_t kChunksMax = 64;
  static constexpr uint64_t kAgainNs = 50'000'000;  // the loop forgets what it has no room for

 private:
  Residency& residency_;
  CutScratch scratch_;
  std::unordered_map<ChunkRef, float, ChunkRefHash> worth_;
};

}  // namespace skv
