#include "client/keys.h"

#include <utility>

#include "client/abi.h"

namespace skv::client {
namespace {

constexpr size_t kKeysTokensMax = 4U << 20;  // as of a context

}  // namespace

Keys::Keys(std::shared_ptr<Model> model)
    : Object(model->owner), model_(std::move(model)), chain_(model_->descriptor().block_tokens) {}

Result<void> Keys::append(std::span<const uint32_t> tokens, const Digest& extra) {
  const std::lock_guard lock(mutex_);
  const size_t known = prefixes_.size() * chain_.block_tokens();
  if (tokens.size() > kKeysTokensMax - std::min(known, kKeysTokensMax)) {
    return Error{ErrorCode::kTooLarge, "keys of " + std::to_string(known + tokens.size()) +
                                           " tokens, the limit is " +
                                           std::to_string(kKeysTokensMax)};
  }
  chain_.append(tokens, extra, prefixes_);
  make_tags();
  return {};
}

void Keys::make_tags() {
  if (serial_ == 0) return;  // the salt is not known yet
  tags_.reserve(prefixes_.size());
  while (tags_.size() < prefixes_.size()) {
    const auto end = static_cast<uint32_t>((tags_.size() + 1) * chain_.block_tokens());
    tags_.push_back(shared_directory_tag(
        boundary_key({salt_, model_->fingerprint(), prefixes_[tags_.size()], end})));
  }
}

Result<MatchReply> Keys::match() {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Connection> connection = model_->session()->last_connection();
  if (connection->peer_gone()) {
    SKV_TRY(again, model_->session()->connection(model_->session()->call_deadline()));
    connection = again;
  }
  if (serial_ != connection->serial()) {
    if (salt_ != connection->hello().space_salt || serial_ == 0) tags_.clear();
    salt_ = connection->hello().space_salt;
    serial_ = connection->serial();
    make_tags();
  }
  SKV_TRY(directory, connection->directory());
  const SharedDirectoryReader::Cover cover =
      directory->match({tags_, chain_.block_tokens(), connection->hello().session}, scratch_);
  MatchReply reply;
  reply.outcome = static_cast<uint8_t>(cover.hit_tokens > 0       ? MatchOutcome::kHit
                                       : cover.pending_tokens > 0 ? MatchOutcome::kPending
                                                                  : MatchOutcome::kMiss);
  reply.hit_tokens = cover.hit_tokens;
  reply.pending_tokens = cover.pending_tokens;
  reply.host_tokens = cover.host_tokens;
  reply.nvme_tokens = cover.hit_tokens - cover.host_tokens;
  return reply;
}

}  // namespace skv::client
