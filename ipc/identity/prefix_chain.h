#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ipc/identity/digest.h"
#include "ipc/types/ids.h"

namespace skv {

// The digests P_1, P_2, ... of a growing row of tokens (docs/protocol.md "Identity"). The daemon's
// contexts and a client's keys are made by it, so that both name the same prefixes.
//
// `extra` of a block: zero if all calls that gave it a token had zero; the one value if they had
// one; else SHA-256 over the different non-zero values in token order, equal neighbours once. So it
// does not depend on how appends are batched. Later blocks inherit it through the chain.
//
// Keeps the tokens of the last, partly filled block only.
class PrefixChain {
 public:
  explicit PrefixChain(uint32_t block_tokens);

  // Adds to `closed` the digest of each block that became whole.
  void append(std::span<const uint32_t> tokens, const Digest& extra, std::vector<Digest>& closed);

  const Digest& last() const { return last_; }  // P_0 at first
  uint32_t block_tokens() const { return block_tokens_; }

 private:
  Digest block_extra() const;

  uint32_t block_tokens_;
  Digest last_;
  std::vector<uint32_t> open_tokens_;  // of the block that is being filled
  std::vector<Digest> open_extras_;    // its non-zero extras in order, equal neighbours once
};

}  // namespace skv
