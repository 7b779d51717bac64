#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>

#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/test_engine.h"

namespace skv::test {
namespace {

using testing::HasSubstr;

// One daemon for all tests of the file; each test leaves nothing behind, and that is checked.
class ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    daemon_ = std::make_unique<DaemonProcess>(DaemonProcess::Options{
        .sessions = "max = 6\ncontexts = 3\nwindows = 2\nmemories = 2\nchannels = 2\n"
                    "requests = 16\nleases = 2\nsend_queue = 32\nmemory = \"8MiB\"\n"
                    "staging = \"64KiB\"\ncontext_tokens = 4096\n"});
    ASSERT_TRUE(daemon_->start()) << daemon_->log();
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->log();
    daemon_.reset();
  }
  void TearDown() override {
    // The test's own sessions may fill the limit until the daemon has seen them go.
    RawClient watcher;
    bool opened = watcher.open(daemon_->socket(), "watcher");
    for (int tries = 0; !opened && tries < 2000; ++tries) {
      ::usleep(5000);
      watcher.close();
      opened = watcher.open(daemon_->socket(), "watcher");
    }
    ASSERT_TRUE(opened) << daemon_->log();
    const nlohmann::json status = watcher.wait_status([](const nlohmann::json& now) {
      return now["sessions"]["open"] == 1 && now["requests"]["tasks"] == 0;
    });
    EXPECT_EQ(status["sessions"]["open"], 1) << status.dump(1);
    EXPECT_EQ(status["sessions"]["charges_left"], 0);
    EXPECT_EQ(status["placement"]["chunk_leases"], 0);
    EXPECT_EQ(status["placement"]["sentence_leases"], 0);
  }

  static std::string socket() { return daemon_->socket(); }
  static std::unique_ptr<DaemonProcess> daemon_;
};
std::unique_ptr<DaemonProcess> ServerTest::daemon_;

TEST_F(ServerTest, HelloSaysWhoAndWhat) {
  RawClient client;
  ASSERT_TRUE(client.open(socket()));
  EXPECT_EQ(client.hello().version, kProtocolVersion);
  EXPECT_EQ(client.hello().device_kind, "none");
  EXPECT_EQ(client.hello().staging_bytes, 64U * 1024);
  EXPECT_EQ(client.hello_fds().size(), 2U);
  RawClient other;
  ASSERT_TRUE(other.open(socket()));
  EXPECT_EQ(other.hello().instance, client.hello().instance);
  EXPECT_EQ(other.hello().space_salt, client.hello().space_salt);
  EXPECT_NE(other.hello().session, client.hello().session);
  // Once only.
  const Result<HelloReply> again = client.call<HelloReply>(Verb::kHello, Hello{});
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(ServerTest, HelloNegotiatesVersions) {
  struct Range {
    uint16_t min, max;
    bool served;
  };
  for (const Range range :
       {Range{0, 1, true}, Range{1, 9, true}, Range{2, 9, false}, Range{0, 0, false}}) {
    RawClient client;
    ASSERT_TRUE(client.connect(socket()));
    Hello hello;
    hello.version_min = range.min;
    hello.version_max = range.max;
    const Result<HelloReply> reply = client.call<HelloReply>(Verb::kHello, hello);
    EXPECT_EQ(reply.ok(), range.served) << range.min << " to " << range.max;
    if (!range.served) {
      EXPECT_EQ(reply.error().code, ErrorCode::kUnsupported);
      EXPECT_THAT(reply.error().message, HasSubstr("this daemon speaks 1"));
      EXPECT_TRUE(client.closed_by_daemon());
    }
  }
}

TEST_F(ServerTest, NothingIsServedBeforeHello) {
  RawClient client;
  ASSERT_TRUE(client.connect(socket()));
  const Result<StatReply> reply = client.call<StatReply>(Verb::kStat, Stat{});
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kProtocol);
  EXPECT_TRUE(client.closed_by_daemon());
}

TEST_F(ServerTest, SessionsHaveALimit) {
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<RawClient>());
    ASSERT_TRUE(clients.back()->open(socket())) << i;
  }
  RawClient beyond;
  ASSERT_FALSE(beyond.open(socket()));
  EXPECT_EQ(beyond.error().code, ErrorCode::kTooLarge);
  EXPECT_EQ(beyond.error().message, "sessions.max: 6 of 6 in use");
}

// True once `client`'s session is the only one: what a closed one held is given back after its
// close.
bool alone(RawClient& client) {
  for (int i = 0; i < 2000; ++i) {
    const nlohmann::json stat = client.stat();
    if (stat.is_null() || stat.at("sessions").at("open") == 1) return !stat.is_null();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

TEST_F(ServerTest, GarbageEndsItsSessionAndNoOther) {
  RawClient good;
  ASSERT_TRUE(good.open(socket()));
  const std::vector<std::vector<uint8_t>> frames = {
      {},                                // an empty datagram
      {1, 2, 3},                         // no header
      std::vector<uint8_t>(32, 0xAA),    // a header of garbage
      std::vector<uint8_t>(70'000, 1)};  // above a frame
  for (const std::vector<uint8_t>& bytes : frames) {
    RawClient bad;
    ASSERT_TRUE(bad.open(socket()));
    bad.send_bytes(bytes);
    EXPECT_TRUE(bad.closed_by_daemon()) << bytes.size() << " bytes";
    bad.close();
    ASSERT_TRUE(alone(good));
  }
  // A request cut short, and one with bytes behind it.
  for (const int change : {-1, 1}) {
    std::vector<uint8_t> frame = encode_request(Verb::kMatch, Ticket{9}, Match{1, 0});
    frame.resize(frame.size() + static_cast<size_t>(change));
    FrameHeader header;
    std::memcpy(&header, frame.data(), sizeof header);
    header.body_bytes = static_cast<uint32_t>(frame.size() - sizeof header);
    std::memcpy(frame.data(), &header, sizeof header);
    RawClient bad;
    ASSERT_TRUE(bad.open(socket()));
    bad.send_bytes(frame);
    const Result<Empty> reply = bad.answer<Empty>(9);
    ASSERT_FALSE(reply.ok());
    EXPECT_EQ(reply.error().code, ErrorCode::kProtocol);
    EXPECT_TRUE(bad.closed_by_daemon());
  }
  EXPECT_FALSE(good.stat().is_null());
}

TEST_F(ServerTest, UnknownVerbIsAnErrorNotTheEnd) {
  RawClient client;
  ASSERT_TRUE(client.open(socket()));
  for (const uint16_t verb : {28, 64, 65, 999}) {
    const Result<Empty> reply = client.call<Empty>(static_cast<Verb>(verb), Empty{});
    ASSERT_FALSE(reply.ok());
    EXPECT_EQ(reply.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(reply.error().message, HasSubstr("verb " + std::to_string(verb)));
  }
  EXPECT_FALSE(client.stat().is_null());
}

// Goal: handles that never were, and handles of another session, are errors in every verb.
TEST_F(ServerTest, ForeignAndUnknownHandlesAreRefused) {
  TestEngine owner(120);
  ASSERT_TRUE(owner.open(socket()));
  ASSERT_TRUE(owner.append_all());
  RawClient thief;
  ASSERT_TRUE(thief.open(socket()));
  const auto refused = [&](Verb verb, const auto& message) {
    const Result<Empty> reply = thief.call<Empty>(verb, message);
    ASSERT_FALSE(reply.ok()) << static_cast<int>(verb);
    EXPECT_EQ(reply.error().code, ErrorCode::kUnknownHandle)
        << static_cast<int>(verb) << ": " << reply.error().message;
  };
  for (const uint32_t handle : {0U, 0xFFFFFFFFU, owner.context_id()}) {
    refused(Verb::kContextAppend, ContextAppend{handle, 0, 0, {}, {1}, {}});
    refused(Verb::kContextClose, ContextClose{handle});
    refused(Verb::kMatch, Match{handle, 0});
    refused(Verb::kPutReserve, PutReserve{handle, 0, 1});
    refused(Verb::kPutWrite, PutWrite{handle, 0, 1, 0, 1, {}});
    refused(Verb::kPutCommit, PutCommit{handle, 0, 1, 1});
    refused(Verb::kPutCancel, PutCancel{handle, 0, 1});
    refused(Verb::kVectorsDerive, VectorsDerive{handle, 0, 1});
    refused(Verb::kVectorsPut, VectorsPut{handle, 0, 1, 0, 0, 0});
    refused(Verb::kWindowOpen, WindowOpen{handle, 1, 0, 0, 1, 0, 0});
    Load load;
    load.context = handle;
    refused(Verb::kLoad, load);
    refused(Verb::kDrop, Drop{handle, 0});
    refused(Verb::kWindowClose, WindowClose{handle});
    refused(Verb::kChannelClose, ChannelClose{handle});
    refused(Verb::kRelease, Release{handle});
    refused(Verb::kLeaseMapOpen, LeaseMapOpen{handle});
    refused(Verb::kLeaseMapClose, LeaseMapClose{handle});
  }
  refused(Verb::kContextOpen, ContextOpen{owner.model_id(), 0, 2});
  refused(Verb::kMemoryUnregister, MemoryUnregister{owner.memory_id()});
  EXPECT_TRUE(owner.match(false).ok());
}

TEST_F(ServerTest, FieldsAreChecked) {
  TestEngine engine(120);
  ASSERT_TRUE(engine.open(socket()));
  ASSERT_TRUE(engine.append_all());
  const uint32_t context = engine.context_id();
  const uint32_t count = engine.sentence_count();
  RawClient& client = engine.client();
  const auto refused = [&](Verb verb, const auto& message, ErrorCode code, const char* why) {
    const Result<Empty> reply = client.call<Empty>(verb, message);
    ASSERT_FALSE(reply.ok()) << why;
    EXPECT_EQ(reply.error().code, code) << reply.error().message;
    EXPECT_THAT(reply.error().message, HasSubstr(why));
  };
  constexpr auto kBad = ErrorCode::kInvalidArgument;
  refused(Verb::kContextOpen, ContextOpen{engine.model_id(), 0, 3}, kBad, "run_tokens");
  refused(Verb::kContextOpen, ContextOpen{engine.model_id(), 10, 2}, ErrorCode::kUnsupported,
          "index_kind 10");
  refused(Verb::kModelOpen, ModelOpen{{1, 2, 3}}, kBad, "model: field 0");
  refused(Verb::kMatch, Match{context, 2}, kBad, "adopt");
  refused(Verb::kPutReserve, PutReserve{context, 0, 0}, kBad, "sentence_count");
  refused(Verb::kPutReserve, PutReserve{context, 0, 513}, kBad, "sentence_count");
  refused(Verb::kPutReserve, PutReserve{context, count, 1}, kBad, "");
  refused(Verb::kPutReserve, PutReserve{context, 0xFFFFFFFF, 2}, kBad, "");
  refused(Verb::kPutCommit, PutCommit{context, 0, 1, 7}, kBad, "derive_vectors");
  refused(Verb::kWindowOpen, WindowOpen{context, 0, 0, 0, 9, 0, 0}, kBad, "all 0");
  refused(Verb::kWindowOpen, WindowOpen{context, 4, 4, 4, 11, 0, 0}, kBad, "resident_blocks is 11");
  refused(Verb::kWindowOpen, WindowOpen{context, 0xFFFFFFFF, 0xFFFFFFFF, 2, 0xFFFFFFFF, 0, 0}, kBad,
          "resident_blocks");
  refused(Verb::kWindowOpen, WindowOpen{context, 1U << 30, 0, 0, 1U << 30, 0, 0},
          ErrorCode::kTooLarge, "tables");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 5, 0}, ErrorCode::kUnsupported,
          "cut 5");
  refused(Verb::kChannelOpen, ChannelOpen{0}, ErrorCode::kTooLarge, "argument_area_bytes");
  refused(Verb::kChannelOpen, ChannelOpen{1ULL << 40}, ErrorCode::kTooLarge, "argument_area_bytes");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 3}, kBad, "rank_in");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, NAN}, kBad, "mass is nan");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 1.5F}, kBad, "mass is 1.5");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 0, {1, 1, 1, 1, 1, 1, 1}},
          kBad, "7 head_budgets for a model of");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 0, {}, NAN}, kBad,
          "query_cosine is nan");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 0, {}, 1.5F}, kBad,
          "query_cosine is 1.5");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 0, {}, 0, 2}, kBad,
          "scores is 2");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 0, 0, 0, 0.5F, {}, 0, 1}, kBad,
          "with scores 1 (relative)");
  refused(Verb::kWindowOpen, WindowOpen{context, 1, 0, 0, 1, 1, 0, 0, 0, {}, 0, 1}, kBad,
          "cut is 1 with scores 1 (relative)");
  refused(Verb::kWindowFill, WindowFill{12345, 1, 1, 0, {0}, {0}}, ErrorCode::kUnknownHandle,
          "window 12345");
  refused(Verb::kFlush, Flush{9}, ErrorCode::kUnsupported, "level 9");
  refused(Verb::kFlush, Flush{static_cast<uint8_t>(FlushLevel::kDurable)}, ErrorCode::kUnsupported,
          "");  // no NVMe tier here
  refused(Verb::kStat, Stat{7, 0}, ErrorCode::kUnsupported, "kind 7");
  refused(Verb::kDrop, Drop{context, count + 1}, kBad, "first_sentence");
  refused(Verb::kMemoryUnregister, MemoryUnregister{0}, kBad, "staging");
  refused(Verb::kContextAppend, ContextAppend{context, 7, 0, {}, {1}, {}}, kBad, "first_position");
  ContextAppend too_long;
  too_long.context = context;
  too_long.first_position = 120;
  too_long.tokens.assign(4000, 1);
  refused(Verb::kContextAppend, too_long, ErrorCode::kTooLarge, "sessions.context_tokens");

  // Views that leave their memory, also by wrapping around 64 bits.
  ASSERT_TRUE(engine.reserve(0, count).ok());
  const StridedKv good = engine.view(0);
  for (int field = 0; field < 6; ++field) {
    StridedKv view = good;
    (field == 0   ? view.k_offset
     : field == 1 ? view.v_offset
     : field == 2 ? view.layer_stride
     : field == 3 ? view.head_stride
                  : view.token_stride) = field == 5 ? 1ULL << 40 : ~0ULL - 1000;
    refused(Verb::kPutWrite, PutWrite{context, 0, count, 0, 6, view}, kBad, "");
  }
  StridedKv late = good;
  late.first_token = 1;
  refused(Verb::kPutWrite, PutWrite{context, 0, count, 0, 6, late}, kBad, "first_token");
  refused(Verb::kPutWrite, PutWrite{context, 0, count, 0, 7, good}, kBad, "layers");
  refused(Verb::kPutWrite, PutWrite{context, 0, count, 6, 1, good}, kBad, "layers");
  refused(Verb::kPutWrite, PutWrite{context, 0, count, 0xFFFFFFFF, 2, good}, kBad, "layers");
  StridedKv nowhere = good;
  nowhere.memory = 12345;
  refused(Verb::kPutWrite, PutWrite{context, 0, count, 0, 6, nowhere}, ErrorCode::kUnknownHandle,
          "memory 12345");
  // What is not stored cannot be loaded; what is not reserved is skipped, or said.
  Load load;
  load.context = context;
  load.sentence_count = 1;
  load.layer_count = 6;
  load.destination = good;
  refused(Verb::kLoad, load, ErrorCode::kNotFound, "not stored");
  load.in_place = 2;
  refused(Verb::kLoad, load, kBad, "in_place");
}

TEST_F(ServerTest, LimitsNameThemselvesAndWhatIsUsed) {
  TestEngine engine(120);
  ASSERT_TRUE(engine.open(socket()));
  ASSERT_TRUE(engine.append_all());
  RawClient& client = engine.client();
  const auto over = [&](Verb verb, const auto& message, const std::string& text) {
    const Result<Empty> reply = client.call<Empty>(verb, message);
    ASSERT_FALSE(reply.ok());
    EXPECT_EQ(reply.error().code, ErrorCode::kTooLarge);
    EXPECT_EQ(reply.error().message, text);
  };
  const ContextOpen context{engine.model_id(), 0, 2};
  ASSERT_TRUE(client.call<ContextOpenReply>(Verb::kContextOpen, context).ok());
  ASSERT_TRUE(client.call<ContextOpenReply>(Verb::kContextOpen, context).ok());
  over(Verb::kContextOpen, context, "sessions.contexts: 3 of 3 in use");

  ASSERT_TRUE(engine.open_channel().ok());
  ASSERT_TRUE(engine.open_channel().ok());
  over(Verb::kChannelOpen, ChannelOpen{4096}, "sessions.channels: 2 of 2 in use");
  ASSERT_TRUE(client.call<Empty>(Verb::kChannelClose, ChannelClose{engine.channel_id()}).ok());
  ASSERT_TRUE(engine.open_channel().ok());

  WindowOpen window{0, 2, 1, 1, 8, 0, 0};
  ASSERT_TRUE(engine.open_window(window).ok());
  ASSERT_TRUE(engine.open_window(window).ok());
  window.context = engine.context_id();
  over(Verb::kWindowOpen, window, "sessions.windows: 2 of 2 in use");

  Result<UniqueFd> memory = create_shared_memory("m", 4096);
  ASSERT_TRUE(memory.ok());
  const std::vector<int> fds = {memory.value().get()};
  ASSERT_TRUE(
      client.call<MemoryRegisterReply>(Verb::kMemoryRegister, MemoryRegister{4096}, fds).ok());
  Result<MemoryRegisterReply> third =
      client.call<MemoryRegisterReply>(Verb::kMemoryRegister, MemoryRegister{4096}, fds);
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.error().message, "sessions.memories: 2 of 2 in use");
}

TEST_F(ServerTest, DescriptorsAreCountedAndChecked) {
  RawClient client;
  ASSERT_TRUE(client.open(socket()));
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  // One that the verb does not take.
  Result<Empty> reply = client.call<Empty>(Verb::kStat, Stat{}, {null.get()});
  ASSERT_FALSE(reply.ok());
  EXPECT_THAT(reply.error().message, HasSubstr("stat takes 0 descriptors, 1 came"));
  // None where one is due; not memory; memory that can be truncated; another size.
  reply = client.call<Empty>(Verb::kMemoryRegister, MemoryRegister{4096});
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kInvalidArgument);
  reply = client.call<Empty>(Verb::kMemoryRegister, MemoryRegister{4096}, {null.get()});
  EXPECT_FALSE(reply.ok());
  UniqueFd unsealed(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), 4096), 0);
  reply = client.call<Empty>(Verb::kMemoryRegister, MemoryRegister{4096}, {unsealed.get()});
  EXPECT_FALSE(reply.ok());
  Result<UniqueFd> sealed = create_shared_memory("m", 4096);
  ASSERT_TRUE(sealed.ok());
  for (const uint64_t bytes : {0ULL, 4095ULL, 8192ULL, 1ULL << 60}) {
    reply =
        client.call<Empty>(Verb::kMemoryRegister, MemoryRegister{bytes}, {sealed.value().get()});
    EXPECT_FALSE(reply.ok()) << bytes;
  }
  EXPECT_FALSE(client.stat().is_null());
  // More or fewer than announced: not a frame of the protocol.
  std::vector<uint8_t> frame = encode_request(Verb::kStat, Ticket{5}, Stat{}, 1);
  client.send_bytes(frame);
  EXPECT_TRUE(client.closed_by_daemon());
  RawClient many;
  ASSERT_TRUE(many.open(socket()));
  many.send_bytes(encode_request(Verb::kStat, Ticket{5}, Stat{}), std::vector<int>(12, null.get()));
  EXPECT_TRUE(many.closed_by_daemon());
}

// Goal: a descriptor that only reads is enough to put from, and refused to load into.
TEST_F(ServerTest, ReadOnlyMemoryIsNotWritten) {
  TestEngine engine(120);
  ASSERT_TRUE(engine.open(socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  ASSERT_TRUE(engine.put(0, engine.sentence_count()).ok());
  Result<UniqueFd> memory = create_shared_memory("m", engine.memory().bytes());
  Result<UniqueFd> read_only = reopen_read_only(memory.value().get());
  ASSERT_TRUE(read_only.ok());
  const Result<MemoryRegisterReply> registered = engine.client().call<MemoryRegisterReply>(
      Verb::kMemoryRegister, MemoryRegister{engine.memory().bytes()}, {read_only.value().get()});
  ASSERT_TRUE(registered.ok()) << registered.error().message;
  Load load;
  load.context = engine.context_id();
  load.sentence_count = 1;
  load.layer_count = 6;
  load.destination = engine.view(0);
  load.destination.memory = registered.value().memory;
  const Result<LoadReply> refused = engine.client().call<LoadReply>(Verb::kLoad, load);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kDenied);
}

// Goal: a client that sends and never reads is held back and costs a bounded queue, and others are
// served meanwhile.
TEST_F(ServerTest, FloodsAreBounded) {
  RawClient flood;
  ASSERT_TRUE(flood.open(socket(), "flood"));
  const int flags = ::fcntl(flood.fd(), F_GETFL);
  ASSERT_EQ(::fcntl(flood.fd(), F_SETFL, flags | O_NONBLOCK), 0);
  const std::vector<uint8_t> frame = encode_request(Verb::kStat, Ticket{1}, Stat{});
  uint32_t sent = 0;
  for (int idle = 0; idle < 100;) {
    if (flood.send_bytes(frame)) {
      ++sent;
      idle = 0;
    } else {
      ++idle;
      ::poll(nullptr, 0, 2);
    }
    ASSERT_LT(sent, 200'000U) << "nothing holds the client back";
  }
  RawClient other;
  ASSERT_TRUE(other.open(socket()));
  EXPECT_FALSE(other.stat().is_null());
  // It reads again: every request that was taken is answered.
  for (uint32_t i = 0; i < sent; ++i) {
    const Result<Frame> reply = flood.receive();
    ASSERT_TRUE(reply.ok()) << i << " of " << sent << ": " << reply.error().message;
  }
}

// Goal: requests that wait (a reservation for room) count; beyond the limit the next is refused.
TEST_F(ServerTest, RequestsInFlightHaveALimit) {
  TestEngine engine(4000);
  ASSERT_FALSE(engine.open(socket())) << "its memory is above sessions.memory";
  EXPECT_FALSE(engine.client().stat().is_null());
  RawClient& client = engine.client();
  std::vector<uint64_t> tickets;
  for (int i = 0; i < 64; ++i) {
    tickets.push_back(client.post(Verb::kChannelOpen, ChannelOpen{4096}));
  }
  uint32_t opened = 0;
  for (const uint64_t ticket : tickets) {
    const Result<ChannelOpenReply> reply = client.answer<ChannelOpenReply>(ticket);
    opened += reply.ok() ? 1U : 0U;
    if (!reply.ok()) {
      EXPECT_THAT(reply.error().message, testing::AnyOf(testing::StartsWith("sessions.channels"),
                                                        testing::StartsWith("sessions.requests")));
    }
  }
  EXPECT_EQ(opened, 2U);
}

TEST_F(ServerTest, MatchIsPendingWhileAnotherPuts) {
  TestEngine writer(120, /*seed=*/77);
  TestEngine reader(120, /*seed=*/77);
  ASSERT_TRUE(writer.open(socket()));
  ASSERT_TRUE(reader.open(socket()));
  ASSERT_TRUE(writer.append_all());
  ASSERT_TRUE(reader.append_all());
  writer.compute();
  const uint32_t count = writer.sentence_count();
  ASSERT_TRUE(writer.reserve(0, count).ok());
  Result<MatchReply> match = reader.match(false);
  ASSERT_TRUE(match.ok());
  EXPECT_EQ(match.value().outcome, static_cast<uint8_t>(MatchOutcome::kPending));
  EXPECT_EQ(match.value().pending_tokens, writer.end_token(count - 1));
  const Result<PutOutcomes> pending = reader.reserve(0, count);
  ASSERT_TRUE(pending.ok());
  EXPECT_THAT(pending.value().outcomes, testing::Each(static_cast<uint8_t>(PutOutcome::kPending)));
  // Not all layers: incomplete. A foreign commit: not reserved.
  ASSERT_TRUE(writer.write(0, count, {0, 4}).ok());
  const Result<PutOutcomes> incomplete = writer.commit(0, count);
  ASSERT_TRUE(incomplete.ok());
  EXPECT_THAT(incomplete.value().outcomes,
              testing::Each(static_cast<uint8_t>(PutOutcome::kIncomplete)));
  const Result<PutOutcomes> foreign = reader.commit(0, count);
  ASSERT_TRUE(foreign.ok());
  EXPECT_THAT(foreign.value().outcomes,
              testing::Each(static_cast<uint8_t>(PutOutcome::kNotReserved)));
  // The writer leaves without committing: what it reserved is free again.
  writer.client().close();
  for (int i = 0; i < 1000; ++i) {
    match = reader.match(false);
    ASSERT_TRUE(match.ok());
    if (match.value().outcome == static_cast<uint8_t>(MatchOutcome::kMiss)) {
      break;
    }
    ::poll(nullptr, 0, 5);
  }
  EXPECT_EQ(match.value().outcome, static_cast<uint8_t>(MatchOutcome::kMiss));
  reader.compute();
  const Result<PutOutcomes> put = reader.put(0, count);
  ASSERT_TRUE(put.ok());
  EXPECT_THAT(put.value().outcomes, testing::Each(static_cast<uint8_t>(PutOutcome::kCommitted)));
}

// Goal: closing a context closes its windows and cancels its puts.
TEST_F(ServerTest, ContextCloseTakesAllWithIt) {
  TestEngine engine(120, /*seed=*/5);
  ASSERT_TRUE(engine.open(socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  ASSERT_TRUE(engine.put(0, 1).ok());
  ASSERT_TRUE(engine.reserve(1, 1).ok());
  ASSERT_TRUE(engine.open_window({0, 2, 1, 1, 8, 0, 0}).ok());
  ASSERT_TRUE(
      engine.client().call<Empty>(Verb::kContextClose, ContextClose{engine.context_id()}).ok());
  const nlohmann::json session = engine.client().stat(StatKind::kSession);
  EXPECT_EQ(session["windows"], 0);
  EXPECT_EQ(session["puts"], 0);
  EXPECT_EQ(session["contexts"], 0);
  EXPECT_EQ(session["sentence_leases"], 0);
  EXPECT_EQ(session["feeds"], 0);
}

}  // namespace
}  // namespace skv::test
