#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "daemon/verbs.h"
#include "ipc/os_error.h"

namespace skv {

void context_open(Core& core, Session& session, const ContextOpen& message, const ReplyPtr& reply) {
  const auto model = session.models.find(ModelId{message.model});
  if (model == session.models.end()) {
    reply->error({ErrorCode::kUnknownHandle,
                  "model " + std::to_string(message.model) + " is not one of this session"});
    return;
  }
  if (session.contexts.size() >= core.config.session_contexts_max) {
    reply->error(limit_error("sessions.contexts", session.contexts.size(),
                             core.config.session_contexts_max));
    return;
  }
  if (!is_index_kind(message.index_kind)) {
    reply->error(
        {ErrorCode::kUnsupported, "index_kind " + std::to_string(message.index_kind) +
                                      " is not served; served are 0 to " +
                                      std::to_string(static_cast<uint32_t>(kIndexKindLast))});
    return;
  }
  const uint32_t block_tokens = model->second->descriptor().block_tokens;
  if (message.run_tokens == 0 || block_tokens % message.run_tokens != 0) {
    reply->error({ErrorCode::kInvalidArgument,
                  "run_tokens is " + std::to_string(message.run_tokens) +
                      ", it must divide block_tokens, " + std::to_string(block_tokens)});
    return;
  }
  const auto id = core.next_id<ContextId>();
  Context::Options options;
  options.id = id;
  options.session = session.id;
  options.space = session.space->id;
  options.space_salt = session.space->salt;
  options.model = model->second;
  options.index = {static_cast<IndexKind>(message.index_kind), message.run_tokens};
  session.contexts.emplace(id, std::make_shared<Context>(std::move(options)));
  reply->ok(ContextOpenReply{raw(id)});
}

void context_append(Core& core,
                    Session& session,
                    const ContextAppend& message,
                    const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  const uint64_t tokens = context->token_count() + message.tokens.size();
  if (tokens > core.config.session_context_tokens_max) {
    reply->error({ErrorCode::kTooLarge,
                  "sessions.context_tokens: the context would have " + std::to_string(tokens) +
                      " of " + std::to_string(core.config.session_context_tokens_max) + " tokens"});
    return;
  }
  const Result<ContextAppendReply> appended = context->append(message);
  if (!appended.ok()) {
    reply->error(appended.error());
    return;
  }
  if (!appended.value().closed_blocks.empty()) {
    core.feeds.context_changed(context->id());
    core.feeds.run_pending();
    core.lease_maps.context_changed(context->id());
    core.lease_maps.run_pending();
  }
  reply->ok(appended.value());
}

void context_close(Core& core,
                   Session& session,
                   const ContextClose& message,
                   const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  std::vector<WindowId> windows;
  for (const auto& [id, window] : session.windows) {
    if (window.context == context->id()) {
      windows.push_back(id);
      if (!window.open) {
        reply->error({ErrorCode::kBusy, "a window of this context is being opened"});
        return;
      }
    }
  }
  std::vector<SentenceUid> puts;
  for (const auto& [uid, put] : session.puts) {
    if (put.context == context->id()) {
      puts.push_back(uid);
    }
  }
  for (const SentenceUid uid : puts) {
    core.placement.put_cancel(session.id, uid);
    end_put(core, session, uid);
  }
  session.contexts.erase(context->id());
  if (windows.empty()) {
    reply->ok();
    return;
  }
  auto left = std::make_shared<size_t>(windows.size());
  for (const WindowId window : windows) {
    close_window(core, session, window, [left, reply] {
      if (--*left == 0) {
        reply->ok();
      }
    });
  }
}

void match(Core& core, Session& session, const Match& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  if (message.adopt > 1) {
    reply->error({ErrorCode::kInvalidArgument, "adopt is not 0 or 1"});
    return;
  }
  const Directory::Cover cover = context->match(core.directory);
  MatchReply answer;
  answer.hit_tokens = cover.hit_tokens;
  answer.pending_tokens = cover.pending_tokens;
  answer.outcome = static_cast<uint8_t>(cover.hit_tokens > 0       ? MatchOutcome::kHit
                                        : cover.pending_tokens > 0 ? MatchOutcome::kPending
                                                                   : MatchOutcome::kMiss);
  const Placement::TierTokens tiers = core.placement.tier_tokens(cover.path);
  answer.host_tokens = tiers.host;
  answer.nvme_tokens = tiers.nvme;
  if (message.adopt == 1) {
    if (const Result<void> adopted = context->adopt(core.directory, cover); !adopted.ok()) {
      reply->error(adopted.error());
      return;
    }
    for (const Context::ClosedSentence& sentence : context->sentences()) {
      answer.path_blocks.push_back(static_cast<uint8_t>(sentence.span.block_count));
    }
    core.placement.touch(cover.path);
  }
  reply->ok(answer);
}

void directory_map(Core& core, Session& session, const Empty&, const ReplyPtr& reply) {
  const SharedDirectoryWriter* directory = core.shared_directories.find(session.space->id);
  if (directory == nullptr) {
    reply->error(
        {ErrorCode::kUnsupported, "this daemon shares no directory: the system refused it"});
    return;
  }
  UniqueFd memory(::fcntl(directory->read_only_fd(), F_DUPFD_CLOEXEC, 3));
  if (!memory.valid()) {
    reply->error(os_error("duplicate the directory's descriptor"));
    return;
  }
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(memory));
  reply->ok(DirectoryMapReply{directory->bytes(), directory->generation()}, std::move(fds));
}

void drop(Core& core, Session& session, const Drop& message, const ReplyPtr& reply) {
  const std::shared_ptr<Context> context = context_of(session, message.context, reply);
  if (context == nullptr) {
    return;
  }
  if (message.first_sentence > context->sentence_count()) {
    reply->error({ErrorCode::kInvalidArgument,
                  "first_sentence is " + std::to_string(message.first_sentence) +
                      ", the context has " + std::to_string(context->sentence_count())});
    return;
  }
  std::vector<Digest> keys;
  for (uint32_t i = message.first_sentence; i < context->sentence_count(); ++i) {
    keys.push_back(context->sentence(i).key);
  }
  core.placement.drop(keys, [reply](const Result<Placement::DropOutcome>& outcome) {
    if (!outcome.ok()) {
      reply->error({outcome.error().code,
                    "dropped, but a restart may bring some back: " + outcome.error().message});
      return;
    }
    reply->ok(DropReply{outcome.value().dropped, outcome.value().kept});
  });
}

}  // namespace skv
