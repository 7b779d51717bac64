#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <span>
#include <thread>

#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

class DataCopy : public ::testing::Test {
 protected:
  SentenceExtents extents_of(const TestSentence& sentence, uint32_t first_chunk = 0) const {
    SentenceExtents extents{sentence.span, {}, {}};
    for (uint32_t i = first_chunk; i < sentence.chunks.size(); ++i) {
      extents.extents.push_back(sentence.chunks[i].offset);
    }
    return extents;
  }
  CopyTask task(CopyDirection direction, std::span<std::byte> memory) {
    CopyTask made;
    made.task = TaskId{1};
    made.session = DataHarness::kSession;
    made.space = DataHarness::kSpace;
    made.direction = direction;
    made.model = harness_.model();
    made.memory = memory.data();
    made.memory_bytes = memory.size();
    made.layers = {0, 3};
    return made;
  }
  TaskDone run(CopyTask made) {
    harness_.core().handle(std::move(made));
    harness_.run();
    std::vector<TaskDone> done = harness_.take<TaskDone>();
    EXPECT_EQ(done.size(), 1U);
    return done.empty() ? TaskDone{} : std::move(done[0]);
  }

  DataHarness harness_;
};

// Goal: what was put comes back by load, whatever the strides of the two.
// Method: put contiguous (the harness), load into a [token][layer][head] layout with gaps, and
// look at every element; the gaps keep their pattern.
TEST_F(DataCopy, LoadScattersByStridesAndTouchesNothingElse) {
  harness_.add_sentences(2);
  const uint64_t row = 64 * 4;
  const uint64_t head_stride = 2 * row + 16;  // K, V, gap
  const uint64_t layer_stride = 2 * head_stride;
  const uint64_t token_stride = 3 * layer_stride + 64;
  const uint32_t tokens = harness_.sentences()[1].span.end_block() * 8;
  std::vector<std::byte> memory(token_stride * tokens, std::byte{0x5A});
  CopyTask load = task(CopyDirection::kLoad, memory);
  load.view.v_offset = row;
  load.view.head_stride = head_stride;
  load.view.layer_stride = layer_stride;
  load.view.token_stride = token_stride;
  load.sentences = {extents_of(harness_.sentences()[0]), extents_of(harness_.sentences()[1])};
  const TaskDone done = run(std::move(load));
  ASSERT_TRUE(done.status.ok());
  EXPECT_EQ(done.bytes, 3 * 2 * tokens * 2 * row);

  for (const TestSentence& sentence : harness_.sentences()) {
    for (uint32_t token = 0; token < sentence.span.block_count * 8; ++token) {
      for (uint32_t layer = 0; layer < 3; ++layer) {
        for (uint32_t head = 0; head < 2; ++head) {
          std::byte* at = memory.data() + (sentence.span.first_block * 8 + token) * token_stride +
                          layer * layer_stride + head * head_stride;
          ASSERT_EQ(std::memcmp(at, harness_.row(sentence.k, sentence, layer, head, token), row),
                    0);
          ASSERT_EQ(
              std::memcmp(at + row, harness_.row(sentence.v, sentence, layer, head, token), row),
              0);
          std::memset(at, 0x5A, 2 * row);
        }
      }
    }
  }
  EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{0x5A}),
            static_cast<ptrdiff_t>(memory.size()))
      << "gaps were left alone";
}

// Goal: layers written by several puts make the same body and the same sums as one put.
TEST_F(DataCopy, LayerByLayerMakesTheSameSums) {
  harness_.add_sentences(1);
  TestSentence& sentence = harness_.sentences()[0];
  const uint64_t k_bytes = sentence.k.size() * 4;
  std::vector<std::byte> memory(2 * k_bytes);
  std::memcpy(memory.data(), sentence.k.data(), k_bytes);
  std::memcpy(memory.data() + k_bytes, sentence.v.data(), k_bytes);
  std::vector<ChunkSum> before;
  for (uint32_t chunk = 0; chunk < 2; ++chunk) {
    const uint64_t bytes = harness_.layout().chunk_bytes(chunk, sentence.span.block_count);
    before.push_back(checksum({harness_.arena().data() + sentence.chunks[chunk].offset, bytes}));
    std::memset(harness_.arena().data() + sentence.chunks[chunk].offset, 0, bytes);
  }
  std::vector<ChunkSum> after(2);
  for (const uint32_t layer : {2U, 0U, 1U}) {
    CopyTask put = task(CopyDirection::kPut, memory);
    put.view = harness_.view(sentence, k_bytes);
    put.view.k_offset += layer * put.view.layer_stride;
    put.view.v_offset += layer * put.view.layer_stride;
    put.layers = {layer, 1};
    const uint32_t chunk = harness_.layout().chunk_of(layer);
    put.sentences = {extents_of(sentence, chunk)};
    if (layer == 2) put.sentences[0].checksum_chunks = {1};
    if (layer == 1) put.sentences[0].checksum_chunks = {0};
    const TaskDone done = run(std::move(put));
    ASSERT_TRUE(done.status.ok());
    for (const TaskDone::Sum& sum : done.sums) after[sum.chunk] = sum.sum;
  }
  EXPECT_EQ(after, before);
}

// Goal: the sum of a chunk that comes in several puts is made while it is copied when its layers
// come in order, and is that of the extent whatever the order and however often they come.
// Method: layers 0 and 1 are one chunk. Each case is a list of writes, the last of which asks for
// the sum; bytes summed a second time tell how it was made.
TEST_F(DataCopy, ASumGoesOnFromOnePutToTheNext) {
  struct Case {
    std::vector<uint32_t> layers;
    bool in_one_pass;
  };
  const Case cases[] = {{{0, 1}, true},     {{1, 0}, false},      {{0, 0, 1}, true},
                        {{0, 1, 1}, false}, {{0, 1, 0}, false},   {{0, 1, 0, 1}, true},
                        {{1, 0, 1}, true},  {{0, 2, 1, 1}, false}};
  harness_.add_sentences(1);
  TestSentence& sentence = harness_.sentences()[0];
  const uint64_t k_bytes = sentence.k.size() * 4;
  const uint64_t bytes = harness_.layout().chunk_bytes(0, sentence.span.block_count);
  std::vector<std::byte> memory(2 * k_bytes);
  uint8_t round = 0;
  for (const Case& each : cases) {
    const uint64_t again = harness_.counters().bytes_summed_again;
    std::vector<TaskDone::Sum> sums;
    for (size_t i = 0; i < each.layers.size(); ++i) {
      std::memset(memory.data(), ++round, memory.size());
      const uint32_t layer = each.layers[i];
      CopyTask put = task(CopyDirection::kPut, memory);
      put.view = harness_.view(sentence, k_bytes);
      put.layers = {layer, 1};
      put.sentences = {extents_of(sentence, harness_.layout().chunk_of(layer))};
      put.sentences[0].uid = sentence.uid;
      if (i + 1 == each.layers.size()) put.sentences[0].checksum_chunks = {0};
      TaskDone done = run(std::move(put));
      ASSERT_TRUE(done.status.ok());
      sums = std::move(done.sums);
    }
    ASSERT_EQ(sums.size(), 1U);
    EXPECT_EQ(sums[0].sum, checksum({harness_.arena().data() + sentence.chunks[0].offset, bytes}))
        << "case " << &each - cases;
    EXPECT_EQ(harness_.counters().bytes_summed_again - again, each.in_one_pass ? 0 : bytes)
        << "case " << &each - cases;
  }
}

// Goal: the sum is that of the bytes in the extent, never of bytes that a client put in their place
// while they were copied.
// Method: a second thread changes the source all the time, through a mapping of its own as a client
// does.
TEST_F(DataCopy, ASourceThatChangesIsSummedAsItWasCopied) {
  harness_.add_sentences(1);
  const TestSentence& sentence = harness_.sentences()[0];
  const uint64_t k_bytes = sentence.k.size() * 4;
  const UniqueFd shared = create_shared_memory("skv-test", 2 * k_bytes).value();
  const auto map = [&] {
    return MappedMemory::map(shared.get(), 2 * k_bytes, MappedMemory::Access::kReadWrite).value();
  };
  const MappedMemory memory = map();
  const MappedMemory clients = map();
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    volatile auto* words = reinterpret_cast<uint64_t*>(clients.data());
    for (uint64_t value = 0; !stop; ++value) {
      for (size_t i = 0; i < 2 * k_bytes / 8; i += 7) words[i] = value;
    }
  });
  for (int i = 0; i < 50; ++i) {
    CopyTask put = task(CopyDirection::kPut, {memory.data(), 2 * k_bytes});
    put.view = harness_.view(sentence, k_bytes);
    put.sentences = {extents_of(sentence)};
    put.sentences[0].checksum_chunks = {0, 1};
    const TaskDone done = run(std::move(put));
    ASSERT_EQ(done.sums.size(), 2U);
    for (const TaskDone::Sum& sum : done.sums) {
      const uint64_t bytes = harness_.layout().chunk_bytes(sum.chunk, sentence.span.block_count);
      EXPECT_EQ(sum.sum,
                checksum({harness_.arena().data() + sentence.chunks[sum.chunk].offset, bytes}));
    }
  }
  stop = true;
  writer.join();
}

// Goal: no view of a client makes us leave its memory.
TEST_F(DataCopy, AViewOutsideItsMemoryIsRefusedBeforeAnyByte) {
  harness_.add_sentences(1);
  const TestSentence& sentence = harness_.sentences()[0];
  const uint64_t k_bytes = sentence.k.size() * 4;
  std::vector<std::byte> memory(2 * k_bytes, std::byte{1});
  const StridedKv good = harness_.view(sentence, k_bytes);
  const uint64_t huge = ~uint64_t{0};
  std::vector<StridedKv> bad;
  const auto change = [&](auto edit) {
    bad.push_back(good);
    edit(bad.back());
  };
  change([&](auto& v) { v.v_offset += 4; });
  change([&](auto& v) { v.k_offset = k_bytes + 4; });
  change([&](auto& v) { v.k_offset = huge; });
  change([&](auto& v) { v.v_offset = huge - 100; });
  change([&](auto& v) { v.layer_stride += 1; });
  change([&](auto& v) { v.layer_stride = huge / 2 + 1; });
  change([&](auto& v) { v.head_stride = huge; });
  change([&](auto& v) { v.token_stride = huge / 3; });
  change([&](auto& v) { v.first_token = 1; });
  for (const CopyDirection direction : {CopyDirection::kPut, CopyDirection::kLoad}) {
    for (const StridedKv& view : bad) {
      CopyTask made = task(direction, memory);
      made.view = view;
      made.sentences = {extents_of(sentence)};
      const TaskDone done = run(std::move(made));
      ASSERT_FALSE(done.status.ok());
      EXPECT_EQ(done.status.error().code, ErrorCode::kInvalidArgument);
      EXPECT_EQ(done.bytes, 0U);
    }
  }
  EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{1}),
            static_cast<ptrdiff_t>(memory.size()));
  CopyTask made = task(CopyDirection::kLoad, memory);
  made.view = good;
  made.sentences = {extents_of(sentence)};
  EXPECT_TRUE(run(std::move(made)).status.ok());
}

TEST_F(DataCopy, VectorsOfAnEngineAreCheckedAndKept) {
  harness_.add_sentences(2);
  std::vector<std::byte> memory(100);
  for (const TestSentence& sentence : harness_.sentences()) {
    memory.insert(memory.end(), sentence.vectors->begin(), sentence.vectors->end());
  }
  const auto put = [&](uint64_t bytes) {
    CopyVectorsTask made;
    made.task = TaskId{5};
    made.session = DataHarness::kSession;
    made.model = harness_.model();
    made.memory = memory.data();
    made.memory_bytes = memory.size();
    made.offset = 100;
    made.bytes = bytes;
    made.spans = {harness_.sentences()[0].span, harness_.sentences()[1].span};
    harness_.core().handle(std::move(made));
    harness_.run();
    std::vector<TaskDone> done = harness_.take<TaskDone>();
    EXPECT_EQ(done.size(), 1U);
    return std::move(done.at(0));
  };
  const TaskDone good = put(memory.size() - 100);
  ASSERT_TRUE(good.status.ok());
  ASSERT_EQ(good.vectors.size(), 2U);
  EXPECT_EQ(*good.vectors[1], *harness_.sentences()[1].vectors);
  EXPECT_EQ(put(memory.size()).status.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(put(8).status.error().code, ErrorCode::kInvalidArgument);
  memory[100] = std::byte{0xFF};
  memory[101] = std::byte{0x7F};  // an fp16 NaN
  const TaskDone bad = put(memory.size() - 100);
  EXPECT_EQ(bad.status.error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(bad.vectors.empty());
}

// Goal: one session's long copy does not hold up another's short one.
TEST(DataCopyOrder, SessionsTakeTurns) {
  HarnessSetup setup;
  setup.tick_ns = 300'000;  // a slice is one unit
  DataHarness harness(setup);
  harness.add_sentences(6);
  const auto derive = [&](uint64_t task, uint32_t session, uint32_t count) {
    DeriveTask made;
    made.task = TaskId{task};
    made.session = SessionId{session};
    made.space = DataHarness::kSpace;
    made.model = harness.model();
    for (uint32_t i = 0; i < count; ++i) {
      const TestSentence& sentence = harness.sentences()[i];
      made.sentences.push_back(
          {sentence.span, {sentence.chunks[0].offset, sentence.chunks[1].offset}, {}});
    }
    harness.core().handle(std::move(made));
  };
  derive(1, 1, 6);
  derive(2, 1, 1);
  derive(3, 2, 1);
  harness.run();
  const std::vector<TaskDone> done = harness.take<TaskDone>();
  ASSERT_EQ(done.size(), 3U);
  EXPECT_EQ(done[0].task, TaskId{3});
  EXPECT_EQ(done[1].task, TaskId{1}) << "in order inside a session";
  EXPECT_EQ(done[2].task, TaskId{2});
}

// Session 1 with a deep queue of large puts, session 2 with one small put at a time.
class DataCopyTurns : public ::testing::Test {
 protected:
  static constexpr int kDeep = 64;

  void start(HarnessSetup setup) {
    harness_ = std::make_unique<DataHarness>(setup);
    harness_->add_sentences(6);
    large_ = &harness_->sentences()[0];
    // Units of another size, so that the clock can tell them apart.
    small_ = harness_->make_sentence(large_->span.end_block(), large_->span.block_count + 1);
    for (uint32_t chunk = 0; chunk < harness_->layout().chunk_count(); ++chunk) {
      small_.chunks.push_back({harness_->new_extent(harness_->layout().chunk_storage_bytes(
                                   chunk, small_.span.block_count)),
                               Origin::kHost});
    }
    memory_.resize(8 * small_.k.size(), std::byte{3});
    for (int i = 0; i < kDeep; ++i) put(TaskId{1000}, SessionId{1}, *large_, {0, 3});
    for (int i = 0; i < 5; ++i) harness_->core().step();  // in the middle of one
  }
  uint64_t unit(const TestSentence& sentence) const {
    return uint64_t{sentence.span.block_count} * harness_->layout().block_bytes(0);
  }
  void put(TaskId task, SessionId session, const TestSentence& sentence, LayerRange layers) {
    CopyTask made;
    made.task = task;
    made.session = session;
    made.space = DataHarness::kSpace;
    made.model = harness_->model();
    made.memory = memory_.data();
    made.memory_bytes = memory_.size();
    made.view = harness_->view(sentence, sentence.k.size() * 4);
    made.layers = layers;
    made.sentences = {{sentence.span, {sentence.chunks[0].offset, sentence.chunks[1].offset}, {}}};
    harness_->core().handle(std::move(made));
  }
  // A small put from its coming to its end.
  void put_small(LayerRange layers) {
    put(TaskId{1}, SessionId{2}, small_, layers);
    bool ended = false;
    for (int i = 0; i < 1000 && !ended; ++i) {
      harness_->core().step();
      for (const DataEvent& event : harness_->core().events()) {
        const auto* done = std::get_if<TaskDone>(&event);
        ended = ended || (done != nullptr && done->session == SessionId{2});
      }
      harness_->core().events().clear();
    }
    ASSERT_TRUE(ended);
  }

  std::unique_ptr<DataHarness> harness_;
  const TestSentence* large_ = nullptr;
  TestSentence small_;
  std::vector<std::byte> memory_;
};

// Goal: however much one session has queued, another's copy waits for a turn and a unit of it;
// after a pause for no more, if it is no larger than what may be saved, else for as much as is its
// own. Method: bytes are counted: what session 1 had copied more when that one ended.
TEST_F(DataCopyTurns, ADeepQueueDelaysAnothersCopyByATurn) {
  constexpr uint64_t kUnitNs = 10'000;
  static_assert(kUnitNs >= CopyRunner::kTurnNs, "a turn is a unit");
  HarnessSetup setup;
  setup.put_ns = [](uint64_t) { return kUnitNs; };
  setup.tick_ns = 1;
  start(setup);
  for (uint64_t small = 1; small <= 20; ++small) {
    const uint64_t before = harness_->counters().bytes_put;
    put_small({0, 1});
    const uint64_t others = harness_->counters().bytes_put - before - 2 * unit(small_);
    const bool saved = small * (2 * (kUnitNs + 10) + CopyRunner::kTaskNs) <= CopyRunner::kSavedNs;
    EXPECT_LE(others, (saved ? 1 : 4) * unit(*large_)) << small;
  }
}

// Goal: what counts is time: a session whose bytes take long (memory without pages) takes no more
// of another's for it. Method: a clock by which a unit of session 1 takes 50 times one of
// session 2.
TEST_F(DataCopyTurns, SlowBytesAreTheirOwnSessionsAffair) {
  constexpr uint64_t kSlowNs = 50'000;
  constexpr uint64_t kFastNs = 1'000;
  uint64_t large_unit = 0;
  HarnessSetup setup;
  setup.put_ns = [&](uint64_t bytes) { return bytes == large_unit ? kSlowNs : kFastNs; };
  setup.tick_ns = 1;
  start(setup);
  large_unit = unit(*large_);
  for (int i = 0; i < 30; ++i) {
    const uint64_t begun = harness_->core().now_ns();
    put_small({0, 3});
    // What was under way, and its own.
    EXPECT_LE(harness_->core().now_ns() - begun, kSlowNs + 6 * kFastNs + 5'000) << i;
  }
}

}  // namespace
}  // namespace skv::data_test
