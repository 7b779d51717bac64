#include "ipc/identity/prefix_chain.h"

namespace skv {

PrefixChain::PrefixChain(uint32_t block_tokens)
    : block_tokens_(block_tokens), last_(root_digest(block_tokens)) {
  open_tokens_.reserve(block_tokens);
}

void PrefixChain::append(std::span<const uint32_t> tokens,
                         const Digest& extra,
                         std::vector<Digest>& closed) {
  for (const uint32_t token : tokens) {
    if (extra != Digest{} && (open_extras_.empty() || open_extras_.back() != extra)) {
      open_extras_.push_back(extra);
    }
    open_tokens_.push_back(token);
    if (open_tokens_.size() < block_tokens_) continue;
    last_ = next_digest(last_, open_tokens_, block_extra());
    closed.push_back(last_);
    open_tokens_.clear();
    open_extras_.clear();
  }
}

Digest PrefixChain::block_extra() const {
  if (open_extras_.empty()) return {};
  if (open_extras_.size() == 1) return open_extras_.front();
  std::vector<uint8_t> bytes;
  for (const Digest& extra : open_extras_) {
    bytes.insert(bytes.end(), extra.bytes.begin(), extra.bytes.end());
  }
  return sha256(bytes);
}

}  // namespace skv
