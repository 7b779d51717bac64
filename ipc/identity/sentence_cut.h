#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

// Decides where sentences close on the block grid (docs/architecture.md "Words", sentence).
//
// A sentence closes at the first block edge e >= 32 tokens from its start with a declared end in
// (e - B/2, e + B/2], else at 64. An edge is decided when the tokens to e + B/2 are known and ends
// are final up to there, so the cut does not depend on how appends are batched (property-tested).
//
// Units   tokens for positions and ends; blocks for spans.
// Thread  the owner's. Plain value type.
class SentenceCut {
 public:
  explicit SentenceCut(uint32_t block_tokens) : block_tokens_(block_tokens) {}

  // `ends`: absolute token offsets (the position after the last token of a sentence), ascending,
  // each > the ends_final_to of earlier calls. `token_count`: tokens known in all. Returns the
  // sentences that closed by this call. Error: ends not ascending, or contradicting what was final.
  Result<std::vector<SentenceSpan>> extend(std::span<const uint32_t> ends,
                                           uint32_t ends_final_to,
                                           uint32_t token_count);

  // Starts again at `position` (a block edge): sentences before it were adopted from the directory.
  // Ends already declared after it count. Returns the sentences that close by what is known.
  std::vector<SentenceSpan> restart_at(uint32_t first_block);

  uint32_t closed_blocks() const { return next_first_block_; }

 private:
  std::vector<SentenceSpan> close_known();

  uint32_t block_tokens_;
  uint32_t next_first_block_ = 0;
  uint32_t token_count_ = 0;
  uint32_t ends_final_to_ = 0;
  std::vector<uint32_t> ends_;
};

}  // namespace skv
