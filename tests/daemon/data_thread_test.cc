// The real thread with a real worker process: what tsan is for.
#include "daemon/data/data_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "daemon/data/bounded_queue.h"
#include "tests/daemon/data_harness.h"
#include "tiers/worker/device_worker.h"

namespace skv::data_test {
namespace {

using std::chrono::milliseconds;

TEST(BoundedQueueTest, KeepsOrderAndSaysFull) {
  BoundedQueue<std::unique_ptr<int>> queue(4);
  for (int i = 0; i < 4; ++i) {
    auto item = std::make_unique<int>(i);
    ASSERT_TRUE(queue.push(item));
  }
  auto kept = std::make_unique<int>(4);
  EXPECT_FALSE(queue.push(kept));
  ASSERT_NE(kept, nullptr) << "what found no room is the caller's";
  for (int i = 0; i < 4; ++i) EXPECT_EQ(**queue.pop(), i);
  EXPECT_FALSE(queue.pop());
  EXPECT_TRUE(queue.push(kept));
}

// The loop's side: events come by a wake-up, as from uv_async_send.
class Loop {
 public:
  explicit Loop(DataOptions options, const std::string& kind, uint64_t budget_bytes) {
    SlotPoolOptions pool;
    pool.kind = kind;
    pool.budget_bytes = budget_bytes;
    pool.worker_program = SKV_TEST_WORKER;
    thread_ = DataThread::start(std::move(options), make_slot_pool(pool).value(), [this] {
                const std::lock_guard<std::mutex> hold(mutex_);
                woken_ = true;
                condition_.notify_one();
              }).value();
  }
  template <typename Event>
  std::optional<Event> wait() {
    const auto end = std::chrono::steady_clock::now() + milliseconds(20'000);
    for (;;) {
      for (auto event = events_.begin(); event != events_.end(); ++event) {
        if (!std::holds_alternative<Event>(*event)) continue;
        Event found = std::move(std::get<Event>(*event));
        events_.erase(event);
        return found;
      }
      if (std::chrono::steady_clock::now() > end) return std::nullopt;
      {
        std::unique_lock<std::mutex> hold(mutex_);
        condition_.wait_for(hold, milliseconds(1000), [&] { return woken_; });
        woken_ = false;
      }
      while (thread_->drain([&](DataEvent event) { events_.push_back(std::move(event)); }) > 0) {
      }
    }
  }
  DataThread& thread() { return *thread_; }

 private:
  std::mutex mutex_;  // of woken_: the wake-up comes on the data thread
  std::condition_variable condition_;
  bool woken_ = false;
  std::vector<DataEvent> events_;
  std::unique_ptr<DataThread> thread_;
};

class DataThreadTest : public ::testing::TestWithParam<const char*> {
 protected:
  // Sentences are made by an inline core first; the thread gets a copy of that arena.
  void SetUp() override {
    source_.add_sentences(8);
    UniqueFd arena = create_shared_memory("thread-arena", DataHarness::kArenaBytes).value();
    arena_ =
        MappedMemory::map(arena.get(), DataHarness::kArenaBytes, MappedMemory::Access::kReadWrite)
            .value();
    std::memcpy(arena_.data(), source_.arena().data(), DataHarness::kArenaBytes);
    DataOptions options;
    options.commands_max = 8;  // so that commands spill and events wait
    options.events_max = 2;
    loop_ = std::make_unique<Loop>(options, GetParam(), 64u << 20);
    loop_->thread().post(
        MapArena{DataHarness::kSpace, std::move(arena), arena_.data(), DataHarness::kArenaBytes});
    loop_->thread().post(OpenFeed{DataHarness::kFeed, DataHarness::kSpace, source_.model(), {}});
    for (uint32_t i = 0; i < 8; ++i) {
      const TestSentence& sentence = source_.sentences()[i];
      std::vector<FeedSentence> one;
      one.push_back({sentence.uid, sentence.span, sentence.vectors, sentence.chunks});
      loop_->thread().post(FeedSentences{DataHarness::kFeed, i, std::move(one)});
    }
  }
  void TearDown() override { loop_->thread().stop(); }

  std::unique_ptr<ClientChannel> open_channel(ChannelId id) {
    loop_->thread().post(OpenChannel{DataHarness::kSession, id, 64 * 1024});
    std::optional<ChannelOpened> opened = loop_->wait<ChannelOpened>();
    if (!opened || !opened->parts.ok()) return nullptr;
    return std::make_unique<ClientChannel>(
        ClientChannel::attach(std::move(opened->parts).value()).value());
  }
  std::unique_ptr<WindowReader> open_window(WindowId id) {
    OpenWindow options = source_.window_options();
    options.window = id;
    loop_->thread().post(options);
    std::optional<WindowOpened> opened = loop_->wait<WindowOpened>();
    if (!opened || !opened->parts.ok()) return nullptr;
    return std::make_unique<WindowReader>(std::move(opened->parts).value(), source_.layout(),
                                          &arena_);
  }

  DataHarness source_;
  MappedMemory arena_;
  std::unique_ptr<Loop> loop_;
};
INSTANTIATE_TEST_SUITE_P(Pools,
                         DataThreadTest,
                         ::testing::Values("none", "emulated"),
                         [](const auto& each) { return std::string(each.param); });

// Goal: two engine threads with a window and a channel each get right bytes while the loop posts.
TEST_P(DataThreadTest, TwoEngineThreadsAndALoop) {
  constexpr int kSteps = 30;
  std::vector<std::thread> engines;
  std::atomic<int> answered{0};
  std::mutex random_lock;  // make_query draws from the harness
  for (uint32_t engine = 0; engine < 2; ++engine) {
    std::shared_ptr<WindowReader> reader = open_window(WindowId{100 + engine});
    std::shared_ptr<ClientChannel> channel = open_channel(ChannelId{200 + engine});
    ASSERT_TRUE(reader && channel);
    engines.emplace_back([&, engine, reader, channel] {
      for (int step = 0; step < kSteps; ++step) {
        TestSubmission entry{};
        std::vector<float> query;
        {
          const std::lock_guard<std::mutex> hold(random_lock);
          entry = source_.entry({0, 3});
          query = source_.make_query({0, 3});
        }
        entry.window = 100 + engine;
        source_.submit(*channel, entry, query);
        const Result<ChannelWait> waited = channel->wait(std::chrono::seconds(20), -1);
        ASSERT_TRUE(waited.ok() && waited.value() == ChannelWait::kReady);
        const std::optional<TestCompletion> done = source_.completion(*channel);
        ASSERT_TRUE(done);
        ASSERT_EQ(done->status, 0);
        for (uint32_t layer = 0; layer < 3; ++layer) {
          source_.expect_table(*reader, source_.window_options(), {0, 3}, query, layer);
        }
        reader->done(done->version);
        ++answered;
      }
    });
  }
  for (int i = 0; i < 100; ++i) {
    loop_->thread().post(Withdraw{ChunkRef{SentenceUid{5000}, static_cast<uint32_t>(i)}});
  }
  for (int i = 0; i < 100; ++i) {
    const std::optional<WithdrawDone> gone = loop_->wait<WithdrawDone>();
    ASSERT_TRUE(gone);
    EXPECT_EQ(gone->chunk.chunk, static_cast<uint32_t>(i)) << "in order, none lost";
  }
  for (std::thread& engine : engines) engine.join();
  EXPECT_EQ(answered.load(), 2 * kSteps);
  const DataStatistics statistics = loop_->thread().statistics();
  EXPECT_EQ(statistics.prefetches, 2U * kSteps);
  EXPECT_GT(statistics.commands_spilled, 0U);
  EXPECT_GE(statistics.prefetch_us_p99, statistics.prefetch_us_p50);
  EXPECT_EQ(statistics.windows, 2U);

  loop_->thread().post(CloseSession{DataHarness::kSession});
  EXPECT_TRUE(loop_->wait<SessionClosed>());
}

// Goal: events that found no room are handed over once the loop has drained, with nothing else to
// wake the thread.
// Method: two places in the event queue, many answers at once, again and again; the last ones come
// while the thread is about to sleep.
TEST_P(DataThreadTest, HeldEventsAreNotForgotten) {
  for (uint32_t round = 0; round < 300; ++round) {
    const uint32_t count = 3 + round % 5;
    for (uint32_t i = 0; i < count; ++i) {
      loop_->thread().post(Withdraw{ChunkRef{SentenceUid{5000 + round}, i}});
    }
    for (uint32_t i = 0; i < count; ++i) {
      const std::optional<WithdrawDone> gone = loop_->wait<WithdrawDone>();
      ASSERT_TRUE(gone) << "round " << round;
      ASSERT_EQ(gone->chunk.uid, SentenceUid{5000 + round});
    }
  }
}

TEST_P(DataThreadTest, AnIdleThreadSleeps) {
  const std::unique_ptr<ClientChannel> channel = open_channel(ChannelId{1});
  ASSERT_TRUE(channel);
  std::this_thread::sleep_for(milliseconds(50));
  const auto cpu = [] {
    timespec spent{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return spent.tv_sec * 1'000'000 + spent.tv_nsec / 1000;
  };
  const int64_t before = cpu();
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_LT(cpu() - before, 50'000) << "microseconds of 200,000";
}

TEST_P(DataThreadTest, StopWithWorkInFlight) {
  const std::unique_ptr<WindowReader> reader = open_window(WindowId{100});
  const std::unique_ptr<ClientChannel> channel = open_channel(ChannelId{200});
  ASSERT_TRUE(reader && channel);
  for (int i = 0; i < 8; ++i) {
    TestSubmission entry = source_.entry({0, 3});
    entry.window = 100;
    source_.submit(*channel, entry, std::vector<float>(3 * 4 * 64, 1.0F));
  }
  loop_->thread().stop();
  loop_->thread().post(CloseSession{DataHarness::kSession});  // nobody hears it, nothing breaks
}

}  // namespace
}  // namespace skv::data_test
