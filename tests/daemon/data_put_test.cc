#include <gtest/gtest.h>

#include "ipc/codec.h"
#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

constexpr ContextId kContext{50};
constexpr MemoryId kMemory{3};

// A session with a channel, a memory with one sentence's K and V, and room reserved for it.
class DataPut : public ::testing::Test {
 protected:
  void open(const HarnessSetup& setup = {}) {
    harness_ = std::make_unique<DataHarness>(setup);
    channel_ = harness_->open_channel();
    sentence_ = harness_->make_sentence(0, 4);
    k_bytes_ = sentence_.k.size() * sizeof(float);
    memory_ = std::make_shared<std::vector<std::byte>>(2 * k_bytes_);
    std::memcpy(memory_->data(), sentence_.k.data(), k_bytes_);
    std::memcpy(memory_->data() + k_bytes_, sentence_.v.data(), k_bytes_);
    harness_->core().handle(
        GrantMemory{DataHarness::kSession, kMemory, memory_, memory_->data(), memory_->size()});
    const BodyLayout& layout = harness_->layout();
    GrantPuts grant{DataHarness::kSession, kContext, DataHarness::kSpace, harness_->model(), {{}}};
    grant.sentences[0].index = 7;
    grant.sentences[0].uid = sentence_.uid;
    grant.sentences[0].place.span = sentence_.span;
    for (uint32_t chunk = 0; chunk < layout.chunk_count(); ++chunk) {
      extents_.push_back(
          harness_->new_extent(layout.chunk_storage_bytes(chunk, sentence_.span.block_count)));
    }
    grant.sentences[0].place.extents = extents_;
    harness_->core().handle(std::move(grant));
  }

  PutWrite message(LayerRange layers) const {
    PutWrite write{raw(kContext), 7, 1, layers.first, layers.count, {}};
    write.source = harness_->view(sentence_, k_bytes_);
    write.source.memory = raw(kMemory);
    write.source.k_offset += layers.first * write.source.layer_stride;
    write.source.v_offset += layers.first * write.source.layer_stride;
    return write;
  }
  void submit(const PutWrite& write, uint64_t ticket = 5) {
    const std::vector<uint8_t> frame = encode_request(Verb::kPutWrite, Ticket{ticket}, write);
    std::memcpy(channel_->argument_area().data(), frame.data(), frame.size());
    SubmissionEntry entry{};
    entry.ticket = ticket;
    entry.verb = static_cast<uint32_t>(ChannelVerb::kRequest);
    entry.argument_bytes = static_cast<uint32_t>(frame.size());
    entry.reply_bytes_max = 4096;
    ASSERT_TRUE(channel_->submit(entry).value());
  }
  // The reply's error; kOk; kNotFound: nothing came.
  ErrorCode answer() {
    const std::optional<CompletionEntry> done = channel_->next_completion().value();
    if (!done) return ErrorCode::kNotFound;
    const auto* bytes = reinterpret_cast<const uint8_t*>(channel_->argument_area().data());
    const Result<FrameHeader> header = decode_header({bytes, done->reply_bytes});
    return header.ok() ? static_cast<ErrorCode>(header.value().status) : ErrorCode::kProtocol;
  }
  ErrorCode write(const PutWrite& write) {
    submit(write);
    harness_->run();
    return answer();
  }
  TaskDone seal(bool derive) {
    harness_->core().handle(
        SealPuts{TaskId{9}, DataHarness::kSession, {}, {{sentence_.uid, derive}}});
    harness_->run();
    std::vector<TaskDone> done = harness_->take<TaskDone>();
    EXPECT_EQ(done.size(), 1U);
    return done.empty() ? TaskDone{} : std::move(done[0]);
  }

  std::unique_ptr<DataHarness> harness_;
  std::unique_ptr<ClientChannel> channel_;
  TestSentence sentence_;
  uint64_t k_bytes_ = 0;
  std::shared_ptr<std::vector<std::byte>> memory_;
  std::vector<uint64_t> extents_;
};

// Goal: what was granted is written without a word to the loop, and the seal brings sums of what
// lies in the extents, and vectors.
TEST_F(DataPut, WrittenLayerByLayerThenSealed) {
  open();
  ASSERT_EQ(write(message({0, 2})), ErrorCode::kOk);
  EXPECT_TRUE(harness_->take<ChannelRequest>().empty()) << "the loop was not asked";
  EXPECT_TRUE(harness_->take<TaskDone>().empty());
  const TaskDone early = seal(true);
  ASSERT_EQ(early.puts.size(), 1U);
  EXPECT_FALSE(early.puts[0].whole) << "a layer is missing";
  EXPECT_TRUE(early.vectors.empty());

  ASSERT_EQ(write(message({2, 1})), ErrorCode::kOk);
  const TaskDone done = seal(true);
  EXPECT_TRUE(done.status.ok());
  ASSERT_EQ(done.puts.size(), 1U);
  EXPECT_TRUE(done.puts[0].whole);
  EXPECT_EQ(done.vectors.size(), 1U);
  const BodyLayout& layout = harness_->layout();
  ASSERT_EQ(done.puts[0].sums.size(), layout.chunk_count());
  for (const TaskDone::Sum& sum : done.puts[0].sums) {
    EXPECT_EQ(sum.sum, checksum({harness_->arena().data() + extents_[sum.chunk],
                                 layout.chunk_bytes(sum.chunk, sentence_.span.block_count)}));
  }
  const std::byte* body = harness_->arena().data() + extents_[0];
  EXPECT_EQ(std::memcmp(body + layout.block_offset(0, 1, 0, 4),
                        harness_->row(sentence_.k, sentence_, 0, 1, 0), 8 * 64 * sizeof(float)),
            0);

  // Sealed: it is skipped, as a sentence is that was never reserved.
  std::fill(memory_->begin(), memory_->end(), std::byte{0});
  ASSERT_EQ(write(message({0, 3})), ErrorCode::kOk);
  EXPECT_EQ(std::memcmp(body + layout.block_offset(0, 1, 0, 4),
                        harness_->row(sentence_.k, sentence_, 0, 1, 0), 8 * 64 * sizeof(float)),
            0);
}

TEST_F(DataPut, WhatWasNotGrantedIsTheLoops) {
  open();
  const auto goes_to_the_loop = [&](auto change) {
    PutWrite write = message({0, 3});
    change(write);
    submit(write);
    harness_->run();
    const std::vector<ChannelRequest> asked = harness_->take<ChannelRequest>();
    for (const ChannelRequest& each : asked) {
      harness_->core().handle(ChannelReply{each.channel, each.request, {}});
    }
    (void)channel_->next_completion();
    return asked.size() == 1;
  };
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.context = 51; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.first_sentence = 8; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.source.memory = 4; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.layer_count = 4; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.first_layer = 0xFFFFFFFF; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.sentence_count = 0; }));
  EXPECT_TRUE(goes_to_the_loop([](PutWrite& write) { write.sentence_count = 0xFFFFFFFF; }));
  harness_->core().handle(RevokeMemory{DataHarness::kSession, kMemory});
  EXPECT_TRUE(goes_to_the_loop([](PutWrite&) {}));
}

// Goal: strides that leave the memory are refused here, by the same check.
TEST_F(DataPut, ViewsThatLeaveTheirMemory) {
  open();
  for (int field = 0; field < 5; ++field) {
    PutWrite hostile = message({0, 3});
    StridedKv& view = hostile.source;
    (field == 0   ? view.k_offset
     : field == 1 ? view.v_offset
     : field == 2 ? view.layer_stride
     : field == 3 ? view.head_stride
                  : view.token_stride) = ~uint64_t{0} - 1000;
    EXPECT_EQ(write(hostile), ErrorCode::kInvalidArgument) << field;
  }
  PutWrite late = message({0, 3});
  late.source.first_token = 1;
  EXPECT_EQ(write(late), ErrorCode::kInvalidArgument);
  EXPECT_EQ(write(message({0, 3})), ErrorCode::kOk);
  EXPECT_TRUE(seal(false).puts.at(0).whole);
}

// Goal: extents are let go, and sums believed, only when no copy can run any more.
TEST_F(DataPut, RevokedOnceItsCopiesHaveEnded) {
  HarnessSetup setup;
  setup.tick_ns = 300'000;  // a slice ends after each unit of a copy
  open(setup);
  submit(message({0, 3}));
  harness_->core().step();
  harness_->core().handle(RevokePuts{DataHarness::kSession, {sentence_.uid}});
  for (const DataEvent& event : harness_->core().events()) {
    EXPECT_FALSE(std::holds_alternative<PutRevoked>(event)) << "while a copy runs";
  }
  harness_->run();
  const std::vector<PutRevoked> revoked = harness_->take<PutRevoked>();
  ASSERT_EQ(revoked.size(), 1U);
  EXPECT_EQ(revoked[0].uid, sentence_.uid);
  EXPECT_EQ(answer(), ErrorCode::kOk);
  submit(message({0, 3}));
  harness_->run();
  EXPECT_EQ(harness_->take<ChannelRequest>().size(), 1U) << "it is not known any more";
}

TEST_F(DataPut, ASessionThatEndsTakesItsWritesWithIt) {
  HarnessSetup setup;
  setup.tick_ns = 300'000;
  open(setup);
  submit(message({0, 3}));
  harness_->core().step();
  harness_->core().handle(SealPuts{TaskId{9}, DataHarness::kSession, {}, {{sentence_.uid, true}}});
  harness_->core().handle(CloseSession{DataHarness::kSession});
  harness_->run();
  EXPECT_EQ(harness_->take<SessionClosed>().size(), 1U);
  EXPECT_TRUE(harness_->take<TaskDone>().empty());
  EXPECT_TRUE(harness_->take<PutRevoked>().empty());
  EXPECT_EQ(answer(), ErrorCode::kNotFound);
}

// Goal: by the loop, when it came by the socket.
TEST_F(DataPut, WritesOfTheLoopAreTheSame) {
  open();
  harness_->core().handle(WritePuts{TaskId{8}, DataHarness::kSession, message({0, 3})});
  harness_->run();
  const std::vector<TaskDone> done = harness_->take<TaskDone>();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].task, TaskId{8});
  EXPECT_TRUE(done[0].status.ok());
  EXPECT_TRUE(seal(true).puts.at(0).whole);
}

}  // namespace
}  // namespace skv::data_test
