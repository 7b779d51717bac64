#pragma once

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "ipc/channel.h"
#include "ipc/layout/body_layout.h"
#include "ipc/layout/window.h"
#include "ipc/shared_memory.h"
#include "tests/daemon/raw_client.h"

namespace skv::test {

// Small, with several chunks per body: 6 layers x 2 kv heads x 64 dims of fp32 (two layers per
// chunk of 64 KiB).
inline ModelDescriptor small_model() {
  ModelDescriptor model;
  model.weights_id = "test/six-layers";
  model.dtype = BodyDtype::kFp32;
  LayerDescriptor layer;
  layer.kv_heads = 2;
  layer.queries_per_kv_head = 2;
  layer.k_dim = 64;
  layer.v_dim = 64;
  layer.softmax_scale = 0.125F;
  model.layers.assign(6, layer);
  return model;
}

// One engine process, played by a test: a document's tokens, its K and V by a rule that any other
// engine repeats, in a registered memory.
//
// Value of (layer, head, token, dim), K or V: a hash of the place and the token before it, in
// [-1, 1): so that bytes in a wrong place are wrong bytes.
class TestEngine {
 public:
  explicit TestEngine(uint32_t token_count, uint32_t seed = 1)
      : model_(small_model()), layout_(model_), token_count_(token_count), seed_(seed) {}

  bool open(const std::string& socket, const std::string& name = "engine") {
    if (!client_.open(socket, name)) {
      return false;
    }
    const Result<ModelOpenReply> model =
        client_.call<ModelOpenReply>(Verb::kModelOpen, ModelOpen{encode(model_)});
    if (!model.ok()) {
      return false;
    }
    model_id_ = model.value().model;
    return register_memory() && open_context();
  }

  bool register_memory() {
    const uint64_t bytes = side_bytes() * 2;
    Result<UniqueFd> fd = create_shared_memory("test-kv", bytes);
    if (!fd.ok()) {
      return false;
    }
    Result<MappedMemory> mapped =
        MappedMemory::map(fd.value().get(), bytes, MappedMemory::Access::kReadWrite);
    if (!mapped.ok()) {
      return false;
    }
    memory_ = std::move(mapped).value();
    const Result<MemoryRegisterReply> reply = client_.call<MemoryRegisterReply>(
        Verb::kMemoryRegister, MemoryRegister{bytes}, {fd.value().get()});
    memory_id_ = reply.ok() ? reply.value().memory : 0;
    return reply.ok();
  }

  bool open_context() {
    const Result<ContextOpenReply> context =
        client_.call<ContextOpenReply>(Verb::kContextOpen, ContextOpen{model_id_, 0, 2});
    context_id_ = context.ok() ? context.value().context : 0;
    spans_.clear();
    return context.ok();
  }

  // All tokens; a sentence ends every 40 tokens. The closed sentences.
  bool append_all() {
    ContextAppend message;
    message.context = context_id_;
    message.ends_final_to = token_count_;
    for (uint32_t token = 0; token < token_count_; ++token) {
      message.tokens.push_back(token_id(token));
      if ((token + 1) % 40 == 0) {
        message.ends.push_back(token + 1);
      }
    }
    const Result<ContextAppendReply> reply =
        client_.call<ContextAppendReply>(Verb::kContextAppend, message);
    if (!reply.ok()) {
      return false;
    }
    set_path(reply.value().closed_blocks);
    return true;
  }
  void set_path(const std::vector<uint8_t>& blocks) {
    spans_.clear();
    uint32_t first = 0;
    for (const uint8_t count : blocks) {
      spans_.push_back({first, static_cast<uint32_t>(count)});
      first += count;
    }
  }

  Result<MatchReply> match(bool adopt) {
    Result<MatchReply> reply = client_.call<MatchReply>(
        Verb::kMatch, Match{context_id_, static_cast<uint8_t>(adopt ? 1 : 0)});
    if (adopt && reply.ok()) {
      set_path(reply.value().path_blocks);
    }
    return reply;
  }

  // Fills the memory with the document's K and V.
  void compute() {
    for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) {
      for (uint32_t head = 0; head < 2; ++head) {
        for (uint32_t token = 0; token < token_count_; ++token) {
          for (uint32_t side = 0; side < 2; ++side) {
            float* const row = element(side, layer, head, token);
            for (uint32_t dim = 0; dim < 64; ++dim) {
              row[dim] = value(side, layer, head, token, dim);
            }
          }
        }
      }
    }
  }
  void reseed(uint32_t seed) { seed_ = seed; }  // another document from now on
  void clear() { std::memset(memory_.data(), 0, memory_.bytes()); }
  // Elements of [first_token, end) that differ from the rule.
  uint64_t wrong_values(uint32_t first_token, uint32_t end) const {
    uint64_t wrong = 0;
    for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) {
      for (uint32_t head = 0; head < 2; ++head) {
        for (uint32_t token = first_token; token < end; ++token) {
          for (uint32_t side = 0; side < 2; ++side) {
            const float* const row = element(side, layer, head, token);
            for (uint32_t dim = 0; dim < 64; ++dim) {
              wrong += row[dim] != value(side, layer, head, token, dim) ? 1U : 0U;
            }
          }
        }
      }
    }
    return wrong;
  }

  Result<PutOutcomes> reserve(uint32_t first, uint32_t count) {
    return client_.call<PutOutcomes>(Verb::kPutReserve, PutReserve{context_id_, first, count});
  }
  Result<Empty> write(uint32_t first, uint32_t count, LayerRange layers) {
    return client_.call<Empty>(Verb::kPutWrite, PutWrite{context_id_, first, count, layers.first,
                                                         layers.count, view(layers.first)});
  }
  Result<PutOutcomes> commit(uint32_t first, uint32_t count, bool derive = true) {
    return client_.call<PutOutcomes>(
        Verb::kPutCommit,
        PutCommit{context_id_, first, count, static_cast<uint8_t>(derive ? 1 : 0)});
  }
  // Reserve, write in groups of two layers, commit. The outcomes of the commit.
  Result<PutOutcomes> put(uint32_t first, uint32_t count) {
    const Result<PutOutcomes> reserved = reserve(first, count);
    if (!reserved.ok()) {
      return reserved.error();
    }
    for (uint32_t layer = 0; layer < layout_.layer_count(); layer += 2) {
      const Result<Empty> written = write(first, count, {layer, 2});
      if (!written.ok()) {
        return written.error();
      }
    }
    return commit(first, count);
  }

  Result<LoadReply> load(uint32_t first, uint32_t count, bool in_place = false) {
    Load message;
    message.context = context_id_;
    message.first_sentence = first;
    message.sentence_count = count;
    message.layer_count = layout_.layer_count();
    message.in_place = in_place ? 1 : 0;
    message.destination = view(0);
    return client_.call<LoadReply>(Verb::kLoad, message);
  }

  struct Window {
    WindowOpenReply reply;
    MappedMemory tables;
    MappedMemory slots;
  };
  Result<Window> open_window(const WindowOpen& counts) {
    WindowOpen message = counts;
    message.context = context_id_;
    Result<WindowOpenReply> reply = client_.call<WindowOpenReply>(Verb::kWindowOpen, message);
    if (!reply.ok()) {
      return reply.error();
    }
    Window window;
    window.reply = reply.value();
    Result<MappedMemory> tables = MappedMemory::map(
        client_.fds()[0].get(), window.reply.tables_bytes, MappedMemory::Access::kReadWrite);
    if (!tables.ok()) {
      return tables.error();
    }
    window.tables = std::move(tables).value();
    const int slots_fd =
        window.reply.slots_in_host != 0 ? client_.hello_fds()[1].get() : client_.fds()[1].get();
    Result<MappedMemory> slots =
        MappedMemory::map(slots_fd, window.reply.slots_bytes, MappedMemory::Access::kReadOnly);
    if (!slots.ok()) {
      return slots.error();
    }
    window.slots = std::move(slots).value();
    return window;
  }

  Result<ClientChannel> open_channel(uint64_t argument_area_bytes = 1 << 16) {
    const Result<ChannelOpenReply> reply =
        client_.call<ChannelOpenReply>(Verb::kChannelOpen, ChannelOpen{argument_area_bytes});
    if (!reply.ok()) {
      return reply.error();
    }
    channel_id_ = reply.value().channel;
    ChannelParts parts;
    parts.memory = std::move(client_.fds()[0]);
    parts.daemon_doorbell = std::move(client_.fds()[1]);
    parts.client_doorbell = std::move(client_.fds()[2]);
    parts.bytes = reply.value().bytes;
    parts.argument_area_offset = reply.value().argument_area_offset;
    return ClientChannel::attach(std::move(parts));
  }

  // One prefetch over all layers, by a query that is the key of `token` in each layer and head.
  Result<PrefetchRow> prefetch(ClientChannel& channel, const Window& window, uint32_t token) {
    std::byte* const argument = channel.argument_area().data();
    PrefetchRow row{};
    row.window = window.reply.window;
    std::memcpy(argument, &row, sizeof row);
    auto* query = reinterpret_cast<float*>(argument + sizeof row);
    for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) {
      for (uint32_t head = 0; head < 4; ++head) {
        for (uint32_t dim = 0; dim < 64; ++dim) {
          *query++ = 8.0F * value(0, layer, head / 2, token, dim);
        }
      }
    }
    SubmissionEntry entry{};
    entry.ticket = next_prefetch_++;
    entry.verb = static_cast<uint32_t>(ChannelVerb::kPrefetch);
    entry.row_count = 1;
    entry.layer_count = layout_.layer_count();
    entry.argument_bytes = sizeof row + layout_.layer_count() * 4 * 64 * 4;
    entry.cold = static_cast<uint32_t>(ColdMode::kWait);
    entry.deadline_us = 10'000'000;
    const Result<bool> submitted = channel.submit(entry);
    if (!submitted.ok()) {
      return submitted.error();
    }
    for (;;) {
      Result<std::optional<CompletionEntry>> done = channel.next_completion();
      if (!done.ok()) {
        return done.error();
      }
      if (done.value().has_value()) {
        std::memcpy(&row, argument, sizeof row);
        row.status = done.value()->status;
        return row;
      }
      const Result<ChannelWait> waited =
          channel.wait(std::chrono::seconds(30), client_.fd(), std::chrono::nanoseconds(0));
      if (!waited.ok()) {
        return waited.error();
      }
      if (waited.value() == ChannelWait::kTimeout) {
        return Error{ErrorCode::kTimeout, "no completion came"};
      }
    }
  }

  // A frame by the channel, whatever it is, and what comes back: its reply, the status of a
  // completion without one, or kDisconnected where the daemon ended the session.
  Result<Frame> by_channel(ClientChannel& channel, const std::vector<uint8_t>& frame) {
    std::memcpy(channel.argument_area().data(), frame.data(), frame.size());
    SubmissionEntry entry{};
    entry.ticket = next_prefetch_++;
    entry.verb = static_cast<uint32_t>(ChannelVerb::kRequest);
    entry.argument_bytes = static_cast<uint32_t>(frame.size());
    entry.reply_bytes_max = kMessageBytesMax;
    return by_channel(channel, entry);
  }
  Result<Frame> by_channel(ClientChannel& channel, const SubmissionEntry& entry) {
    if (const Result<bool> submitted = channel.submit(entry); !submitted.ok()) {
      return submitted.error();
    }
    for (;;) {
      const Result<std::optional<CompletionEntry>> done = channel.next_completion();
      if (!done.ok()) {
        return done.error();
      }
      if (done.value().has_value()) {
        if (done.value()->status != 0) {
          return Error{static_cast<ErrorCode>(done.value()->status), "by the completion"};
        }
        const auto* bytes = reinterpret_cast<const uint8_t*>(channel.argument_area().data()) +
                            entry.argument_offset;
        const std::vector<uint8_t> reply(bytes, bytes + done.value()->reply_bytes);
        const Result<FrameHeader> header = decode_header(reply);
        if (!header.ok()) {
          return header.error();
        }
        Frame frame;
        frame.header = header.value();
        frame.body.assign(reply.begin() + sizeof(FrameHeader), reply.end());
        return frame;
      }
      const Result<ChannelWait> waited = channel.wait(std::chrono::seconds(30), client_.fd());
      if (!waited.ok()) {
        return waited.error();
      }
      if (waited.value() == ChannelWait::kTimeout) {
        return Error{ErrorCode::kTimeout, "no completion came"};
      }
      if (waited.value() == ChannelWait::kSocket) {
        const Result<Frame> frame = client_.receive();
        if (!frame.ok()) {
          return frame.error();
        }
      }
    }
  }

  // Checks every entry of the current tables: blocks ascending, and the bytes in the slot those of
  // the block by the rule. Returns entries checked, or what is wrong.
  Result<uint32_t> check_tables(const Window& window) const {
    uint64_t layer_at = kWindowHeaderBytes;
    uint32_t checked = 0;
    const TableLayout at = TableLayout::of(2, window.reply.width);
    for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) {
      const std::byte* const base = window.tables.data() + layer_at;
      const uint64_t current = reinterpret_cast<const LayerTableHeader*>(base)->current.load();
      if (current == 0) {
        return Error{ErrorCode::kInternal, "layer " + std::to_string(layer) + " has no table"};
      }
      const std::byte* const buffer = base + sizeof(LayerTableHeader) + (current & 1) * at.bytes;
      const auto* header = reinterpret_cast<const TableHeader*>(buffer);
      if (header->version != current >> 1) {
        return Error{ErrorCode::kInternal, "a table's version is not the published one"};
      }
      const auto* indptr = reinterpret_cast<const uint32_t*>(buffer + at.indptr);
      const auto* slot = reinterpret_cast<const uint32_t*>(buffer + at.slot);
      const auto* block = reinterpret_cast<const uint32_t*>(buffer + at.block);
      for (uint32_t head = 0; head < 2; ++head) {
        for (uint32_t i = indptr[head]; i < indptr[head + 1]; ++i, ++checked) {
          if (i > indptr[head] && block[i] <= block[i - 1]) {
            return Error{ErrorCode::kInternal, "blocks do not ascend"};
          }
          const uint64_t offset = static_cast<uint64_t>(slot[i]) * window.reply.slot_unit_bytes;
          if (!block_is(window.slots.data() + offset, layer, head, block[i])) {
            return Error{ErrorCode::kCorrupt, "layer " + std::to_string(layer) + " head " +
                                                  std::to_string(head) + " block " +
                                                  std::to_string(block[i]) + ": wrong bytes"};
          }
        }
      }
      layer_at += sizeof(LayerTableHeader) + 2 * at.bytes;
    }
    return checked;
  }

  // [2][8][64] of fp32, K before V.
  bool block_is(const std::byte* bytes, uint32_t layer, uint32_t head, uint32_t block) const {
    const auto* values = reinterpret_cast<const float*>(bytes);
    for (uint32_t side = 0; side < 2; ++side) {
      for (uint32_t token = 0; token < 8; ++token) {
        for (uint32_t dim = 0; dim < 64; ++dim) {
          if (*values++ != value(side, layer, head, block * 8 + token, dim)) {
            return false;
          }
        }
      }
    }
    return true;
  }

  StridedKv view(uint32_t first_layer) const {
    StridedKv at;
    at.memory = memory_id_;
    at.layer_stride = 2ULL * token_count_ * 64 * 4;
    at.head_stride = static_cast<uint64_t>(token_count_) * 64 * 4;
    at.token_stride = 64ULL * 4;
    at.k_offset = first_layer * at.layer_stride;
    at.v_offset = side_bytes() + first_layer * at.layer_stride;
    return at;
  }

  RawClient& client() { return client_; }
  const std::vector<SentenceSpan>& spans() const { return spans_; }
  uint32_t sentence_count() const { return static_cast<uint32_t>(spans_.size()); }
  uint32_t end_token(uint32_t sentence) const { return spans_[sentence].end_block() * 8; }
  const BodyLayout& layout() const { return layout_; }
  uint32_t context_id() const { return context_id_; }
  uint32_t model_id() const { return model_id_; }
  uint32_t memory_id() const { return memory_id_; }
  uint32_t channel_id() const { return channel_id_; }
  MappedMemory& memory() { return memory_; }
  uint32_t token_id(uint32_t token) const { return token * 7919 + seed_; }

 private:
  uint64_t side_bytes() const { return 6ULL * 2 * token_count_ * 64 * 4; }
  float* element(uint32_t side, uint32_t layer, uint32_t head, uint32_t token) const {
    return reinterpret_cast<float*>(memory_.data() + side * side_bytes()) +
           ((static_cast<uint64_t>(layer) * 2 + head) * token_count_ + token) * 64;
  }
  float value(uint32_t side, uint32_t layer, uint32_t head, uint32_t token, uint32_t dim) const {
    uint32_t x = (((side * 6 + layer) * 2 + head) * 65536 + token) * 64 + dim;
    x = (x ^ seed_ * 0x9E3779B9U) * 0x85EBCA6BU;
    x = (x ^ x >> 15) * 0xC2B2AE35U;
    return static_cast<float>(static_cast<int32_t>(x ^ x >> 13) >> 8) * 0x1p-23F;
  }

  ModelDescriptor model_;
  BodyLayout layout_;
  uint32_t token_count_;
  uint32_t seed_;
  RawClient client_;
  MappedMemory memory_;
  uint32_t model_id_ = 0;
  uint32_t memory_id_ = 0;
  uint32_t context_id_ = 0;
  uint32_t channel_id_ = 0;
  uint64_t next_prefetch_ = 1;
  std::vector<SentenceSpan> spans_;
};

}  // namespace skv::test
