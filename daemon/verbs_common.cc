#include <utility>

#include "daemon/verbs.h"

namespace skv {
namespace {

Error unknown(const char* what, uint32_t handle) {
  return {ErrorCode::kUnknownHandle,
          std::string(what) + " " + std::to_string(handle) + " is not one of this session"};
}

// a * b + c, or false where that leaves 64 bits.
bool multiply_add(uint64_t a, uint64_t b, uint64_t c, uint64_t& out) {
  return !__builtin_mul_overflow(a, b, &out) && !__builtin_add_overflow(out, c, &out);
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

Result<void> check_view(const StridedKv& view,
                        const ViewRange& range,
                        const BodyLayout& layout,
                        uint64_t memory_bytes) {
  const auto outside = [&](const std::string& why) {
    return Error{ErrorCode::kInvalidArgument, "the strided view leaves its memory: " + why};
  };
  if (range.first_token < view.first_token) {
    return outside("first_token is " + std::to_string(view.first_token) + ", the range begins at " +
                   std::to_string(range.first_token));
  }
  // The last byte of the farthest element; all strides are unsigned, so it bounds the others.
  const uint64_t last_token = range.first_token - view.first_token + range.token_count - 1;
  for (uint32_t i = 0; i < range.layers.count; ++i) {
    const uint32_t layer = range.layers.first + i;
    const uint64_t sides[2][2] = {{view.k_offset, layout.k_dim(layer)},
                                  {view.v_offset, layout.v_dim(layer)}};
    for (const auto& [offset, dims] : sides) {
      uint64_t at = 0;
      uint64_t end = 0;
      if (!multiply_add(i, view.layer_stride, offset, at) ||
          !multiply_add(layout.kv_heads(layer) - 1, view.head_stride, at, at) ||
          !multiply_add(last_token, view.token_stride, at, at) ||
          __builtin_add_overflow(at, dims * layout.element_bytes(), &end) || end > memory_bytes) {
        return outside("layer " + std::to_string(layer) + " ends beyond its " +
                       std::to_string(memory_bytes) + " bytes");
      }
    }
  }
  return {};
}

Error limit_error(const char* what, uint64_t used, uint64_t limit) {
  return {ErrorCode::kTooLarge, std::string(what) + ": " + std::to_string(used) + " of " +
                                    std::to_string(limit) + " in use"};
}

}  // namespace skv
