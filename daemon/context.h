#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "daemon/directory.h"
#include "daemon/model.h"
#include "ipc/identity/digest.h"
#include "ipc/identity/prefix_chain.h"
#include "ipc/identity/sentence_cut.h"
#include "ipc/messages.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

inline constexpr uint32_t kContextTokensMax = 4 * 1024 * 1024;

// One session's path through the directory: its tokens as a chain of digests, and the sentences
// they were cut into. Nothing of it is stored; the same appends make the same context again.
//
// The tokens themselves are kept only for the last, partly filled block (PrefixChain). Per closed
// block it keeps the prefix digest and the boundary key (64 bytes).
//
// Units   positions, ends and counts in tokens; spans in blocks.
// Thread  loop.
// Errors  kInvalidArgument and kTooLarge name the field and the limit; a refused call changes
//         nothing.
class Context {
 public:
  struct Options {
    ContextId id{};
    SessionId session{};
    SpaceId space{};
    Digest space_salt;
    std::shared_ptr<const Model> model;
    IndexDescriptor index;
  };
  explicit Context(Options options);

  struct ClosedSentence {
    SentenceSpan span;
    Digest key;
  };

  Result<ContextAppendReply> append(const ContextAppend& message);

  // Takes the boundaries of `cover` and cuts again after them. kBusy once mark_used() was called.
  Result<void> adopt(const Directory& directory, const Directory::Cover& cover);

  // A put, a load or a window refers to sentences of this context by index: boundaries stay.
  void mark_used() { used_ = true; }
  bool used() const { return used_; }

  Directory::Cover match(const Directory& directory) const;

  uint32_t sentence_count() const { return static_cast<uint32_t>(sentences_.size()); }
  const ClosedSentence& sentence(uint32_t index) const { return sentences_[index]; }
  const std::vector<ClosedSentence>& sentences() const { return sentences_; }
  // [first, first + count) lies within the closed sentences; else kInvalidArgument naming both.
  Result<void> check_range(uint32_t first_sentence, uint32_t sentence_count) const;

  // What Directory::reserve() needs to know of a closed sentence.
  Directory::NewSentence describe(Directory& directory, uint32_t index) const;
  // Null if the directory has none with this key. Of any state.
  Sentence* find(const Directory& directory, uint32_t index) const;
  // Sentences from the first on that are stored (and, if asked, have vectors), without a gap.
  uint32_t stored_prefix(const Directory& directory, bool with_vectors) const;

  ContextId id() const { return options_.id; }
  SessionId session() const { return options_.session; }
  SpaceId space() const { return options_.space; }
  const std::shared_ptr<const Model>& model() const { return options_.model; }
  const IndexDescriptor& index() const { return options_.index; }
  uint32_t token_count() const { return token_count_; }
  uint32_t block_tokens() const { return block_tokens_; }
  uint32_t closed_blocks() const { return static_cast<uint32_t>(prefix_digests_.size() - 1); }
  uint32_t closed_tokens() const;  // end of the last closed sentence
  // P after `blocks` closed blocks.
  const Digest& prefix_digest(uint32_t blocks) const { return prefix_digests_[blocks]; }
  const Digest& boundary(uint32_t blocks) const { return boundary_keys_[blocks]; }

 private:
  Result<void> check_append(const ContextAppend& message) const;
  void add_tokens(std::span<const uint32_t> tokens, const Digest& extra);
  void close_sentences(const std::vector<SentenceSpan>& spans);
  Digest key_of(const SentenceSpan& span) const;

  Options options_;
  uint32_t block_tokens_;
  uint32_t token_count_ = 0;
  uint32_t ends_final_to_ = 0;
  bool used_ = false;
  SentenceCut cut_;
  PrefixChain chain_;
  std::vector<Digest> prefix_digests_;  // [0] is the root
  std::vector<Digest> boundary_keys_;
  std::vector<ClosedSentence> sentences_;
};

}  // namespace skv
