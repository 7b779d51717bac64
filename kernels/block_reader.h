#pragma once

#include <cstdint>
#include <span>

#include "kernels/rank_memory.h"

namespace skv {

// Of a few runs, mostly one: a call would cost more.
inline float* copy_runs(const float* from, uint32_t count, float* to) {
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
  return to + count;
}

// The page that holds a block, from one before it.
inline uint32_t page_of(const RankView& view, uint32_t block, uint32_t page) {
  while (size_t{page + 1} * kPageSentences < view.sentence_count &&
         view.sentences[size_t{page + 1} * kPageSentences].first_block <= block) {
    ++page;
  }
  return page;
}

// Logits [block][run] of single blocks, which ascend, of a kind that has a sketch: each piece of a
// tile is read once. `query` is scaled; its spread copy is made in the scratch.
void read_blocks(const RankCall& call,
                 const float* query,
                 std::span<const uint32_t> blocks,
                 float* to);

}  // namespace skv
