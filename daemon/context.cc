#include "daemon/context.h"

#include <algorithm>
#include <string>
#include <utility>

namespace skv {
namespace {

std::string both(uint64_t given, const char* relation, uint64_t limit) {
  return std::to_string(given) + " " + relation + " " + std::to_string(limit);
}

}  // namespace

Context::Context(Options options)
    : options_(std::move(options)),
      block_tokens_(options_.model->layout().block_tokens()),
      cut_(block_tokens_),
      chain_(block_tokens_) {
  prefix_digests_.push_back(chain_.last());
  boundary_keys_.push_back(
      boundary_key({options_.space_salt, options_.model->fingerprint, prefix_digests_.front(), 0}));
}

Result<void> Context::check_append(const ContextAppend& message) const {
  if (message.first_position != token_count_) {
    return Error{ErrorCode::kInvalidArgument,
                 "first_position " +
                     both(message.first_position, "is not the context's length of", token_count_)};
  }
  if (message.tokens.size() > kAppendTokensMax) {
    return Error{
        ErrorCode::kTooLarge,
        "tokens: " + both(message.tokens.size(), "in one append, at most", kAppendTokensMax)};
  }
  if (message.tokens.size() > kContextTokensMax - token_count_) {
    return Error{ErrorCode::kTooLarge, "tokens: the context would have " +
                                           both(uint64_t{token_count_} + message.tokens.size(),
                                                "tokens, at most", kContextTokensMax)};
  }
  if (message.ends_final_to > kContextTokensMax) {
    return Error{ErrorCode::kInvalidArgument,
                 "ends_final_to " + both(message.ends_final_to, "is above", kContextTokensMax)};
  }
  if (!message.ends.empty() && message.ends.back() > kContextTokensMax) {
    return Error{ErrorCode::kInvalidArgument,
                 "ends: " + both(message.ends.back(), "is above", kContextTokensMax)};
  }
  return {};
}

Result<ContextAppendReply> Context::append(const ContextAppend& message) {
  if (Result<void> checked = check_append(message); !checked.ok()) return checked.error();
  const auto token_count = token_count_ + static_cast<uint32_t>(message.tokens.size());
  // Checks the ends, and is the last that can fail.
  Result<std::vector<SentenceSpan>> closed =
      cut_.extend(message.ends, message.ends_final_to, token_count);
  if (!closed.ok()) return closed.error();

  add_tokens(message.tokens, message.extra);
  ContextAppendReply reply;
  reply.token_count = token_count_;
  reply.first_sentence = sentence_count();
  for (const SentenceSpan& span : closed.value()) {
    reply.closed_blocks.push_back(static_cast<uint8_t>(span.block_count));
  }
  close_sentences(closed.value());
  return reply;
}

void Context::add_tokens(std::span<const uint32_t> tokens, const Digest& extra) {
  chain_.append(tokens, extra, prefix_digests_);
  token_count_ += static_cast<uint32_t>(tokens.size());
  while (boundary_keys_.size() < prefix_digests_.size()) {
    const auto position = static_cast<uint32_t>(boundary_keys_.size()) * block_tokens_;
    boundary_keys_.push_back(boundary_key({options_.space_salt, options_.model->fingerprint,
                                           prefix_digests_[boundary_keys_.size()], position}));
  }
}

Digest Context::key_of(const SentenceSpan& span) const {
  return sentence_key({options_.space_salt, options_.model->fingerprint,
                       prefix_digests_[span.end_block()], span.first_block * block_tokens_});
}

void Context::close_sentences(const std::vector<SentenceSpan>& spans) {
  for (const SentenceSpan& span : spans) sentences_.push_back({span, key_of(span)});
}

uint32_t Context::closed_tokens() const {
  return sentences_.empty() ? 0 : sentences_.back().span.end_block() * block_tokens_;
}

Directory::Cover Context::match(const Directory& directory) const {
  return directory.match({options_.session, block_tokens_, boundary_keys_});
}

Result<void> Context::adopt(const Directory& directory, const Directory::Cover& cover) {
  if (used_) {
    return Error{ErrorCode::kBusy,
                 "context " + std::to_string(raw(options_.id)) +
                     ": a put, load or window refers to its sentences, boundaries are fixed"};
  }
  std::vector<ClosedSentence> adopted;
  uint32_t block = 0;
  for (const SentenceUid uid : cover.path) {
    const Sentence* sentence = directory.find(uid);
    if (sentence == nullptr || sentence->first_position != block * block_tokens_) {
      return Error{ErrorCode::kNotFound, "a sentence of the cover is gone"};
    }
    adopted.push_back({{block, sentence->shape->block_count()}, sentence->key});
    block += sentence->shape->block_count();
  }
  sentences_ = std::move(adopted);
  close_sentences(cut_.restart_at(block));
  return {};
}

Result<void> Context::check_range(uint32_t first_sentence, uint32_t sentence_count) const {
  const auto closed = static_cast<uint32_t>(sentences_.size());
  if (first_sentence > closed || sentence_count > closed - first_sentence) {
    return Error{ErrorCode::kInvalidArgument,
                 "sentences [" + std::to_string(first_sentence) + ", " +
                     std::to_string(uint64_t{first_sentence} + sentence_count) +
                     ") of a context with " + std::to_string(closed) + " closed sentences"};
  }
  return {};
}

Directory::NewSentence Context::describe(Directory& directory, uint32_t index) const {
  const ClosedSentence& closed = sentences_[index];
  Directory::NewSentence sentence;
  sentence.space = options_.space;
  sentence.owner = options_.session;
  sentence.index = options_.index;
  sentence.first_position = closed.span.first_block * block_tokens_;
  sentence.key = closed.key;
  sentence.start_key = boundary_keys_[closed.span.first_block];
  sentence.end_key = boundary_keys_[closed.span.end_block()];
  sentence.end_prefix = prefix_digests_[closed.span.end_block()];
  sentence.shape = directory.shape(*options_.model, closed.span.block_count);
  return sentence;
}

Sentence* Context::find(const Directory& directory, uint32_t index) const {
  return directory.find(sentences_[index].key);
}

uint32_t Context::stored_prefix(const Directory& directory, bool with_vectors) const {
  uint32_t count = 0;
  while (count < sentence_count()) {
    const Sentence* sentence = find(directory, count);
    if (sentence == nullptr || sentence->state != SentenceState::kStored) break;
    if (with_vectors && (sentence->vectors_bytes == 0 || !(sentence->index == options_.index))) {
      break;
    }
    ++count;
  }
  return count;
}

}  // namespace skv
