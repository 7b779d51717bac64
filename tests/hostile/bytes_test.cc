#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/test_engine.h"

namespace skv::test {
namespace {

// A request of each verb that would be served, as bytes.
std::vector<std::vector<uint8_t>> requests_of(TestEngine& engine) {
  const uint32_t context = engine.context_id();
  Load load;
  load.context = context;
  load.sentence_count = 1;
  load.layer_count = 6;
  load.destination = engine.view(0);
  ContextAppend append;
  append.context = context;
  append.first_position = 120;
  append.tokens = {1, 2, 3};
  append.ends = {122};
  append.ends_final_to = 122;
  Hello hello;
  hello.client_name = "again";
  const Ticket ticket{7};
  return {
      encode_request(Verb::kHello, ticket, hello),
      encode_request(Verb::kModelOpen, ticket, ModelOpen{encode(small_model())}),
      encode_request(Verb::kContextOpen, ticket, ContextOpen{engine.model_id(), 0, 2}),
      encode_request(Verb::kContextAppend, ticket, append),
      encode_request(Verb::kMatch, ticket, Match{context, 1}),
      encode_request(Verb::kMemoryRegister, ticket, MemoryRegister{4096}),
      encode_request(Verb::kPutReserve, ticket, PutReserve{context, 0, 2}),
      encode_request(Verb::kPutWrite, ticket, PutWrite{context, 0, 2, 0, 6, engine.view(0)}),
      encode_request(Verb::kPutCommit, ticket, PutCommit{context, 0, 2, 1}),
      encode_request(Verb::kPutCancel, ticket, PutCancel{context, 0, 2}),
      encode_request(Verb::kVectorsDerive, ticket, VectorsDerive{context, 0, 2}),
      encode_request(Verb::kVectorsPut, ticket, VectorsPut{context, 0, 1, 0, 0, 64}),
      encode_request(Verb::kWindowOpen, ticket, WindowOpen{context, 4, 1, 1, 12, 0, 0}),
      encode_request(Verb::kWindowClose, ticket, WindowClose{1}),
      encode_request(Verb::kChannelOpen, ticket, ChannelOpen{4096}),
      encode_request(Verb::kChannelClose, ticket, ChannelClose{1}),
      encode_request(Verb::kLoad, ticket, load),
      encode_request(Verb::kRelease, ticket, Release{1}),
      encode_request(Verb::kFlush, ticket, Flush{1}),
      encode_request(Verb::kDrop, ticket, Drop{context, 1}),
      encode_request(Verb::kStat, ticket, Stat{0, 0}),
      encode_request(Verb::kMemoryUnregister, ticket, MemoryUnregister{1}),
      encode_request(Verb::kContextClose, ticket, ContextClose{context}),
  };
}

// Sends it and takes whatever comes: a reply, or the end. False: neither came.
bool answered_or_closed(RawClient& client, const std::vector<uint8_t>& bytes, bool& closed) {
  client.send_bytes(bytes);
  const Result<Frame> frame = client.receive();
  closed = !frame.ok() && frame.error().code == ErrorCode::kDisconnected;
  return frame.ok() || closed;
}

class BytesTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(daemon_.start()) << daemon_.log(); }

  std::unique_ptr<TestEngine> engine() {
    auto made = std::make_unique<TestEngine>(120, next_seed_++ % 4);
    EXPECT_TRUE(made->open(daemon_.socket())) << daemon_.log();
    EXPECT_TRUE(made->append_all());
    return made;
  }

  // After all that was done to it the daemon serves, and nothing is left charged.
  void check_daemon() {
    TestEngine good(120, /*seed=*/50);
    ASSERT_TRUE(good.open(daemon_.socket())) << daemon_.log();
    ASSERT_TRUE(good.append_all());
    good.compute();
    ASSERT_TRUE(good.put(0, good.sentence_count()).ok());
    good.clear();
    ASSERT_TRUE(good.load(0, good.sentence_count()).ok());
    EXPECT_EQ(good.wrong_values(0, good.end_token(good.sentence_count() - 1)), 0U);
    const nlohmann::json now = good.client().wait_status([](const nlohmann::json& seen) {
      return seen["sessions"]["open"] == 1 && seen["requests"]["tasks"] == 0;
    });
    EXPECT_EQ(now["sessions"]["open"], 1) << now.dump(1);
    EXPECT_EQ(now["sessions"]["charges_left"], 0);
    EXPECT_EQ(now["placement"]["chunk_leases"], 0);
    EXPECT_EQ(now["placement"]["sentence_leases"], 0);
    EXPECT_EQ(daemon_.stop(), 0) << daemon_.log();
  }

  DaemonProcess daemon_;
  uint32_t next_seed_ = 0;
};

// Goal: every truncation of every request is answered or ends its session.
TEST_F(BytesTest, EveryTruncation) {
  std::unique_ptr<TestEngine> client = engine();
  const size_t verbs = requests_of(*client).size();
  for (size_t verb = 0; verb < verbs; ++verb) {
    const size_t bytes = requests_of(*client)[verb].size();
    for (size_t cut = 0; cut < bytes; cut += cut < 80 ? 3 : 41) {
      std::vector<uint8_t> frame = requests_of(*client)[verb];
      frame.resize(cut);
      if (cut >= sizeof(FrameHeader) && cut % 2 == 0) {  // with a header that agrees
        const auto body = static_cast<uint32_t>(cut - sizeof(FrameHeader));
        std::memcpy(frame.data() + offsetof(FrameHeader, body_bytes), &body, sizeof body);
      }
      bool closed = false;
      ASSERT_TRUE(answered_or_closed(client->client(), frame, closed)) << verb << " at " << cut;
      client = engine();
    }
  }
  client.reset();
  check_daemon();
}

// Goal: a flipped bit in any byte of any request is answered or ends its session; it never ends
// the daemon, and never leaves anything charged.
TEST_F(BytesTest, EveryFlippedByte) {
  std::mt19937 random(11);
  std::unique_ptr<TestEngine> client = engine();
  const size_t verbs = requests_of(*client).size();
  for (size_t verb = 0; verb < verbs; ++verb) {
    const size_t bytes = requests_of(*client)[verb].size();
    for (size_t at = 0; at < bytes; at += at < 120 ? 1 : 17) {
      std::vector<uint8_t> frame = requests_of(*client)[verb];
      frame[at] ^= static_cast<uint8_t>(1U << random() % 8);
      bool closed = false;
      ASSERT_TRUE(answered_or_closed(client->client(), frame, closed))
          << "verb " << verb << " byte " << at << daemon_.log();
      if (closed || at % 16 == 0) {  // some sessions live through several
        client = engine();
      }
    }
  }
  client.reset();
  check_daemon();
}

// Goal: the same frames by a channel: every truncation and a flipped bit in any byte is answered or
// ends that session.
TEST_F(BytesTest, EveryTruncationAndFlipByChannel) {
  std::mt19937 random(13);
  std::unique_ptr<TestEngine> client = engine();
  std::optional<ClientChannel> channel;
  const auto renew = [&] {
    channel.reset();
    client = engine();
    Result<ClientChannel> opened = client->open_channel(2 * kMessageBytesMax);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    channel.emplace(std::move(opened).value());
  };
  renew();
  const auto send = [&](const std::vector<uint8_t>& frame, size_t verb, size_t at) {
    const Result<Frame> reply = client->by_channel(*channel, frame);
    ASSERT_TRUE(reply.ok() || reply.error().code != ErrorCode::kTimeout)
        << "verb " << verb << " byte " << at << daemon_.log();
    if (!reply.ok() || at % 16 == 0) renew();  // some sessions live through several
  };
  const size_t verbs = requests_of(*client).size();
  for (size_t verb = 0; verb < verbs; ++verb) {
    const size_t bytes = requests_of(*client)[verb].size();
    for (size_t cut = 0; cut < bytes; cut += cut < 80 ? 7 : 61) {
      std::vector<uint8_t> frame = requests_of(*client)[verb];
      frame.resize(cut);
      if (cut >= sizeof(FrameHeader) && cut % 2 == 0) {
        const auto body = static_cast<uint32_t>(cut - sizeof(FrameHeader));
        std::memcpy(frame.data() + offsetof(FrameHeader, body_bytes), &body, sizeof body);
      }
      send(frame, verb, cut);
    }
    for (size_t at = 0; at < bytes; at += at < 120 ? 2 : 29) {
      std::vector<uint8_t> frame = requests_of(*client)[verb];
      frame[at] ^= static_cast<uint8_t>(1U << random() % 8);
      send(frame, verb, at);
    }
  }
  channel.reset();
  client.reset();
  check_daemon();
}

// Goal: an entry of a request with any field out of its range is answered, and the session goes on.
TEST_F(BytesTest, EntriesOfRequestsThatCannotBe) {
  std::unique_ptr<TestEngine> client = engine();
  ClientChannel channel = std::move(client->open_channel(2 * kMessageBytesMax)).value();
  const std::vector<uint8_t> good =
      encode_request(Verb::kPutReserve, Ticket{7}, PutReserve{client->context_id(), 0, 2});
  const auto with = [&](auto change) {
    std::memcpy(channel.argument_area().data(), good.data(), good.size());
    SubmissionEntry entry{};
    entry.ticket = 9;
    entry.verb = static_cast<uint32_t>(ChannelVerb::kRequest);
    entry.argument_bytes = static_cast<uint32_t>(good.size());
    entry.reply_bytes_max = kMessageBytesMax;
    change(entry);
    const Result<Frame> reply = client->by_channel(channel, entry);
    return reply.ok() ? ErrorCode::kOk : reply.error().code;
  };
  constexpr ErrorCode kBad = ErrorCode::kInvalidArgument;
  EXPECT_EQ(with([](auto& e) { e.argument_offset = 0xFFFFFFF8; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.argument_offset = 4; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.argument_bytes = 0xFFFFFFFF; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.argument_bytes = 31; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.argument_bytes = kMessageBytesMax + 8; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.reply_bytes_max = 0xFFFFFFFF; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.reserved[1] = 1; }), kBad);
  EXPECT_EQ(with([](auto& e) { e.verb = 0; }), ErrorCode::kUnsupported);
  EXPECT_EQ(with([](auto& e) { e.reply_bytes_max = 8; }), ErrorCode::kTooLarge);
  EXPECT_EQ(with([](auto&) {}), ErrorCode::kOk);
  client.reset();
  check_daemon();
}

}  // namespace
}  // namespace skv::test
