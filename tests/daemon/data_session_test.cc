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

  ErrorCode status_of(const TestSubmission& entry) {
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
    TestSubmission entry = harness_->entry(kAllLayers);
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
  EXPECT_EQ(wrong([](auto& e) { e.reserved[4] = 1; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.reply_bytes_max = 8; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.row_count = 0; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.row_count = 2; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.row_count = 0xFFFFFFFF; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.argument_offset = 4; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.argument_bytes -= 4; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(wrong([](auto& e) { e.argument_bytes = 0xFFFFFFFC; }), ErrorCode::kInvalidArgument);
  TestSubmission outside = harness_->entry(kAllLayers);
  outside.argument_offset = 64 * 1024 - 8;
  ASSERT_TRUE(channel_->submit(outside).value());
  harness_->run();
  EXPECT_EQ(harness_->completion(*channel_)->status,
            static_cast<int32_t>(ErrorCode::kInvalidArgument));
  EXPECT_EQ(status_of(harness_->entry(kAllLayers)), ErrorCode::kOk) << "the session goes on";
  EXPECT_TRUE(harness_->take<ProtocolError>().empty());
}

// ---- requests by channel ------------------------------------------------------------------------

// Goal: a frame crosses as it was when the entry was taken, and its answer comes back over it.
TEST_F(DataSession, ARequestCrossesAndIsAnswered) {
  open();
  const std::vector<uint8_t> frame(sizeof(FrameHeader) + 5, 0x5A);
  std::memcpy(channel_->argument_area().data() + 64, frame.data(), frame.size());
  SubmissionEntry entry{};
  entry.ticket = 77;
  entry.verb = static_cast<uint32_t>(ChannelVerb::kRequest);
  entry.argument_offset = 64;
  entry.argument_bytes = static_cast<uint32_t>(frame.size());
  entry.reply_bytes_max = 100;
  ASSERT_TRUE(channel_->submit(entry).value());
  ASSERT_TRUE(channel_->submit(entry).value());
  harness_->run();
  const std::vector<ChannelRequest> requests = harness_->take<ChannelRequest>();
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(requests[0].frame, frame);
  EXPECT_EQ(requests[0].session, DataHarness::kSession);
  EXPECT_FALSE(channel_->next_completion().value());

  // Answers in another order; one is longer than its place.
  const std::vector<uint8_t> answer(100, 0x11);
  harness_->core().handle(
      ChannelReply{DataHarness::kChannel, requests[1].request, std::vector<uint8_t>(101)});
  harness_->core().handle(ChannelReply{DataHarness::kChannel, requests[0].request, answer});
  EXPECT_EQ(channel_->next_completion().value()->status,
            static_cast<int32_t>(ErrorCode::kTooLarge));
  const CompletionEntry done = channel_->next_completion().value().value();
  EXPECT_EQ(done.ticket, 77U);
  EXPECT_EQ(done.status, 0);
  EXPECT_EQ(done.reply_bytes, 100U);
  EXPECT_EQ(std::memcmp(channel_->argument_area().data() + 64, answer.data(), 100), 0);

  // An answer for a channel that is gone is nobody's.
  ASSERT_TRUE(channel_->submit(entry).value());
  harness_->run();
  const std::vector<ChannelRequest> last = harness_->take<ChannelRequest>();
  ASSERT_EQ(last.size(), 1U);
  harness_->core().handle(CloseSession{DataHarness::kSession});
  harness_->core().handle(ChannelReply{DataHarness::kChannel, last[0].request, answer});
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
  EXPECT_FALSE(channel_->next_completion().value());
}

// Goal: rows of one submission are served side by side; one that cannot be says so by itself.
TEST_F(DataSession, RowsOfOneSubmission) {
  open();
  OpenWindow second = harness_->window_options();
  second.window = WindowId{41};
  const std::unique_ptr<WindowReader> other = harness_->open_window(second).value();
  const std::vector<float> query = harness_->make_query(kAllLayers);
  std::vector<PrefetchRow> rows(3);
  rows[0].window = raw(DataHarness::kWindow);
  rows[1].window = 999;
  rows[2].window = 41;
  std::byte* const argument = channel_->argument_area().data();
  std::memcpy(argument, rows.data(), 3 * sizeof(PrefetchRow));
  std::byte* at = argument + 3 * sizeof(PrefetchRow);
  for (const std::vector<float>& each : {query_, query_, query}) {
    std::memcpy(at, each.data(), each.size() * 4);
    at += each.size() * 4;
  }
  SubmissionEntry entry = harness_->entry(kAllLayers);
  entry.row_count = 3;
  entry.argument_bytes = static_cast<uint32_t>(at - argument);
  ASSERT_TRUE(channel_->submit(entry).value());
  harness_->run();
  const CompletionEntry done = channel_->next_completion().value().value();
  EXPECT_EQ(done.status, static_cast<int32_t>(ErrorCode::kUnknownHandle));
  std::memcpy(rows.data(), argument, 3 * sizeof(PrefetchRow));
  EXPECT_EQ(rows[0].status, 0);
  EXPECT_EQ(rows[0].version, 1U);
  EXPECT_EQ(rows[1].status, static_cast<int32_t>(ErrorCode::kUnknownHandle));
  EXPECT_EQ(rows[1].window, 999U);
  EXPECT_EQ(rows[2].status, 0);
  EXPECT_EQ(rows[2].read_blocks, 54U);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness_->expect_table(*reader_, harness_->window_options(), kAllLayers, query_, layer);
    harness_->expect_table(*other, second, kAllLayers, query, layer);
  }
}

// Goal: a guess moves and publishes nothing; the prefetch that confirms it moves what it missed.
TEST_F(DataSession, AGuessPublishesNothingAndItsConfirmationMovesTheRest) {
  open();
  TestSubmission guess = harness_->entry(kAllLayers);
  guess.verb = static_cast<uint32_t>(ChannelVerb::kGuess);
  const TestCompletion guessed = harness_->prefetch(*channel_, guess, query_);
  ASSERT_EQ(guessed.status, 0);
  EXPECT_EQ(guessed.version, 0U);
  EXPECT_GT(guessed.bytes_moved, 0U);
  for (uint32_t layer = 0; layer < 3; ++layer) EXPECT_EQ(reader_->read(layer).version, 0U);

  const TestCompletion same = harness_->prefetch(*channel_, harness_->entry(kAllLayers), query_);
  ASSERT_EQ(same.status, 0);
  EXPECT_EQ(same.bytes_moved, 0U) << "all of it was guessed";
  EXPECT_EQ(same.hits_device, 54U);
  harness_->expect_table(*reader_, harness_->window_options(), kAllLayers, query_, 1);
  reader_->done(same.version);

  // A guess by another query, then the right one: what the present table holds stays where it is.
  const TableRead before = reader_->read(0);
  const std::vector<float> wrong = harness_->make_query(kAllLayers);
  ASSERT_EQ(harness_->prefetch(*channel_, guess, wrong).status, 0);
  EXPECT_EQ(reader_->read(0).version, before.version);
  const std::vector<float> right = harness_->make_query(kAllLayers);
  const TestCompletion confirmed =
      harness_->prefetch(*channel_, harness_->entry(kAllLayers), right);
  ASSERT_EQ(confirmed.status, 0);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    harness_->expect_table(*reader_, harness_->window_options(), kAllLayers, right, layer);
  }
}

TEST_F(DataSession, AnothersWindowIsUnknown) {
  open();
  const std::unique_ptr<ClientChannel> other = harness_->open_channel(ChannelId{21}, SessionId{11});
  const TestCompletion done = harness_->prefetch(*other, harness_->entry(kAllLayers), query_);
  EXPECT_EQ(done.status, static_cast<int32_t>(ErrorCode::kUnknownHandle));
}

TEST_F(DataSession, QueriesThatAreNotNumbersWinNothing) {
  open();
  for (float& value : query_) value = std::numeric_limits<float>::quiet_NaN();
  const TestCompletion done = harness_->prefetch(*channel_, harness_->entry(kAllLayers), query_);
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
  TestSubmission entry = harness_->entry(kAllLayers);
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
  options.shape.resident_blocks = 8;
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
  TestSubmission entry = harness_->entry(kAllLayers);
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
  TestSubmission waiting = harness_->entry(kAllLayers);
  waiting.cold = static_cast<uint32_t>(ColdMode::kWait);
  harness_->submit(*channel_, waiting, query_);
  TestSubmission quick = harness_->entry(kAllLayers);
  quick.window = 41;
  quick.argument_offset = 32 * 1024;
  harness_->submit(*channel_, quick, query_);
  harness_->run();
  const std::optional<TestCompletion> first = harness_->completion(*channel_);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->ticket, quick.ticket);
  EXPECT_FALSE(harness_->completion(*channel_));
  harness_->arrive({harness_->sentences()[0].uid, 0});
  harness_->run();
  EXPECT_EQ(harness_->completion(*channel_)->ticket, waiting.ticket);
}

}  // namespace
}  // namespace skv::data_test
