#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/rank.h"
#include "kernels/rank_pages.h"

namespace skv::bench {

// Contexts for the ranking benchmarks: several kv heads, equal sentences of 64 tokens.
struct RankShape {
  IndexKind kind = IndexKind::kFp16;
  uint32_t k_dim = 128;
  uint32_t heads = 8;
  uint32_t block_tokens = 8;
  uint32_t run_tokens = 1;
};

const char* name_of(IndexKind kind);

// `vectors` runs per head. Blobs are a few random ones over and over: times do not depend on them.
std::unique_ptr<VectorPages> random_pages(const RankShape& shape, uint32_t vectors);

// One head of `tokens` tokens: sentences have topics, tokens a part of their own, as keys do.
std::unique_ptr<VectorPages> topical_pages(const RankShape& shape, uint32_t tokens);

std::vector<float> random_queries(uint32_t count, uint32_t k_dim, uint64_t seed);

// Bytes of the vectors that a full scan of one head reads.
uint64_t scanned_bytes(const VectorPages& pages);

// Reads those bytes of all heads, page after page, as fast as this CPU does: the best of a few
// loops, chosen once by trying them. Returns a value that depends on every byte.
class StreamingRead {
 public:
  explicit StreamingRead(const VectorPages& pages);
  uint64_t run() const { return read_with(best_); }
  const char* loop_name() const;

 private:
  uint64_t read_with(int loop) const;

  struct Piece {
    const std::byte* from;
    uint64_t bytes;
  };
  std::vector<Piece> pieces_;
  int best_ = 0;
};

// CPU time of this thread: on a machine with other work, what they take is not counted.
double thread_seconds();

}  // namespace skv::bench
