#include "ipc/channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <thread>
#include <utility>

namespace skv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Ends {
  DaemonChannel daemon;
  ClientChannel client;
};

Ends open_channel(uint64_t query_bytes = 4096) {
  ChannelParts parts;
  Result<DaemonChannel> daemon = DaemonChannel::create(query_bytes, parts);
  return {std::move(daemon).value(), ClientChannel::attach(std::move(parts)).value()};
}

SubmissionEntry submission(uint64_t ticket) {
  SubmissionEntry entry{};
  entry.ticket = ticket;
  entry.verb = static_cast<uint32_t>(ChannelVerb::kPrefetch);
  return entry;
}
CompletionEntry completion(uint64_t ticket) {
  CompletionEntry entry{};
  entry.ticket = ticket;
  return entry;
}

// A client that maps the memory itself and writes what it likes.
struct HostileClient {
  explicit HostileClient(const ChannelParts& parts)
      : memory(MappedMemory::map(parts.memory.get(), parts.bytes, MappedMemory::Access::kReadWrite)
                   .value()),
        header(*std::launder(reinterpret_cast<ChannelHeader*>(memory.data()))) {}
  MappedMemory memory;
  ChannelHeader& header;
};

TEST(Channel, SubmissionAndCompletionCross) {
  Ends ends = open_channel();
  const std::vector<float> query{1.0F, -2.5F, 3.25F};
  std::memcpy(ends.client.argument_area().data() + 64, query.data(), 12);
  SubmissionEntry sent = submission(7);
  sent.argument_offset = 64;
  sent.argument_bytes = 12;
  ASSERT_TRUE(ends.client.submit(sent).value());

  const std::optional<SubmissionEntry> got = ends.daemon.next().value();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(got->ticket, 7U);
  std::vector<float> copied(3);
  ASSERT_TRUE(ends.daemon.check_argument(*got).ok());
  ends.daemon.copy_argument(*got, 0, std::as_writable_bytes(std::span(copied)));
  EXPECT_EQ(copied, query);
  const std::vector<float> answer{4.0F, 5.0F, 6.0F};
  ends.daemon.write_argument(*got, std::as_bytes(std::span(answer)));
  ASSERT_TRUE(ends.daemon.complete(completion(7)).ok());
  EXPECT_EQ(std::memcmp(ends.client.argument_area().data() + 64, answer.data(), 12), 0);
  EXPECT_EQ(ends.client.next_completion().value()->ticket, 7U);
  EXPECT_FALSE(ends.client.next_completion().value().has_value());
  EXPECT_EQ(ends.client.in_flight(), 0U);
  EXPECT_EQ(ends.daemon.in_flight(), 0U);
}

TEST(Channel, ClientHoldsAtMostOneRingInFlight) {
  Ends ends = open_channel();
  for (uint64_t i = 0; i < kChannelEntries; ++i)
    ASSERT_TRUE(ends.client.submit(submission(i)).value());
  EXPECT_FALSE(ends.client.submit(submission(99)).value());
  for (uint64_t i = 0; i < kChannelEntries; ++i) {
    ASSERT_TRUE(ends.daemon.next().value().has_value());
    ASSERT_TRUE(ends.daemon.complete(completion(i)).ok());
  }
  EXPECT_FALSE(ends.client.submit(submission(99)).value()) << "completions are not taken yet";
  ASSERT_TRUE(ends.client.next_completion().value().has_value());
  EXPECT_TRUE(ends.client.submit(submission(99)).value());
}

// Goal: a client that never takes completions stops being served, and costs nothing else.
TEST(Channel, NoRoomForACompletionStopsTaking) {
  ChannelParts parts;
  DaemonChannel daemon = std::move(DaemonChannel::create(4096, parts)).value();
  HostileClient client(parts);
  client.header.submission_tail = kChannelEntries;
  for (uint32_t i = 0; i < kChannelEntries; ++i) {
    ASSERT_TRUE(daemon.next().value().has_value());
    ASSERT_TRUE(daemon.complete(completion(i)).ok());
  }
  client.header.submission_tail = 2 * kChannelEntries;
  EXPECT_FALSE(daemon.next().value().has_value());
  EXPECT_TRUE(daemon.prepare_sleep().value()) << "it must not keep the daemon awake";
  daemon.awake();
  client.header.completion_head = 1;
  EXPECT_FALSE(daemon.prepare_sleep().value());
  daemon.awake();
  EXPECT_TRUE(daemon.next().value().has_value());
  EXPECT_FALSE(daemon.next().value().has_value());
}

TEST(Channel, ImpossibleIndicesAreProtocolErrors) {
  {
    ChannelParts parts;
    DaemonChannel daemon = std::move(DaemonChannel::create(4096, parts)).value();
    HostileClient client(parts);
    client.header.submission_tail = kChannelEntries + 1;
    EXPECT_EQ(daemon.next().error().code, ErrorCode::kProtocol);
    EXPECT_EQ(daemon.prepare_sleep().error().code, ErrorCode::kProtocol);
  }
  {
    ChannelParts parts;
    DaemonChannel daemon = std::move(DaemonChannel::create(4096, parts)).value();
    HostileClient client(parts);
    client.header.submission_tail = 1;
    client.header.completion_head = 5;
    EXPECT_EQ(daemon.next().error().code, ErrorCode::kProtocol);
  }
}

// Goal: rule 1. Nothing that the client writes into the header changes what the daemon does.
TEST(Channel, GeometryIsNotReadBack) {
  ChannelParts parts;
  DaemonChannel daemon = std::move(DaemonChannel::create(4096, parts)).value();
  HostileClient client(parts);
  client.header.argument_area_offset = ~uint64_t{0};
  client.header.argument_area_bytes = ~uint64_t{0};
  client.header.magic = 0;
  client.header.submission_head = 1234;
  client.header.completion_tail = 4321;
  client.header.submission_tail = 1;
  const std::optional<SubmissionEntry> got = daemon.next().value();
  ASSERT_TRUE(got.has_value());
  SubmissionEntry entry = *got;
  entry.argument_offset = 4096;
  entry.argument_bytes = 4;
  EXPECT_EQ(daemon.check_argument(entry).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(daemon.complete(completion(0)).ok());
  EXPECT_EQ(client.header.completion_tail, 1U);
}

TEST(Channel, ArgumentsOutsideTheirAreaAreRefused) {
  Ends ends = open_channel(1);  // rounded up to one page
  EXPECT_EQ(ends.client.argument_area().size(), 4096U);
  const auto inside = [&](uint32_t offset, uint32_t bytes, uint32_t reply_bytes = 0) {
    SubmissionEntry entry = submission(1);
    entry.argument_offset = offset;
    entry.argument_bytes = bytes;
    entry.reply_bytes_max = reply_bytes;
    return ends.daemon.check_argument(entry).ok();
  };
  EXPECT_TRUE(inside(0, 4096));
  EXPECT_TRUE(inside(4088, 8));
  EXPECT_TRUE(inside(0, 0));
  EXPECT_TRUE(inside(0, 7, 4096));
  EXPECT_FALSE(inside(4096, 4));
  EXPECT_FALSE(inside(8, 4096));
  EXPECT_FALSE(inside(4, 4));
  EXPECT_FALSE(inside(8, 8, 4096));
  EXPECT_FALSE(inside(0xFFFFFFF8U, 16));  // the sum wraps in 32 bits
  EXPECT_FALSE(inside(8, 0xFFFFFFFCU));
  EXPECT_FALSE(inside(8, 8, 0xFFFFFFFCU));
}

TEST(Channel, SizesAreLimited) {
  ChannelParts parts;
  EXPECT_EQ(DaemonChannel::create(0, parts).error().code, ErrorCode::kTooLarge);
  EXPECT_EQ(DaemonChannel::create(kArgumentAreaBytesMax + 1, parts).error().code,
            ErrorCode::kTooLarge);
}

TEST(Channel, AttachRefusesWhatIsNoChannel) {
  ChannelParts parts;
  ASSERT_TRUE(DaemonChannel::create(4096, parts).ok());
  ChannelParts wrong;
  wrong.memory = create_shared_memory("other", 16384).value();
  wrong.bytes = 16384;
  wrong.argument_area_offset = kArgumentAreaOffset;
  EXPECT_EQ(ClientChannel::attach(std::move(wrong)).error().code, ErrorCode::kUnsupported);
  parts.bytes += 4096;  // more than the memory has
  EXPECT_FALSE(ClientChannel::attach(std::move(parts)).ok());
}

// Goal: whatever a client does with the doorbells it holds, the daemon's calls return.
// Method: clear O_NONBLOCK of all, fill the eventfd, never drain the pipe, then close both.
TEST(Channel, ClientCannotBlockTheDaemonByItsDoorbells) {
  ChannelParts parts;
  DaemonChannel daemon = std::move(DaemonChannel::create(4096, parts)).value();
  HostileClient client(parts);
  ASSERT_EQ(::fcntl(parts.daemon_doorbell.get(), F_SETFL, 0), 0);
  ASSERT_EQ(::fcntl(parts.client_doorbell.get(), F_SETFL, 0), 0);
  daemon.awake();
  daemon.drain();  // reads an empty eventfd
  const uint64_t almost_full = ~uint64_t{0} - 1;
  ASSERT_EQ(::write(parts.daemon_doorbell.get(), &almost_full, 8), 8);
  daemon.awake();
  client.header.client_sleeps = 1;
  for (uint32_t i = 0; i < 3 * 65536 / 8; ++i) {  // 3 pipes' worth of rings
    client.header.submission_tail = i + 1;
    ASSERT_TRUE(daemon.next().value().has_value());
    ASSERT_TRUE(daemon.complete(completion(i)).ok());
    client.header.completion_head = i + 1;
  }
  parts.client_doorbell.reset();  // no SIGPIPE either
  client.header.submission_tail = client.header.submission_tail + 1;
  ASSERT_TRUE(daemon.next().value().has_value());
  ASSERT_TRUE(daemon.complete(completion(0)).ok());
}

TEST(Channel, WaitTellsWhatHappened) {
  Ends ends = open_channel();
  EXPECT_EQ(ends.client.wait(milliseconds(1), -1).value(), ChannelWait::kTimeout);
  int ends_of_pipe[2];
  ASSERT_EQ(::pipe(ends_of_pipe), 0);
  UniqueFd reader(ends_of_pipe[0]);
  UniqueFd writer(ends_of_pipe[1]);
  writer.reset();  // hung up, as when the daemon died
  EXPECT_EQ(ends.client.wait(seconds(60), reader.get()).value(), ChannelWait::kSocket);
  ASSERT_TRUE(ends.client.submit(submission(1)).value());
  ASSERT_TRUE(ends.daemon.next().value().has_value());
  ASSERT_TRUE(ends.daemon.complete(completion(1)).ok());
  EXPECT_EQ(ends.client.wait(seconds(60), reader.get()).value(), ChannelWait::kReady);
}

TEST(Channel, TwoThreadsSleepAndWake) {
  Ends ends = open_channel();
  constexpr uint64_t kCalls = 2000;
  std::thread daemon([&] {
    for (uint64_t served = 0; served < kCalls;) {
      const std::optional<SubmissionEntry> got = ends.daemon.next().value();
      if (got) {
        float query = 0.0F;
        ASSERT_TRUE(ends.daemon.check_argument(*got).ok());
        ends.daemon.copy_argument(*got, 0, std::as_writable_bytes(std::span(&query, 1)));
        CompletionEntry answer = completion(got->ticket);
        answer.taken_ns = static_cast<uint64_t>(query);
        ASSERT_TRUE(ends.daemon.complete(answer).ok());
        ++served;
        continue;
      }
      if (ends.daemon.prepare_sleep().value()) {
        pollfd watched{ends.daemon.doorbell_fd(), POLLIN, 0};
        ::poll(&watched, 1, -1);
      }
      ends.daemon.awake();
      ends.daemon.drain();
    }
  });
  for (uint64_t i = 0; i < kCalls; ++i) {
    const auto value = static_cast<float>(i);
    std::memcpy(ends.client.argument_area().data(), &value, 4);
    SubmissionEntry entry = submission(i);
    entry.argument_bytes = 4;
    ASSERT_TRUE(ends.client.submit(entry).value());
    ASSERT_EQ(ends.client.wait(seconds(60), -1, std::chrono::microseconds(i % 3)).value(),
              ChannelWait::kReady);
    const std::optional<CompletionEntry> got = ends.client.next_completion().value();
    ASSERT_TRUE(got.has_value());
    ASSERT_EQ(got->ticket, i);
    ASSERT_EQ(got->taken_ns, i);
  }
  daemon.join();
}

}  // namespace
}  // namespace skv
