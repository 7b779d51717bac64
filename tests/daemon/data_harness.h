#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "daemon/data/data_core.h"
#include "ipc/channel.h"
#include "ipc/shared_memory.h"
#include "kernels/cut.h"
#include "kernels/rank.h"
#include "tiers/checksum.h"
#include "tiers/slot_pool_inline.h"
#include "tiers/slot_pool_none.h"

namespace skv::data_test {

// A model of 3 layers in 2 chunks, with a group of queries per kv head.
inline ModelDescriptor small_model() {
  ModelDescriptor model;
  model.weights_id = "data-test";
  model.dtype = BodyDtype::kFp32;
  for (int i = 0; i < 3; ++i) {
    LayerDescriptor layer;
    layer.kv_heads = 2;
    layer.queries_per_kv_head = 2;
    layer.k_dim = 64;
    layer.v_dim = 64;
    layer.softmax_scale = 0.125F;
    model.layers.push_back(layer);
  }
  return model;
}

// A sentence as an engine made it: random K and V, [layer][head][token][dim] each.
struct TestSentence {
  SentenceUid uid{};
  SentenceSpan span;
  std::vector<float> k, v;
  std::vector<HostChunk> chunks;
  VectorsBlob vectors;
};

struct TableRead {
  uint64_t version = 0;
  uint32_t covered_to = 0;
  float unread_mass = 0.0F;
  struct Entry {
    uint32_t slot, block, sentence;
    float score;
    Origin origin;
  };
  std::vector<std::vector<Entry>> heads;

  std::vector<uint32_t> blocks(uint32_t head) const {
    std::vector<uint32_t> all;
    for (const Entry& entry : heads[head]) all.push_back(entry.block);
    return all;
  }
};

// The client's end of a window, read as ipc/layout/window.h says.
class WindowReader {
 public:
  WindowReader(WindowOpened::Parts parts, const BodyLayout& layout, MappedMemory* arena)
      : parts_(std::move(parts)), layout_(layout) {
    tables_ = MappedMemory::map(parts_.tables.get(), parts_.tables_bytes,
                                MappedMemory::Access::kReadWrite)
                  .value();
    if (parts_.slots_in_host) {
      slots_ = arena->data();
    } else {
      slot_map_ =
          MappedMemory::map(parts_.slots.get(), parts_.slots_bytes, MappedMemory::Access::kReadOnly)
              .value();
      slots_ = slot_map_.data();
    }
  }

  WindowHeader& header() const { return *reinterpret_cast<WindowHeader*>(tables_.data()); }
  void done(uint64_t version) { header().readers_done.store(version, std::memory_order_release); }

  TableRead read(uint32_t layer) const {
    uint64_t at = kWindowHeaderBytes;
    for (uint32_t i = 0; i < layer; ++i) {
      at += sizeof(LayerTableHeader) + 2 * TableLayout::of(layout_.kv_heads(i), parts_.width).bytes;
    }
    const TableLayout places = TableLayout::of(layout_.kv_heads(layer), parts_.width);
    const auto& current = reinterpret_cast<const LayerTableHeader*>(tables_.data() + at)->current;
    const uint64_t word = current.load(std::memory_order_acquire);
    const std::byte* base =
        tables_.data() + at + sizeof(LayerTableHeader) + (word & 1) * places.bytes;
    TableRead table;
    if (word == 0) return table;
    TableHeader head{};
    std::memcpy(&head, base, sizeof head);
    EXPECT_EQ(head.version, word >> 1);
    EXPECT_EQ(head.head_count, layout_.kv_heads(layer));
    table.version = head.version;
    table.covered_to = head.covered_to;
    table.unread_mass = head.unread_mass;
    const auto* indptr = reinterpret_cast<const uint32_t*>(base + places.indptr);
    EXPECT_EQ(indptr[0], 0U);
    EXPECT_EQ(indptr[head.head_count], head.entry_count);
    for (uint32_t h = 0; h < head.head_count; ++h) {
      auto& entries = table.heads.emplace_back();
      for (uint32_t i = indptr[h]; i < indptr[h + 1]; ++i) {
        entries.push_back(
            {reinterpret_cast<const uint32_t*>(base + places.slot)[i],
             reinterpret_cast<const uint32_t*>(base + places.block)[i],
             reinterpret_cast<const uint32_t*>(base + places.sentence)[i],
             reinterpret_cast<const float*>(base + places.score)[i],
             static_cast<Origin>(reinterpret_cast<const uint8_t*>(base + places.origin)[i])});
      }
    }
    return table;
  }

  const std::byte* slot(uint32_t index) const {
    return slots_ + uint64_t{index} * parts_.slot_unit_bytes;
  }
  const WindowOpened::Parts& parts() const { return parts_; }

 private:
  WindowOpened::Parts parts_;
  const BodyLayout& layout_;
  MappedMemory tables_;
  MappedMemory slot_map_;
  const std::byte* slots_ = nullptr;
};

// A prefetch of one row, as a test sees it: its entry and the window that the row names, and what
// became of both.
struct TestSubmission : SubmissionEntry {
  uint32_t window = 0;
};
struct TestCompletion : PrefetchRow {
  uint64_t ticket = 0;
  CompletionEntry entry{};
};

struct HarnessSetup {
  bool device = true;
  uint64_t device_budget = 64u << 20;
  uint64_t tick_ns = 0;  // the clock moves by this at each look: above 0 slices end
  std::function<uint64_t(uint64_t)> put_ns{};  // and by this for the bytes put since the last one
  std::function<bool()> called{};              // DataOptions::called
  size_t moves_per_submit = ~size_t{0};
  bool hold_completions = false;
};

// A DataCore with a loop played by the test: it hands out host extents and keeps events.
class DataHarness {
 public:
  static constexpr SpaceId kSpace{1};
  static constexpr SessionId kSession{10};
  static constexpr ChannelId kChannel{20};
  static constexpr FeedId kFeed{30};
  static constexpr WindowId kWindow{40};
  static constexpr uint64_t kArenaBytes = 16u << 20;

  explicit DataHarness(const HarnessSetup& setup = {}) : setup_(setup), random_(1) {
    model_ = std::make_shared<const DataModel>(small_model());
    if (setup.device) {
      inline_pool_ =
          new InlineSlotPool({setup.device_budget, setup.moves_per_submit, setup.hold_completions});
      pool_.reset(inline_pool_);
    } else {
      pool_ = std::make_unique<NoneSlotPool>();
    }
    options_.now_ns = [this] { return now(); };
    options_.called = setup.called;
    options_.touch_interval_ns = 1'000'000;
    core_ = std::make_unique<DataCore>(options_, *pool_, counters_);
    UniqueFd arena = create_shared_memory("data-test-arena", kArenaBytes).value();
    arena_ = MappedMemory::map(arena.get(), kArenaBytes, MappedMemory::Access::kReadWrite).value();
    core_->handle(MapArena{kSpace, std::move(arena), arena_.data(), kArenaBytes});
  }

  const BodyLayout& layout() const { return model_->layout; }

  // Steps until nothing is left to do at once; a core that only waits stops it after `idle_steps`.
  void run(int idle_steps = 30) {
    for (int i = 0; i < 20000; ++i) {
      const size_t events_before = core_->events().size();
      const uint64_t wake = core_->step();
      if (core_->events().size() == events_before && (wake != 0 || --idle_steps < 0)) break;
    }
    for (DataEvent& event : core_->events()) events_.push_back(std::move(event));
    core_->events().clear();
  }

  template <typename Event>
  std::vector<Event> take() {
    std::vector<Event> found;
    std::vector<DataEvent> rest;
    for (DataEvent& event : events_) {
      if (auto* hit = std::get_if<Event>(&event)) {
        found.push_back(std::move(*hit));
      } else {
        rest.push_back(std::move(event));
      }
    }
    events_ = std::move(rest);
    return found;
  }

  // ---- sentences ----

  TestSentence make_sentence(uint32_t first_block, uint32_t block_count) {
    TestSentence sentence;
    sentence.uid = SentenceUid{next_uid_++};
    sentence.span = {first_block, block_count};
    std::normal_distribution<float> normal;
    const size_t rows = size_t{layout().layer_count()} * 2 * block_count * 8;
    sentence.k.resize(rows * 64);
    sentence.v.resize(rows * 64);
    for (float& value : sentence.k) value = normal(random_);
    for (float& value : sentence.v) value = normal(random_);
    return sentence;
  }

  const float* row(const std::vector<float>& values,
                   const TestSentence& sentence,
                   uint32_t layer,
                   uint32_t head,
                   uint32_t token) const {
    const size_t tokens = size_t{sentence.span.block_count} * 8;
    return values.data() + ((size_t{layer} * 2 + head) * tokens + token) * 64;
  }

  uint64_t new_extent(uint64_t bytes) {
    const uint64_t at = next_extent_;
    next_extent_ += bytes;
    EXPECT_LE(next_extent_, kArenaBytes);
    return at;
  }

  // Puts a sentence by a copy task from a registered memory, derives its vectors.
  void put(TestSentence& sentence) {
    SentenceExtents extents{sentence.span, {}, {}};
    for (uint32_t chunk = 0; chunk < layout().chunk_count(); ++chunk) {
      extents.extents.push_back(
          new_extent(layout().chunk_storage_bytes(chunk, sentence.span.block_count)));
      extents.checksum_chunks.push_back(chunk);
      sentence.chunks.push_back({extents.extents.back(), Origin::kHost});
    }
    const uint64_t k_bytes = sentence.k.size() * 4;
    auto memory = std::make_shared<std::vector<std::byte>>(2 * k_bytes);
    std::memcpy(memory->data(), sentence.k.data(), k_bytes);
    std::memcpy(memory->data() + k_bytes, sentence.v.data(), k_bytes);
    CopyTask task;
    task.task = TaskId{next_task_++};
    task.session = kSession;
    task.space = kSpace;
    task.direction = CopyDirection::kPut;
    task.model = model_;
    task.hold = memory;
    task.memory = memory->data();
    task.memory_bytes = memory->size();
    task.view = view(sentence, k_bytes);
    task.layers = {0, layout().layer_count()};
    task.sentences = {extents};
    core_->handle(std::move(task));
    DeriveTask derive;
    derive.task = TaskId{next_task_++};
    derive.session = kSession;
    derive.space = kSpace;
    derive.model = model_;
    derive.sentences = {extents};
    core_->handle(std::move(derive));
    run();
    const std::vector<TaskDone> done = take<TaskDone>();
    ASSERT_EQ(done.size(), 2U);
    ASSERT_TRUE(done[0].status.ok()) << done[0].status.error().message;
    ASSERT_TRUE(done[1].status.ok());
    ASSERT_EQ(done[0].sums.size(), layout().chunk_count());
    for (const TaskDone::Sum& sum : done[0].sums) {
      EXPECT_EQ(sum.sum, checksum({arena_.data() + sentence.chunks[sum.chunk].offset,
                                   layout().chunk_bytes(sum.chunk, sentence.span.block_count)}));
    }
    ASSERT_EQ(done[1].vectors.size(), 1U);
    sentence.vectors = done[1].vectors[0];
  }

  StridedKv view(const TestSentence& sentence, uint64_t v_offset) const {
    StridedKv strided;
    strided.v_offset = v_offset;
    strided.token_stride = 64 * 4;
    strided.head_stride = sentence.span.block_count * 8 * strided.token_stride;
    strided.layer_stride = 2 * strided.head_stride;
    strided.first_token = sentence.span.first_block * 8;
    return strided;
  }

  // A context of `count` sentences of 4..8 blocks, put, and fed but for the chunks in `cold`.
  void add_sentences(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t first = sentences_.empty() ? 0 : sentences_.back().span.end_block();
      TestSentence sentence = make_sentence(first, 4 + (static_cast<uint32_t>(random_()) % 5));
      put(sentence);
      sentences_.push_back(std::move(sentence));
    }
  }
  void open_feed() { core_->handle(OpenFeed{kFeed, kSpace, model_, IndexDescriptor{}}); }
  void feed(uint32_t first, uint32_t end, bool with_chunks = true) {
    std::vector<FeedSentence> fed;
    for (uint32_t i = first; i < end; ++i) {
      std::vector<HostChunk> chunks = sentences_[i].chunks;
      if (!with_chunks) chunks.assign(chunks.size(), HostChunk{});
      fed.push_back({sentences_[i].uid, sentences_[i].span, sentences_[i].vectors, chunks});
    }
    core_->handle(FeedSentences{kFeed, first, std::move(fed)});
  }
  void arrive(const ChunkRef& chunk, Origin origin = Origin::kNvme) {
    for (const TestSentence& sentence : sentences_) {
      if (sentence.uid != chunk.uid) continue;
      core_->handle(ChunkArrived{chunk, sentence.chunks[chunk.chunk].offset, origin});
    }
  }

  // ---- windows and channels ----

  OpenWindow window_options() const {
    OpenWindow options;
    options.session = kSession;
    options.window = kWindow;
    options.feed = kFeed;
    options.shape.budget_blocks = 6;
    options.shape.sink_blocks = 1;
    options.shape.recent_blocks = 2;
    options.shape.resident_blocks = 20;
    return options;
  }
  Result<std::unique_ptr<WindowReader>> open_window(const OpenWindow& options) {
    core_->handle(OpenWindow{options});
    run();
    std::vector<WindowOpened> opened = take<WindowOpened>();
    EXPECT_EQ(opened.size(), 1U);
    if (opened.size() != 1) return Error{ErrorCode::kInternal, "no answer"};
    if (!opened[0].parts.ok()) return opened[0].parts.error();
    return std::make_unique<WindowReader>(std::move(opened[0].parts).value(), layout(), &arena_);
  }
  std::unique_ptr<ClientChannel> open_channel(ChannelId id = kChannel,
                                              SessionId session = kSession) {
    core_->handle(OpenChannel{session, id, 64 * 1024});
    run();
    std::vector<ChannelOpened> opened = take<ChannelOpened>();
    EXPECT_EQ(opened.size(), 1U);
    return std::make_unique<ClientChannel>(
        ClientChannel::attach(std::move(opened.at(0).parts).value()).value());
  }

  std::vector<float> make_query(LayerRange layers) {
    std::normal_distribution<float> normal;
    std::vector<float> query(size_t{layers.count} * 4 * 64);
    for (float& value : query) value = 2.0F * normal(random_);
    return query;
  }
  TestSubmission entry(LayerRange layers) {
    TestSubmission submission{};
    submission.row_count = 1;
    submission.ticket = next_client_ticket_++;
    submission.verb = static_cast<uint32_t>(ChannelVerb::kPrefetch);
    submission.window = raw(kWindow);
    submission.first_layer = layers.first;
    submission.layer_count = layers.count;
    submission.argument_bytes = sizeof(PrefetchRow) + layers.count * 4 * 64 * 4;
    return submission;
  }
  void submit(ClientChannel& channel,
              const TestSubmission& submission,
              const std::vector<float>& query) {
    std::byte* const argument = channel.argument_area().data() + submission.argument_offset;
    PrefetchRow row{};
    row.window = submission.window;
    std::memcpy(argument, &row, sizeof row);
    std::memcpy(argument + sizeof row, query.data(), query.size() * 4);
    ASSERT_TRUE(channel.submit(submission).value());
  }
  // Of a submission whose argument is at the beginning of the area.
  std::optional<TestCompletion> completion(ClientChannel& channel) {
    const std::optional<CompletionEntry> entry = channel.next_completion().value();
    if (!entry) return std::nullopt;
    TestCompletion done;
    std::memcpy(static_cast<PrefetchRow*>(&done), channel.argument_area().data(),
                sizeof(PrefetchRow));
    done.ticket = entry->ticket;
    done.status = entry->status;
    done.entry = *entry;
    return done;
  }
  // Submits, runs, expects an answer.
  TestCompletion prefetch(ClientChannel& channel,
                          const TestSubmission& submission,
                          const std::vector<float>& query) {
    submit(channel, submission, query);
    run();
    std::optional<TestCompletion> done = completion(channel);
    EXPECT_TRUE(done);
    if (!done) {
      TestCompletion none;
      none.status = -1;
      return none;
    }
    EXPECT_EQ(done->ticket, submission.ticket);
    return *done;
  }

  // What a prefetch has to read: the reference kernels over pages built here from the same blobs.
  struct Expected {
    std::vector<uint32_t> blocks, sentences;
    std::vector<float> scores;
    float unread_mass = 0.0F;
  };
  Expected oracle(const OpenWindow& options,
                  uint32_t sentence_count,
                  LayerRange layers,
                  const std::vector<float>& query,
                  uint32_t layer,
                  uint32_t head) const {
    VectorPages pages(std::make_shared<const RankPageLayout>(
        VectorsLayout(model_->descriptor, IndexDescriptor{})));
    for (uint32_t i = 0; i < sentence_count; ++i) {
      pages.append(sentences_[i].span.block_count, *sentences_[i].vectors);
    }
    RankScratch scratch;
    CutScratch cut_scratch;
    RankQuery rank_query{query.data() + ((layer - layers.first) * 4 + head * 2) * 64, 2, 0.125F};
    RankOptions rank_options;
    rank_options.sink_blocks = options.shape.sink_blocks;
    rank_options.recent_blocks = options.shape.recent_blocks;
    rank_options.coarse_blocks = std::max(4 * options.shape.budget_blocks, 512U);
    const RankResult ranked =
        rank_reference(pages.view(layer, head), rank_query, rank_options, scratch);
    const ReadSet read = cut(ranked, options.shape.cut_options(layer * 2 + head), cut_scratch);
    return {{read.blocks.begin(), read.blocks.end()},
            {read.sentences.begin(), read.sentences.end()},
            {read.scores.begin(), read.scores.end()},
            read.unread_mass};
  }

  // Every entry of the layer's table is the expected block, with the engine's bytes in its slot.
  void expect_table(const WindowReader& reader,
                    const OpenWindow& options,
                    LayerRange layers,
                    const std::vector<float>& query,
                    uint32_t layer) const {
    const TableRead table = reader.read(layer);
    ASSERT_EQ(table.heads.size(), 2U);
    const auto sentence_count = static_cast<uint32_t>(sentences_.size());
    EXPECT_EQ(table.covered_to, sentences_.back().span.end_block() * 8);
    for (uint32_t head = 0; head < 2; ++head) {
      const Expected expected = oracle(options, sentence_count, layers, query, layer, head);
      EXPECT_EQ(table.blocks(head), expected.blocks);
      for (size_t i = 0; i < table.heads[head].size() && i < expected.blocks.size(); ++i) {
        EXPECT_EQ(table.heads[head][i].sentence, expected.sentences[i]);
        EXPECT_EQ(table.heads[head][i].score, expected.scores[i]);
      }
      expect_bytes(reader, table, layer, head);
    }
  }
  void expect_bytes(const WindowReader& reader,
                    const TableRead& table,
                    uint32_t layer,
                    uint32_t head) const {
    for (const TableRead::Entry& entry : table.heads[head]) {
      const TestSentence& sentence = sentences_[entry.sentence];
      const uint32_t token = (entry.block - sentence.span.first_block) * 8;
      const std::byte* bytes = reader.slot(entry.slot);
      EXPECT_EQ(std::memcmp(bytes, row(sentence.k, sentence, layer, head, token), 8 * 64 * 4), 0)
          << "K of block " << entry.block;
      EXPECT_EQ(std::memcmp(bytes + 8 * 64 * 4, row(sentence.v, sentence, layer, head, token),
                            8 * 64 * 4),
                0)
          << "V of block " << entry.block;
    }
  }

  DataCore& core() { return *core_; }
  InlineSlotPool& inline_pool() { return *inline_pool_; }
  std::vector<TestSentence>& sentences() { return sentences_; }
  const TestSentence& sentence_at(uint32_t index) const { return sentences_.at(index); }
  const DataModelPtr& model() const { return model_; }
  DataCounters& counters() { return counters_; }
  MappedMemory& arena() { return arena_; }
  void pass(uint64_t ns) { now_ns_ += ns; }

 private:
  uint64_t now() {
    if (setup_.put_ns) {
      const uint64_t bytes = counters_.bytes_put;
      if (bytes != bytes_put_) now_ns_ += setup_.put_ns(bytes - std::exchange(bytes_put_, bytes));
    }
    return now_ns_ += setup_.tick_ns;
  }

  HarnessSetup setup_;
  std::mt19937_64 random_;
  uint64_t bytes_put_ = 0;
  uint64_t now_ns_ = 1'000'000'000;
  DataModelPtr model_;
  DataOptions options_;
  DataCounters counters_;
  MappedMemory arena_;
  InlineSlotPool* inline_pool_ = nullptr;
  std::unique_ptr<SlotPool> pool_;
  std::unique_ptr<DataCore> core_;
  std::vector<DataEvent> events_;
  std::vector<TestSentence> sentences_;
  uint64_t next_uid_ = 1;
  uint64_t next_task_ = 1;
  uint64_t next_extent_ = 0;
  uint64_t next_client_ticket_ = 100;
};

}  // namespace skv::data_test
