#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ipc/types/ids.h"

namespace skv {

// Identity of prefixes and sentences (docs/protocol.md "Identity" has the byte encoding and a test
// vector). P_0 = SHA-256(tag, block_tokens); P_i = SHA-256(P_{i-1} || tokens as u32 LE || extra_i).
Digest root_digest(uint32_t block_tokens);
Digest next_digest(const Digest& previous,
                   std::span<const uint32_t> block_tokens,
                   const Digest& extra);

// SHA-256(tag, space salt, fingerprint, P(end), first position as u32 LE).
struct SentenceKeyParts {
  Digest space_salt;
  Digest fingerprint;
  Digest end_digest;
  uint32_t first_position = 0;  // tokens
};
Digest sentence_key(const SentenceKeyParts& parts);

// The node of the directory's graph: SHA-256(tag, space salt, fingerprint, P(e), e as u32 LE
// tokens).
struct BoundaryKeyParts {
  Digest space_salt;
  Digest fingerprint;
  Digest prefix_digest;
  uint32_t position = 0;  // tokens
};
Digest boundary_key(const BoundaryKeyParts& parts);

Digest sha256(std::span<const uint8_t> bytes);

}  // namespace skv
