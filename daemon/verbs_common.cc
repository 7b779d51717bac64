#include <utility>

#include "daemon/verbs.h"

namespace skv {
namespace {

Error unknown(const char* what, uint32_t handle) {
  return {ErrorCode::kUnknownHandle,
          std::string(what) + " " + std::to_string(handle) + " is not one of this session"};
}

}  // namespace

std::shared_ptr<Context> context_of(Session& session, uint32_t context, const ReplyPtr& reply) {
  const auto found = session.contexts.find(ContextId{context});
  if (found == session.contexts.end()) {
    reply->error(unknown("context", context));
    return nullptr;
  }
  return found->second;
}

const ClientMemory* memory_of(Session& session, uint32_t memory, const ReplyPtr& reply) {
  const auto found = session.memories.find(MemoryId{memory});
  if (found == session.memories.end()) {
    reply->error(unknown("memory", memory));
    return nullptr;
  }
  return &found->second;
}

bool check_sentences(const Context& context, const SentenceRange& range, const ReplyPtr& reply) {
  if (range.count == 0 || range.count > kReserveSentencesMax) {
    reply->error({ErrorCode::kInvalidArgument, "sentence_count is " + std::to_string(range.count) +
                                                   ", allowed are 1 to " +
                                                   std::to_string(kReserveSentencesMax)});
    return false;
  }
  if (const Result<void> inside = context.check_range(range.first, range.count); !inside.ok()) {
    reply->error(inside.error());
    return false;
  }
  return true;
}

bool check_layers(const Context& context, const LayerRange& layers, const ReplyPtr& reply) {
  const uint32_t count = context.model()->layout().layer_count();
  if (layers.count == 0 || layers.first >= count || layers.count > count - layers.first) {
    reply->error({ErrorCode::kInvalidArgument,
                  "layers [" + std::to_string(layers.first) + ", +" + std::to_string(layers.count) +
                      ") are not within the model's " + std::to_string(count)});
    return false;
  }
  return true;
}

Error limit_error(const char* what, uint64_t used, uint64_t limit) {
  return {ErrorCode::kTooLarge, std::string(what) + ": " + std::to_string(used) + " of " +
                                    std::to_string(limit) + " in use"};
}

}  // namespace skv
