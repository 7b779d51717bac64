#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cut.h"

namespace skv {

// On-change mode (WindowShape::query_cosine): of each (layer, kv head) of one window the last read
// set that was ranked, and the queries that it was ranked by. While new queries are that close to
// them and no block was added, the set is read again and nothing is ranked. All that comes behind
// the cut goes on as ever: leases, slots, a table of a new version. Off by default: a stale query
// costs quality.
//
// Thread  that of the window's prefetches. No allocation once each head was ranked.
class KeptReads {
 public:
  KeptReads() = default;  // keeps nothing
  KeptReads(float query_cosine, uint32_t heads)
      : query_cosine_(query_cosine), heads_(query_cosine > 0.0F ? heads : 0) {}
  ~KeptReads() = default;
  KeptReads(KeptReads&&) = default;
  KeptReads& operator=(KeptReads&&) = default;
  KeptReads(const KeptReads&) = delete;  // a copy's sets would be the original's
  KeptReads& operator=(const KeptReads&) = delete;

  // `head`: WindowLayout::resident_set(layer, head). queries: fp32 [query][k_dim]. `end_block`: of
  // the context now. Null: rank. Else valid until keep() of that head.
  const ReadSet* find(uint32_t head,
                      std::span<const float> queries,
                      uint32_t k_dim,
                      uint32_t end_block) const;
  void keep(uint32_t head,
            std::span<const float> queries,
            uint32_t k_dim,
            uint32_t end_block,
            const ReadSet& read);

 private:
  struct Head {
    uint32_t end_block = 0;
    std::vector<float> queries;   // empty: never ranked
    std::vector<double> squares;  // of the length of each
    std::vector<uint32_t> blocks;
    std::vector<uint32_t> sentences;
    std::vector<float> scores;
    ReadSet read;  // of the three
  };

  float query_cosine_ = 0.0F;
  std::vector<Head> heads_;
};

}  // namespace skv
