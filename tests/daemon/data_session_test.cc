#include <gtest/gtest.h>

#include "ipc/layout/channel.h"
#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

constexpr LayerRange kAllLayers{0, 3};

// A window over a fed context of a few sentences, and a channel.
class DataSession : public ::testing::Test {
 protected:
  void open(const HarnessSetup& setup = {}) {
    harness_ = std::make_unique<DataHarness>(setup);
    harness_->add_sentences(4);
    harness_->open_feed();
    harness_->feed(0, 4);
    if (setup.hold_completions) {
      harness_->core().handle(OpenWindow{harness_->window_options()});
      harness_->inline_pool().release_completions();
      harness_->run();
      ASSERT_EQ(harness_->take<WindowOpened>().size(), 1U);
    } else {
      reader_ = harness_->open_window(harness_->window_options()).value();
    }
    channel_ = harness_->open_channel();
    query_ = harness_->make_query(kAllLayers);
  }

  ErrorCode status_of(const SubmissionEntry& entry) {
    return static_cast<ErrorCode>(harness_->prefetch(*channel_, entry, query_).status);
  }

  std::unique_ptr<DataHarness> harness_;
  std::unique_ptr<WindowReader> reader_;
  std::unique_ptr<ClientChannel> channel_;
  std::vector<float> query_;
};

// ---- hostile entries ----------------------------------------------------------------------------

// Goal: whatever an entry says, it is answered, and nothing outside its session is touched.
TEST_F(DataSession, EveryWrongFieldIsAnsweredByItsError) {
  open();
  const auto wrong = [&](auto change) {
    SubmissionEntry entry = harness_->entry(kAllLayers);
    change(entry);
    return status_of(entry);
  };
  EXPECT_EQ(wrong([](auto& e) { e.verb = 77; }), ErrorCode::kUnsupported);
  EXPECT_EQ(wrong([](auto& e) { e.window = 999; }), ErrorCode::kUnknownHandle);
  EXPECT_EQ(wrong([](auto& e) { e.first_layer = 1; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.first_layer = 0xFFFFFFFF; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.layer_count = 0; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.layer_count = 0xFFFFFFFF; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.cold = 2; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.reserved[23] = 1; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.query_bytes -= 4; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.query_bytes = 0xFFFFFFFC; }), ErrorCode::kInvalidArgument);
  SubmissionEntry outside = harness_->entry(kAllLayers);
  outside.query_offset = 64 * 1024 - 4;
  ASSERT_TRUE(channel_->submit(outside).value());
  harness_->run();
  EXPECT_EQ(harness_->completion(*channel_)->status,
            static_cast<int32_t>(ErrorCode::kInvalidArgument));
  EXPECT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kOk) << "the session goes on";
  EXPECT_TRUE(harness_->take<ProtocolError>().empty());
}

TEST_F(DataSession, AnothersWindowIsUnknown) {
  open();
  const std::unique_ptr<ClientChannel> other = harness_->open_channel(ChannelId{21}, SessionId{11});
  const CompletionEntry done = harness_->prefetch(*other, harness_->entry(kAllLayers), query_);
  EXPECT_EQ(done.status, static_cast<int32_t>(ErrorCode::kUnknownHandle));
}

TEST_F(DataSession, QueriesThatAreNotNumbersWinNothing) {
  open();
  for (float& value : query_) value = std::numeric_limits<float>::quiet_NaN();
  const CompletionEntry done = harness_->prefetch(*channel_, harness_->entry(kAllLayers), query_);
  EXPECT_EQ(done.status, 0);
  const TableRead table = reader_->read(0);
  for (const auto& entry : table.heads[0]) EXPECT_EQ(entry.score, 0.0F);
}

// Goal: a lie in the ring's indices ends that session's channels and nothing else.
TEST_F(DataSession, AnImpossibleTailIsAProtocolError) {
  open();
  harness_->core().handle(OpenChannel{SessionId{11}, ChannelId{21}, 4096});
  harness_->run();
  std::vector<ChannelOpened> opened = harness_->take<ChannelOpened>();
  ASSERT_EQ(opened.size(), 1U);
  const MappedMemory memory =
      MappedMemory::map(opened[0].parts.value().memory.get(), opened[0].parts.value().bytes,
                        MappedMemory::Access::kReadWrite)
          .value();
  reinterpret_cast<ChannelHeader*>(memory.data())->submission_tail.store(1000);
  harness_->run();
  const std::vector<ProtocolError> errors = harness_->take<ProtocolError>();
  ASSERT_EQ(errors.size(), 1U);
  EXPECT_EQ(errors[0].session, SessionId{11});
  EXPECT_EQ(harness_->counters().protocol_errors.load(), 1U);
  harness_->run();
  EXPECT_TRUE(harness_->take<ProtocolError>().empty()) << "told once";
  EXPECT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kOk);
  harness_->core().handle(CloseSession{SessionId{11}});
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
}

TEST_F(DataSession, AFullCompletionRingStopsItsChannelOnly) {
  open();
  for (uint32_t i = 0; i < kChannelEntries; ++i) {
    harness_->submit(*channel_, harness_->entry({0, 1}), harness_->make_query({0, 1}));
  }
  harness_->run();
  EXPECT_FALSE(channel_->submit(harness_->entry({0, 1})).value());
  const std::unique_ptr<ClientChannel> second = harness_->open_channel(ChannelId{22});
  EXPECT_EQ(harness_->prefetch(*second, harness_->entry(kAllLayers), query_).status,
            static_cast<int32_t>(ErrorCode::kBusy))
      << "served: the reader of the window is far behind";
  uint32_t answered = 0;
  while (harness_->completion(*channel_)) ++answered;
  EXPECT_EQ(answered, kChannelEntries);
}

// ---- ends ---------------------------------------------------------------------------------------

TEST_F(DataSession, DeathWhileMovesAreInFlightWaitsForThem) {
  HarnessSetup setup;
  setup.hold_completions = true;
  open(setup);
  harness_->submit(*channel_, harness_->entry(kAllLayers), query_);
  harness_->run();
  harness_->core().handle(CloseSession{DataHarness::kSession});
  harness_->run();
  EXPECT_TRUE(harness_->take<SessionClosed>().empty());
  EXPECT_GT(harness_->inline_pool().used_bytes(), 0U);
  harness_->inline_pool().release_completions();
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
  EXPECT_EQ(harness_->inline_pool().used_bytes(), 0U);
  EXPECT_TRUE(harness_->take<WindowClosed>().empty()) << "the session's end stands for it";
  EXPECT_FALSE(harness_->completion(*channel_));
  // Its chunks are free.
  harness_->core().handle(Withdraw{ChunkRef{harness_->sentences()[0].uid, 0}});
  harness_->run();
  EXPECT_EQ(harness_->take<WithdrawDone>().size(), 1U);
}

TEST_F(DataSession, DeathWhileAPrefetchWaitsForChunks) {
  harness_ = std::make_unique<DataHarness>();
  harness_->add_sentences(3);
  harness_->open_feed();
  harness_->feed(0, 3, /*with_chunks=*/false);
  reader_ = harness_->open_window(harness_->window_options()).value();
  channel_ = harness_->open_channel();
  SubmissionEntry entry = harness_->entry(kAllLayers);
  entry.cold = static_cast<uint32_t>(ColdMode::kWait);
  harness_->submit(*channel_, entry, harness_->make_query(kAllLayers));
  harness_->run();
  harness_->core().handle(CloseSession{DataHarness::kSession});
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
  for (const NeedChunks& need : harness_->take<NeedChunks>()) {
    for (const ChunkRef& chunk : need.chunks) harness_->arrive(chunk);  // too late: no one waits
  }
  harness_->run();
  EXPECT_EQ(harness_->core().step(), UINT64_MAX);
}

TEST_F(DataSession, AClosedWindowGivesItsSlabBack) {
  open();
  ASSERT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kOk);
  harness_->core().handle(CloseWindow{DataHarness::kSession, DataHarness::kWindow});
  harness_->run();
  EXPECT_EQ(harness_->take<WindowClosed>().size(), 1U);
  EXPECT_EQ(harness_->inline_pool().used_bytes(), 0U);
  EXPECT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kUnknownHandle);
}

TEST_F(DataSession, ADeadSessionsTasksEndWithoutAWord) {
  HarnessSetup setup;
  setup.tick_ns = 300'000;  // one unit per step
  harness_ = std::make_unique<DataHarness>(setup);
  harness_->add_sentences(1);
  TestSentence& sentence = harness_->sentences()[0];
  DeriveTask task;
  task.task = TaskId{77};
  task.session = SessionId{12};
  task.space = DataHarness::kSpace;
  task.model = harness_->model();
  task.sentences = {{sentence.span, {sentence.chunks[0].offset, sentence.chunks[1].offset}, {}}};
  harness_->core().handle(std::move(task));
  harness_->core().step();
  harness_->core().handle(CloseSession{SessionId{12}});
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
  EXPECT_TRUE(harness_->take<TaskDone>().empty());
}

// ---- windows, budgets, device -------------------------------------------------------------------

TEST_F(DataSession, AWindowAboveTheDeviceBudgetIsRefusedWithBothNumbers) {
  HarnessSetup setup;
  setup.device_budget = 100'000;
  harness_ = std::make_unique<DataHarness>(setup);
  harness_->open_feed();
  const auto refused = harness_->open_window(harness_->window_options());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(refused.error().message.find("100000"), std::string::npos);
  EXPECT_NE(refused.error().message.find(std::to_string(3 * 2 * 20 * 4096)), std::string::npos);
  harness_->core().handle(CloseWindow{DataHarness::kSession, DataHarness::kWindow});
  harness_->run();
  EXPECT_EQ(harness_->take<WindowClosed>().size(), 1U) << "every close is answered";
}

TEST_F(DataSession, AResidentSetBelowTheReadSetIsRefused) {
  harness_ = std::make_unique<DataHarness>();
  harness_->open_feed();
  OpenWindow options = harness_->window_options();
  options.resident_blocks = 8;
  EXPECT_EQ(harness_->open_window(options).error().code, ErrorCode::kInvalidArgument);
}

// Goal: a lost device makes its windows stale, and the next window works on a new one.
TEST_F(DataSession, ALostDeviceIsToldAndStartedAgain) {
  HarnessSetup setup;
  setup.hold_completions = true;
  open(setup);
  harness_->submit(*channel_, harness_->entry(kAllLayers), query_);
  harness_->run();
  harness_->inline_pool().lose_device();
  harness_->run();
  const std::vector<DeviceLost> lost = harness_->take<DeviceLost>();
  ASSERT_EQ(lost.size(), 1U);
  ASSERT_EQ(lost[0].windows.size(), 1U);
  EXPECT_EQ(lost[0].windows[0].window, DataHarness::kWindow);
  EXPECT_EQ(harness_->completion(*channel_)->status, static_cast<int32_t>(ErrorCode::kStale));
  EXPECT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kStale);
  harness_->core().handle(CloseWindow{DataHarness::kSession, DataHarness::kWindow});
  harness_->run();
  EXPECT_EQ(harness_->take<WindowClosed>().size(), 1U);

  OpenWindow again = harness_->window_options();
  again.window = WindowId{41};
  harness_->core().handle(OpenWindow{again});
  harness_->inline_pool().release_completions();
  harness_->run();
  std::vector<WindowOpened> opened = harness_->take<WindowOpened>();
  ASSERT_EQ(opened.size(), 1U);
  ASSERT_TRUE(opened[0].parts.ok());
  SubmissionEntry entry = harness_->entry(kAllLayers);
  entry.window = 41;
  harness_->submit(*channel_, entry, query_);
  harness_->run();
  harness_->inline_pool().release_completions();
  harness_->run();
  EXPECT_EQ(harness_->completion(*channel_)->status, 0);
}

TEST_F(DataSession, WhatWasReadIsToldNowAndThen) {
  open();
  ASSERT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kOk);
  harness_->pass(2'000'000);
  harness_->run();
  const std::vector<Touched> touched = harness_->take<Touched>();
  ASSERT_EQ(touched.size(), 1U);
  EXPECT_GE(touched[0].sentences.size(), 2U);
  harness_->pass(2'000'000);
  harness_->run();
  EXPECT_TRUE(harness_->take<Touched>().empty()) << "nothing new was read";
}

// Goal: two windows on one channel go on side by side; a wait in one does not hold up the other.
TEST_F(DataSession, AWaitInOneWindowDoesNotHoldUpAnother) {
  open();
  harness_->core().handle(Withdraw{ChunkRef{harness_->sentences()[0].uid, 0}});
  harness_->run();
  OpenWindow other = harness_->window_options();
  other.window = WindowId{41};
  const std::unique_ptr<WindowReader> second = harness_->open_window(other).value();
  SubmissionEntry waiting = harness_->entry(kAllLayers);
  waiting.cold = static_cast<uint32_t>(ColdMode::kWait);
  harness_->submit(*channel_, waiting, query_);
  SubmissionEntry quick = harness_->entry(kAllLayers);
  quick.window = 41;
  harness_->submit(*channel_, quick, query_);
  harness_->run();
  const std::optional<CompletionEntry> first = harness_->completion(*channel_);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->ticket, quick.ticket);
  EXPECT_FALSE(harness_->completion(*channel_));
  harness_->arrive({harness_->sentences()[0].uid, 0});
  harness_->run();
  EXPECT_EQ(harness_->completion(*channel_)->ticket, waiting.ticket);
}

}  // namespace
}  // namespace skv::data_test
