#include <gtest/gtest.h>

#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

constexpr LayerRange kAllLayers{0, 3};

struct Kind {
  const char* name;
  bool device;
  uint64_t tick_ns;
};

// The main path on both kinds of window, with whole steps and with slices that end all the time.
class DataPrefetch : public ::testing::TestWithParam<Kind> {
 protected:
  HarnessSetup setup() const {
    HarnessSetup made;
    made.device = GetParam().device;
    made.tick_ns = GetParam().tick_ns;
    return made;
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds,
                         DataPrefetch,
                         ::testing::Values(Kind{"device", true, 0},
                                           Kind{"device_small_slices", true, 90'000},
                                           Kind{"none", false, 0},
                                           Kind{"none_small_slices", false, 90'000}),
                         [](const auto& each) { return each.param.name; });

// Goal: what a prefetch publishes is what the reference kernels choose, and the slots hold the
// bytes that the engine put.
TEST_P(DataPrefetch, ReadSetAndBytesAreTheOracles) {
  DataHarness harness(setup());
  harness.add_sentences(12);
  harness.open_feed();
  harness.feed(0, 12);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  EXPECT_EQ(reader->parts().width, 9U);
  EXPECT_EQ(reader->header().slot_unit_bytes, 4096U);

  uint64_t blocks_moved = 0;
  for (uint64_t step = 1; step <= 20; ++step) {
    const std::vector<float> query = harness.make_query(kAllLayers);
    const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
    ASSERT_EQ(done.status, 0);
    EXPECT_EQ(done.version, step);
    EXPECT_EQ(done.read_blocks, 3 * 2 * 9U);
    EXPECT_EQ(done.misses, 0U);
    EXPECT_EQ(done.hits_device + done.hits_host, done.read_blocks);
    EXPECT_EQ(done.covered_to, harness.sentences().back().span.end_block() * 8);
    if (GetParam().device) {
      EXPECT_EQ(done.bytes_moved, uint64_t{done.hits_host} * 4096);
    } else {
      EXPECT_EQ(done.bytes_moved, 0U);
    }
    blocks_moved += done.hits_host;
    float unread = 0.0F;
    for (uint32_t layer = 0; layer < 3; ++layer) {
      harness.expect_table(*reader, options, kAllLayers, query, layer);
      unread += reader->read(layer).unread_mass / 3;
    }
    EXPECT_NEAR(done.unread_mass, unread, 1e-5);
    reader->done(done.version);
  }
  if (GetParam().device) {
    EXPECT_LT(blocks_moved, 20U * 54) << "the resident set is of use";
  }
  EXPECT_EQ(harness.counters().prefetches.load(), 20U);
}

// Goal: each (layer, head) has its own budget, and no more of it is used than the mass needs.
TEST_P(DataPrefetch, BudgetsOfHeadsAndMass) {
  DataHarness harness(setup());
  harness.add_sentences(12);
  harness.open_feed();
  harness.feed(0, 12);
  OpenWindow options = harness.window_options();
  options.shape.head_budgets = {0, 1, 2, 3, 6, 6};
  options.shape.mass = 0.1F;
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  bool mass_ended_one = false;
  for (int step = 0; step < 10; ++step) {
    const std::vector<float> query = harness.make_query(kAllLayers);
    const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
    ASSERT_EQ(done.status, 0);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      harness.expect_table(*reader, options, kAllLayers, query, layer);
      for (uint32_t head = 0; head < 2; ++head) {
        const size_t most = 3 + options.shape.head_budgets[2 * layer + head];
        const size_t read = reader->read(layer).heads[head].size();
        EXPECT_LE(read, most);
        mass_ended_one |= read < most;
      }
    }
    reader->done(done.version);
  }
  EXPECT_TRUE(mass_ended_one);
}

TEST_P(DataPrefetch, LayerByLayerKeepsOneVersionCounter) {
  DataHarness harness(setup());
  harness.add_sentences(6);
  harness.open_feed();
  harness.feed(0, 6);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  uint64_t version = 0;
  for (int step = 0; step < 3; ++step) {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const std::vector<float> query = harness.make_query({layer, 1});
      const TestCompletion done = harness.prefetch(*channel, harness.entry({layer, 1}), query);
      ASSERT_EQ(done.status, 0);
      EXPECT_EQ(done.version, ++version);
      harness.expect_table(*reader, options, {layer, 1}, query, layer);
      reader->done(version);
    }
  }
}

// Goal: sentences that are fed while a window is open are covered by its next prefetch.
TEST_P(DataPrefetch, TheContextGrowsUnderAnOpenWindow) {
  DataHarness harness(setup());
  harness.open_feed();
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  const TestCompletion empty = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_EQ(empty.status, 0);
  EXPECT_EQ(empty.covered_to, 0U);
  EXPECT_EQ(empty.read_blocks, 0U);
  EXPECT_EQ(empty.unread_mass, 0.0F);
  reader->done(empty.version);
  for (uint32_t count = 1; count <= 8; ++count) {
    harness.add_sentences(1);
    harness.feed(count - 1, count);
    const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
    ASSERT_EQ(done.status, 0);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      harness.expect_table(*reader, options, kAllLayers, query, layer);
    }
    reader->done(done.version);
  }
}

// ---- cold chunks --------------------------------------------------------------------------------

TEST_P(DataPrefetch, WaitAsksForEachChunkOnceAndPublishesWhenAllCame) {
  DataHarness harness(setup());
  harness.add_sentences(10);
  harness.open_feed();
  harness.feed(0, 10, /*with_chunks=*/false);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  TestSubmission entry = harness.entry(kAllLayers);
  entry.cold = static_cast<uint32_t>(ColdMode::kWait);
  entry.deadline_us = 5'000'000;
  harness.submit(*channel, entry, query);
  harness.run();
  EXPECT_FALSE(harness.completion(*channel));

  std::vector<ChunkRef> asked;
  for (const NeedChunks& need : harness.take<NeedChunks>()) {
    EXPECT_TRUE(need.urgent);
    EXPECT_EQ(need.space, DataHarness::kSpace);
    asked.insert(asked.end(), need.chunks.begin(), need.chunks.end());
  }
  for (size_t i = 0; i < asked.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(asked[i] == asked[j]) << "asked twice";
  }
  ASSERT_GT(asked.size(), 2U);
  for (size_t i = 0; i < asked.size(); ++i) {
    EXPECT_FALSE(harness.completion(*channel)) << "before all came";
    harness.arrive(asked[i]);
    harness.run();
  }
  const std::optional<TestCompletion> done = harness.completion(*channel);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->status, 0);
  EXPECT_EQ(done->misses, 0U);
  EXPECT_EQ(done->hits_nvme, 54U);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness.expect_table(*reader, options, kAllLayers, query, layer);
    const TableRead table = reader->read(layer);
    for (const auto& each : table.heads[0]) EXPECT_EQ(each.origin, Origin::kNvme);
  }
  reader->done(done->version);
  // What was promoted is on the host from now on.
  const TestCompletion again = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_EQ(again.hits_nvme, 0U);
  EXPECT_EQ(GetParam().device ? again.hits_device : again.hits_host, 54U);
}

// Goal: what is next below the cut is asked for before it is wanted, best first, and counted; what
// is demanded already is not asked for twice.
TEST(DataCold, TheNextBestChunksAreReadAhead) {
  DataHarness harness;
  harness.add_sentences(40);
  harness.open_feed();
  harness.feed(0, 40, /*with_chunks=*/false);
  const std::unique_ptr<WindowReader> reader =
      harness.open_window(harness.window_options()).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  TestSubmission entry = harness.entry(kAllLayers);
  entry.cold = static_cast<uint32_t>(ColdMode::kWait);
  harness.submit(*channel, entry, query);
  harness.run();
  std::vector<ChunkRef> needed;
  for (const NeedChunks& need : harness.take<NeedChunks>()) {
    needed.insert(needed.end(), need.chunks.begin(), need.chunks.end());
  }
  std::vector<ChunkRef> ahead;
  for (const ReadAheadChunks& event : harness.take<ReadAheadChunks>()) {
    ahead.insert(ahead.end(), event.chunks.begin(), event.chunks.end());
  }
  ASSERT_GT(ahead.size(), 2U);
  const auto among = [](const std::vector<ChunkRef>& all, const ChunkRef& chunk) {
    return std::count(all.begin(), all.end(), chunk);
  };
  for (const ChunkRef& chunk : ahead) {
    EXPECT_EQ(among(needed, chunk), 0) << "a demand already";
    EXPECT_EQ(among(ahead, chunk), 1);
  }
  for (const ChunkRef& chunk : needed) harness.arrive(chunk);
  harness.arrive(ahead[0]);
  harness.arrive(ahead[1]);
  harness.run();
  const std::optional<TestCompletion> done = harness.completion(*channel);
  ASSERT_TRUE(done);
  reader->done(done->version);
  EXPECT_EQ(harness.counters().read_ahead_asked.load(), ahead.size());
  // One of them is taken back unread.
  harness.core().handle(Withdraw{ahead[1]});
  // The other is in the next read set: its whole chunk is all there is to read of a wider budget.
  (void)harness.take<ReadAheadChunks>();
  OpenWindow wide = harness.window_options();
  wide.shape.budget_blocks *= 2;
  wide.window = WindowId{77};
  const std::unique_ptr<WindowReader> wide_reader = harness.open_window(wide).value();
  TestSubmission again = harness.entry(kAllLayers);
  again.window = 77;
  again.cold = static_cast<uint32_t>(ColdMode::kPartial);
  harness.submit(*channel, again, query);
  harness.run();
  EXPECT_EQ(harness.counters().read_ahead_used.load(), 1U);
  EXPECT_EQ(harness.counters().read_ahead_wasted.load(), 1U);
  EXPECT_GT(harness.counters().read_ahead_late.load(), 0U) << "those that did not come in time";
}

// Goal: a host tier of a few chunks is enough for a read set of many, since each chunk is given
// back right after its moves.
// Method: the loop takes each chunk back in the moment it has come, and overwrites its extent.
TEST(DataCold, AHostSmallerThanTheReadSetIsEnough) {
  DataHarness harness;
  harness.add_sentences(10);
  harness.open_feed();
  harness.feed(0, 10, /*with_chunks=*/false);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  TestSubmission entry = harness.entry(kAllLayers);
  entry.cold = static_cast<uint32_t>(ColdMode::kWait);
  harness.submit(*channel, entry, query);
  harness.run();
  for (const NeedChunks& need : harness.take<NeedChunks>()) {
    for (const ChunkRef& chunk : need.chunks) {
      harness.arrive(chunk);
      harness.core().handle(Withdraw{chunk});
      harness.run();
      const std::vector<WithdrawDone> gone = harness.take<WithdrawDone>();
      ASSERT_EQ(gone.size(), 1U);
      EXPECT_EQ(gone[0].chunk, chunk);
      for (const TestSentence& sentence : harness.sentences()) {
        if (sentence.uid != chunk.uid) continue;
        std::memset(harness.arena().data() + sentence.chunks[chunk.chunk].offset, 0xEE,
                    harness.layout().chunk_bytes(chunk.chunk, sentence.span.block_count));
      }
    }
  }
  const std::optional<TestCompletion> done = harness.completion(*channel);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->misses, 0U);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness.expect_table(*reader, options, kAllLayers, query, layer);
  }
}

TEST_P(DataPrefetch, TheDeadlineTurnsTheRestIntoMisses) {
  DataHarness harness(setup());
  harness.add_sentences(10);
  harness.open_feed();
  harness.feed(0, 5);
  harness.feed(5, 10, /*with_chunks=*/false);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  TestSubmission entry = harness.entry(kAllLayers);
  entry.cold = static_cast<uint32_t>(ColdMode::kWait);
  entry.deadline_us = 2'000'000;
  harness.submit(*channel, entry, query);
  harness.run();
  EXPECT_FALSE(harness.completion(*channel));
  harness.pass(3'000'000'000);
  harness.run();
  const std::optional<TestCompletion> done = harness.completion(*channel);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->status, 0);
  EXPECT_GT(done->misses, 0U);
  EXPECT_EQ(done->misses + done->read_blocks, 54U);
  float scores = 0.0F;
  float unread = 0.0F;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const TableRead table = reader->read(layer);
    for (uint32_t head = 0; head < 2; ++head) {
      harness.expect_bytes(*reader, table, layer, head);
      const auto expected = harness.oracle(options, 10, kAllLayers, query, layer, head);
      unread += expected.unread_mass;
      for (size_t i = 0; i < expected.blocks.size(); ++i) {
        if (expected.sentences[i] >= 5) scores += expected.scores[i];
      }
      for (const auto& each : table.heads[head]) EXPECT_LT(each.sentence, 5U);
    }
  }
  EXPECT_NEAR(done->unread_mass, (scores + unread) / 6, 1e-4) << "missing blocks are unread mass";
  reader->done(done->version);

  // A late answer is of use to the next one.
  for (const NeedChunks& need : harness.take<NeedChunks>()) {
    for (const ChunkRef& chunk : need.chunks) harness.arrive(chunk);
  }
  const TestCompletion next = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_EQ(next.misses, 0U);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness.expect_table(*reader, options, kAllLayers, query, layer);
  }
}

TEST_P(DataPrefetch, PartialAnswersAtOnceAndAsksInTheBackground) {
  DataHarness harness(setup());
  harness.add_sentences(8);
  harness.open_feed();
  harness.feed(0, 8, /*with_chunks=*/false);
  const std::unique_ptr<WindowReader> reader =
      harness.open_window(harness.window_options()).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_EQ(done.status, 0);
  EXPECT_EQ(done.read_blocks, 0U);
  EXPECT_EQ(done.misses, 54U);
  EXPECT_NEAR(done.unread_mass, 1.0F, 1e-4);
  const std::vector<NeedChunks> needs = harness.take<NeedChunks>();
  ASSERT_FALSE(needs.empty());
  EXPECT_FALSE(needs[0].urgent);
  reader->done(done.version);

  harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_TRUE(harness.take<NeedChunks>().empty()) << "asked already";
  TestSubmission urgent = harness.entry(kAllLayers);
  urgent.cold = static_cast<uint32_t>(ColdMode::kWait);
  reader->done(2);
  harness.submit(*channel, urgent, query);
  harness.run();
  const std::vector<NeedChunks> again = harness.take<NeedChunks>();
  ASSERT_FALSE(again.empty()) << "now somebody waits";
  for (const NeedChunks& need : again) {
    EXPECT_TRUE(need.urgent);
    for (const ChunkRef& chunk : need.chunks) harness.core().handle(ChunkFailed{chunk});
  }
  harness.run();
  const std::optional<TestCompletion> failed = harness.completion(*channel);
  ASSERT_TRUE(failed) << "failed chunks end the wait";
  EXPECT_EQ(failed->misses, 54U);
}

// ---- versions -----------------------------------------------------------------------------------

// Goal: a reader that never says it is done is never overwritten; it gets kBusy.
TEST_P(DataPrefetch, AReaderThatNeverAdvancesIsNeverOverwritten) {
  DataHarness harness(setup());
  harness.add_sentences(12);
  harness.open_feed();
  harness.feed(0, 12);
  const OpenWindow options = harness.window_options();
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  std::vector<TableRead> tables;
  int busy = 0;
  for (int step = 0; step < 6; ++step) {
    const std::vector<float> query = harness.make_query(kAllLayers);
    const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
    if (done.status == 0) tables.push_back(reader->read(0));
    if (done.status == static_cast<int32_t>(ErrorCode::kBusy)) ++busy;
    for (const TableRead& table : tables) {
      for (uint32_t head = 0; head < 2; ++head) harness.expect_bytes(*reader, table, 0, head);
    }
  }
  EXPECT_EQ(tables.size(), 2U) << "two buffers";
  EXPECT_EQ(busy, 4);
  reader->done(1);
  const std::vector<float> query = harness.make_query(kAllLayers);
  const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_EQ(done.status, 0);
  harness.expect_table(*reader, options, kAllLayers, query, 0);
  for (uint32_t head = 0; head < 2; ++head) harness.expect_bytes(*reader, tables[1], 0, head);
}

// Goal: slots of a version that may still be read are not given away even while a buffer is free.
TEST(DataVersions, ATightResidentSetIsBusyUntilTheReaderIsDone) {
  DataHarness harness;
  harness.add_sentences(20);
  harness.open_feed();
  harness.feed(0, 20);
  OpenWindow options = harness.window_options();
  options.shape.resident_blocks = 9;  // the read set and nothing more
  const std::unique_ptr<WindowReader> reader = harness.open_window(options).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> first = harness.make_query(kAllLayers);
  ASSERT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), first).status, 0);
  const TableRead kept = reader->read(0);
  const std::vector<float> second = harness.make_query(kAllLayers);
  EXPECT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), second).status,
            static_cast<int32_t>(ErrorCode::kBusy));
  for (uint32_t head = 0; head < 2; ++head) harness.expect_bytes(*reader, kept, 0, head);
  harness.expect_table(*reader, options, kAllLayers, first, 2);
  reader->done(1);
  EXPECT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), second).status, 0);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness.expect_table(*reader, options, kAllLayers, second, layer);
  }
}

TEST(DataVersions, APromiseAboutTheFutureIsNotBelieved) {
  DataHarness harness;
  harness.add_sentences(6);
  harness.open_feed();
  harness.feed(0, 6);
  const std::unique_ptr<WindowReader> reader =
      harness.open_window(harness.window_options()).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  reader->done(~uint64_t{0});
  const std::vector<float> query = harness.make_query(kAllLayers);
  EXPECT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), query).status, 0);
  reader->done(0);
  EXPECT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), query).status, 0);
  EXPECT_EQ(harness.prefetch(*channel, harness.entry(kAllLayers), query).status,
            static_cast<int32_t>(ErrorCode::kBusy));
}

// ---- withdrawals --------------------------------------------------------------------------------

// Goal: `none` reads in place, so a chunk is given back only when no readable table points into it.
TEST(DataWithdraw, AChunkInAReadableTableStays) {
  HarnessSetup setup;
  setup.device = false;
  DataHarness harness(setup);
  harness.add_sentences(2);
  harness.open_feed();
  harness.feed(0, 2);
  const std::unique_ptr<WindowReader> reader =
      harness.open_window(harness.window_options()).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  const TestCompletion done = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  ASSERT_EQ(done.status, 0);
  const ChunkRef chunk{harness.sentences()[0].uid, 0};  // holds the sink
  harness.core().handle(Withdraw{chunk});
  harness.run();
  EXPECT_TRUE(harness.take<WithdrawDone>().empty());
  EXPECT_LT(harness.core().step(), UINT64_MAX) << "it looks at readers_done again by itself";

  const TestCompletion without = harness.prefetch(*channel, harness.entry(kAllLayers), query);
  EXPECT_GT(without.misses, 0U) << "no new use begins";
  reader->done(1);
  harness.run();
  const std::vector<WithdrawDone> gone = harness.take<WithdrawDone>();
  ASSERT_EQ(gone.size(), 1U);
  EXPECT_EQ(gone[0].chunk, chunk);
}

TEST(DataWithdraw, AMoveInFlightHoldsItsChunk) {
  HarnessSetup setup;
  setup.hold_completions = true;
  DataHarness harness(setup);
  harness.add_sentences(3);
  harness.open_feed();
  harness.feed(0, 3);
  harness.core().handle(OpenWindow{harness.window_options()});
  harness.inline_pool().release_completions();
  harness.run();
  std::vector<WindowOpened> opened = harness.take<WindowOpened>();
  ASSERT_EQ(opened.size(), 1U);
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const std::vector<float> query = harness.make_query(kAllLayers);
  harness.submit(*channel, harness.entry(kAllLayers), query);
  harness.run();
  EXPECT_FALSE(harness.completion(*channel));
  const ChunkRef chunk{harness.sentences()[0].uid, 0};
  harness.core().handle(Withdraw{chunk});
  harness.core().handle(Withdraw{ChunkRef{SentenceUid{999}, 0}});
  harness.run();
  const std::vector<WithdrawDone> unknown = harness.take<WithdrawDone>();
  ASSERT_EQ(unknown.size(), 1U) << "what is not known is not used";
  EXPECT_EQ(unknown[0].chunk.uid, SentenceUid{999});
  harness.inline_pool().release_completions();
  harness.run();
  EXPECT_EQ(harness.take<WithdrawDone>().size(), 1U);
  EXPECT_TRUE(harness.completion(*channel));
}

}  // namespace
}  // namespace skv::data_test
