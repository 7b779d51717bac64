// The daemon's part of windows whose client ranks: what it shares, what it may take back and when,
// and what a client that lies gets.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "ipc/layout/feed.h"
#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

class ClientRankTest : public testing::Test {
 protected:
  ClientRankTest() : harness_({.device = false}) {}

  void open(uint32_t sentences, bool with_chunks = true) {
    harness_.add_sentences(sentences);
    harness_.open_feed();
    const std::shared_ptr<FeedMap> map =
        FeedMap::create(100, harness_.layout().chunk_count()).value();
    harness_.core().handle(ShareFeed{DataHarness::kFeed, map});
    harness_.feed(0, sentences, with_chunks);
    OpenWindow options = harness_.window_options();
    options.rank_in = RankIn::kClient;
    window_ = harness_.open_window(options).value();
    ASSERT_EQ(window_->parts().rank_in, RankIn::kClient);
    feed_ = MappedMemory::map(window_->parts().feed.get(), window_->parts().feed_bytes,
                              MappedMemory::Access::kReadOnly)
                .value();
  }
  uint32_t host_page(uint32_t sentence, uint32_t chunk) const {
    const FeedLayout at = FeedLayout::of(100, harness_.layout().chunk_count());
    return reinterpret_cast<const uint32_t*>(feed_.data() + at.host_pages)[chunk * 100 + sentence];
  }
  // The client's table of layer 0: one entry.
  void write_table(uint64_t version, uint32_t slot) {
    const TableLayout at = TableLayout::of(2, window_->parts().width);
    std::byte* const base = tables_memory() + kWindowHeaderBytes + sizeof(LayerTableHeader);
    TableHeader header{};
    header.version = version;
    header.entry_count = 1;
    header.head_count = 2;
    std::memcpy(base, &header, sizeof header);
    std::memcpy(base + at.slot, &slot, sizeof slot);
  }
  std::byte* tables_memory() const { return reinterpret_cast<std::byte*>(&window_->header()); }
  uint32_t slot_of(uint32_t sentence) const {
    return static_cast<uint32_t>(harness_.sentence_at(sentence).chunks[0].offset /
                                 window_->parts().slot_unit_bytes);
  }
  ChunkRef chunk_of(uint32_t sentence, uint32_t chunk = 0) const {
    return {harness_.sentence_at(sentence).uid, chunk};
  }
  size_t withdrawn() {
    harness_.pass(2'000'000);
    harness_.run();
    return harness_.take<WithdrawDone>().size();
  }
  std::vector<TaskDone> fill(std::vector<FillTask::Chunk> chunks,
                             bool waits,
                             uint64_t version = 1,
                             SessionId session = DataHarness::kSession) {
    FillTask task;
    task.task = TaskId{900};
    task.session = session;
    task.window = DataHarness::kWindow;
    task.waits = waits;
    task.version = version;
    task.chunks = std::move(chunks);
    harness_.core().handle(std::move(task));
    harness_.run();
    return harness_.take<TaskDone>();
  }

  DataHarness harness_;
  std::unique_ptr<WindowReader> window_;
  MappedMemory feed_;
};

// Goal: a chunk that nobody can be reading goes at once, and the client finds it no more.
TEST_F(ClientRankTest, AnUnusedChunkIsTakenBackAtOnce) {
  open(4);
  const uint64_t offset = harness_.sentence_at(2).chunks[0].offset;
  EXPECT_EQ(host_page(2, 0), offset / kFeedHostUnit + 1);
  harness_.core().handle(Withdraw{chunk_of(2)});
  EXPECT_EQ(host_page(2, 0), 0U);
  EXPECT_EQ(withdrawn(), 1U);
}

// Goal: what a prefetch under way may have found stays until it ended, and what its tables name
// stays until readers_done has passed them.
TEST_F(ClientRankTest, AChunkInUseIsTakenBackWhenItsReadersAreDone) {
  open(4);
  window_->header().making.store(1);
  harness_.core().handle(Withdraw{chunk_of(1)});
  harness_.core().handle(Withdraw{chunk_of(2)});
  EXPECT_EQ(withdrawn(), 0U);

  write_table(1, slot_of(1));
  window_->header().making.store(0);
  EXPECT_EQ(withdrawn(), 1U);  // the one that the table does not name
  EXPECT_EQ(withdrawn(), 0U);

  // A later prefetch did not find it: only the table counts.
  window_->header().making.store(2);
  EXPECT_EQ(withdrawn(), 0U);
  window_->done(1);
  EXPECT_EQ(withdrawn(), 1U);
}

// Goal: a client that never says it is done keeps its chunks only while its window lives.
TEST_F(ClientRankTest, AClosedWindowReadsNothing) {
  open(4);
  window_->header().making.store(7);
  harness_.core().handle(Withdraw{chunk_of(0)});
  EXPECT_EQ(withdrawn(), 0U);
  harness_.core().handle(CloseWindow{DataHarness::kSession, DataHarness::kWindow});
  EXPECT_EQ(withdrawn(), 1U);
}

// Goal: a fill that does not wait asks and answers what there is; one that waits ends with the last
// chunk, and what came stays until readers_done reaches its version.
TEST_F(ClientRankTest, FillsBringChunks) {
  open(4, /*with_chunks=*/false);
  EXPECT_EQ(host_page(3, 1), 0U);
  std::vector<TaskDone> done = fill({{3, 1}}, /*waits=*/false);
  ASSERT_EQ(done.size(), 1U);
  ASSERT_TRUE(done[0].status.ok());
  EXPECT_EQ(done[0].filled.at(0).host_page, 0U);
  EXPECT_EQ(harness_.take<NeedChunks>().size(), 1U);

  EXPECT_TRUE(fill({{3, 1}, {0, 0}}, /*waits=*/true, /*version=*/5).empty());
  harness_.arrive(chunk_of(3, 1));
  harness_.run();
  EXPECT_TRUE(harness_.take<TaskDone>().empty());
  EXPECT_NE(host_page(3, 1), 0U);
  harness_.core().handle(Withdraw{chunk_of(3, 1)});  // leased: it waits
  EXPECT_EQ(withdrawn(), 0U);
  harness_.arrive(chunk_of(0, 0), Origin::kHost);
  harness_.run();
  done = harness_.take<TaskDone>();
  ASSERT_EQ(done.size(), 1U);
  ASSERT_EQ(done[0].filled.size(), 2U);
  EXPECT_EQ(done[0].filled[0].host_page,
            harness_.sentence_at(3).chunks[1].offset / kFeedHostUnit + 1);
  EXPECT_EQ(done[0].filled[0].origin, Origin::kNvme);
  EXPECT_NE(done[0].filled[1].host_page, 0U);
  window_->done(4);
  EXPECT_EQ(withdrawn(), 0U);
  window_->done(5);
  EXPECT_EQ(withdrawn(), 1U);
}

// Goal: a deadline ends a fill with what came, a chunk that fails is not waited for, and a closed
// window's fill is answered.
TEST_F(ClientRankTest, FillsEnd) {
  open(4, /*with_chunks=*/false);
  EXPECT_TRUE(fill({{0, 0}, {1, 0}}, /*waits=*/true).empty());
  harness_.arrive(chunk_of(0, 0));
  harness_.pass(11'000'000'000);
  harness_.run();
  std::vector<TaskDone> done = harness_.take<TaskDone>();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_NE(done[0].filled.at(0).host_page, 0U);
  EXPECT_EQ(done[0].filled.at(1).host_page, 0U);

  EXPECT_TRUE(fill({{2, 0}}, /*waits=*/true).empty());
  harness_.core().handle(ChunkFailed{chunk_of(2)});
  harness_.run();
  done = harness_.take<TaskDone>();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].filled.at(0).host_page, 0U);

  EXPECT_TRUE(fill({{3, 0}}, /*waits=*/true).empty());
  harness_.core().handle(CloseWindow{DataHarness::kSession, DataHarness::kWindow});
  harness_.run();
  done = harness_.take<TaskDone>();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].status.error().code, ErrorCode::kCancelled);
}

// Goal: sentences and chunks that are not there, and windows of others, are refused by name; a
// client that never is done with what it waited for is told so before it holds everything.
TEST_F(ClientRankTest, LiesAreRefused) {
  open(4);
  const uint32_t chunks = harness_.layout().chunk_count();
  for (const FillTask::Chunk& wrong :
       {FillTask::Chunk{4, 0}, FillTask::Chunk{0, chunks}, FillTask::Chunk{~0U, ~0U}}) {
    const std::vector<TaskDone> done = fill({{0, 0}, wrong}, /*waits=*/true);
    ASSERT_EQ(done.size(), 1U);
    EXPECT_EQ(done[0].status.error().code, ErrorCode::kInvalidArgument);
  }
  const std::vector<TaskDone> other = fill({{0, 0}}, true, 1, SessionId{99});
  ASSERT_EQ(other.size(), 1U);
  EXPECT_EQ(other[0].status.error().code, ErrorCode::kUnknownHandle);

  bool refused = false;
  for (uint64_t version = 1; version < 200 && !refused; ++version) {
    const std::vector<TaskDone> done = fill({{0, 0}, {1, 0}}, /*waits=*/true, version);
    ASSERT_EQ(done.size(), 1U);
    refused = !done[0].status.ok();
    if (refused) {
      EXPECT_EQ(done[0].status.error().code, ErrorCode::kBusy);
    }
  }
  EXPECT_TRUE(refused);
  window_->done(~uint64_t{0});
  EXPECT_TRUE(fill({{0, 0}}, /*waits=*/true, 1)[0].status.ok());
}

// Goal: garbage in all that the client can write is its own affair: withdrawals and marks still
// end.
TEST_F(ClientRankTest, GarbageInTheWindowIsTheClientsOwn) {
  open(4);
  std::memset(tables_memory(), 0xFF, window_->parts().tables_bytes);
  harness_.core().handle(Withdraw{chunk_of(0)});
  harness_.pass(2'000'000'000);
  harness_.run();
  harness_.take<WithdrawDone>();
  for (const Touched& touched : harness_.take<Touched>()) {
    EXPECT_LE(touched.sentences.size(), 4U);
  }
  harness_.core().handle(CloseSession{DataHarness::kSession});
  harness_.run();
  EXPECT_EQ(harness_.take<SessionClosed>().size(), 1U);
}

}  // namespace
}  // namespace skv::data_test
