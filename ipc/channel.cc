#include "ipc/channel.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <new>
#include <string>
#include <utility>

#include "ipc/layout/body_layout.h"
#include "ipc/os_error.h"

namespace skv {
namespace {

constexpr std::chrono::hours kWaitMax{24};  // so that no sum of times overflows

RingMemory<SubmissionEntry> submission_memory(std::byte* base, ChannelHeader& header) {
  return {&header.submission_tail, &header.submission_head, base + kSubmissionsOffset,
          kChannelEntries};
}
RingMemory<CompletionEntry> completion_memory(std::byte* base, ChannelHeader& header) {
  return {&header.completion_tail, &header.completion_head, base + kCompletionsOffset,
          kChannelEntries};
}

ChannelHeader& header_of(const MappedMemory& memory) {
  return *std::launder(reinterpret_cast<ChannelHeader*>(memory.data()));
}

Result<UniqueFd> duplicate(const UniqueFd& fd) {
  UniqueFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return os_error("dup of a doorbell");
  return copy;
}

}  // namespace

Result<DaemonChannel> DaemonChannel::create(uint64_t query_area_bytes, ChannelParts& parts) {
  if (query_area_bytes == 0 || query_area_bytes > kQueryAreaBytesMax) {
    return Error{ErrorCode::kTooLarge, "query_area_bytes is " + std::to_string(query_area_bytes) +
                                           ", allowed are 1 to " +
                                           std::to_string(kQueryAreaBytesMax)};
  }
  DaemonChannel channel;
  channel.query_area_bytes_ = (query_area_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uint64_t bytes = kQueryAreaOffset + channel.query_area_bytes_;

  Result<UniqueFd> memory = create_shared_memory("skv-channel", bytes);
  if (!memory.ok()) return memory.error();
  Result<MappedMemory> mapped =
      MappedMemory::map(memory.value().get(), bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) return mapped.error();
  Result<UniqueFd> daemon_doorbell = create_event_doorbell();
  if (!daemon_doorbell.ok()) return daemon_doorbell.error();
  Result<PipeDoorbell> client_doorbell = create_pipe_doorbell();
  if (!client_doorbell.ok()) return client_doorbell.error();
  Result<UniqueFd> sent_daemon_doorbell = duplicate(daemon_doorbell.value());
  if (!sent_daemon_doorbell.ok()) return sent_daemon_doorbell.error();
  Result<UniqueFd> sent_client_doorbell = duplicate(client_doorbell.value().sleeper_end);
  if (!sent_client_doorbell.ok()) return sent_client_doorbell.error();

  channel.memory_ = std::move(mapped).value();
  channel.daemon_doorbell_ = std::move(daemon_doorbell).value();
  channel.client_doorbell_ = std::move(client_doorbell).value();
  std::byte* base = channel.memory_.data();
  auto* header = new (base) ChannelHeader{};
  header->magic = kChannelMagic;
  header->version = kChannelVersion;
  header->query_area_offset = kQueryAreaOffset;
  header->query_area_bytes = channel.query_area_bytes_;
  channel.submissions_ = RingConsumer<SubmissionEntry>(submission_memory(base, *header));
  channel.completions_ = RingProducer<CompletionEntry>(completion_memory(base, *header));

  parts.memory = std::move(memory).value();
  parts.daemon_doorbell = std::move(sent_daemon_doorbell).value();
  parts.client_doorbell = std::move(sent_client_doorbell).value();
  parts.bytes = bytes;
  parts.query_area_offset = kQueryAreaOffset;
  return channel;
}

ChannelHeader& DaemonChannel::header() const { return header_of(memory_); }

Result<std::optional<SubmissionEntry>> DaemonChannel::next() {
  const Result<uint32_t> room = completions_.room();
  if (!room.ok()) return room.error();
  if (room.value() <= in_flight_) return std::optional<SubmissionEntry>();
  Result<std::optional<SubmissionEntry>> entry = submissions_.pop();
  if (entry.ok() && entry.value().has_value()) ++in_flight_;
  return entry;
}

Result<void> DaemonChannel::complete(const CompletionEntry& completion) {
  SKV_CHECK(in_flight_ > 0, "a completion without a submission");
  const Result<bool> pushed = completions_.push(completion);
  if (!pushed.ok()) return pushed.error();
  if (!pushed.value()) {
    // There was room when the entry was taken, and only the client moves that index.
    return Error{ErrorCode::kProtocol, "the client moved its completion head backwards"};
  }
  --in_flight_;
  ring_if_asleep(header().client_sleeps, client_doorbell_.ringer_end.get());
  return {};
}

Result<void> DaemonChannel::copy_query(const SubmissionEntry& entry, std::vector<float>& to) const {
  const uint64_t end = static_cast<uint64_t>(entry.query_offset) + entry.query_bytes;
  if (end > query_area_bytes_) {
    return Error{ErrorCode::kInvalidArgument, "query_offset + query_bytes is " +
                                                  std::to_string(end) + ", the query area has " +
                                                  std::to_string(query_area_bytes_) + " bytes"};
  }
  if (entry.query_offset % sizeof(float) != 0 || entry.query_bytes % sizeof(float) != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 "query_offset and query_bytes must be multiples of 4"};
  }
  to.resize(entry.query_bytes / sizeof(float));
  if (!to.empty()) {
    std::memcpy(to.data(), memory_.data() + kQueryAreaOffset + entry.query_offset,
                entry.query_bytes);
  }
  return {};
}

Result<bool> DaemonChannel::prepare_sleep() {
  announce_sleep(header().daemon_sleeps);
  const Result<uint32_t> available = submissions_.available();
  if (!available.ok()) return available.error();
  if (available.value() == 0) return true;
  const Result<uint32_t> room = completions_.room();
  if (!room.ok()) return room.error();
  // What cannot be taken for lack of room is no reason to stay awake.
  return room.value() <= in_flight_;
}

void DaemonChannel::awake() {
  announce_awake(header().daemon_sleeps);
  drain_doorbell(daemon_doorbell_.get());
}

Result<ClientChannel> ClientChannel::attach(ChannelParts parts) {
  if (parts.query_area_offset < kQueryAreaOffset || parts.bytes <= parts.query_area_offset) {
    return Error{ErrorCode::kProtocol, "a channel of " + std::to_string(parts.bytes) +
                                           " bytes with its query area at " +
                                           std::to_string(parts.query_area_offset)};
  }
  Result<MappedMemory> mapped =
      MappedMemory::map(parts.memory.get(), parts.bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) return mapped.error();
  ClientChannel channel;
  channel.memory_ = std::move(mapped).value();
  channel.query_area_offset_ = parts.query_area_offset;
  ChannelHeader& header = channel.header();
  if (header.magic != kChannelMagic || header.version != kChannelVersion) {
    return Error{ErrorCode::kUnsupported,
                 "the channel has version " + std::to_string(header.version) +
                     ", this client knows " + std::to_string(kChannelVersion)};
  }
  std::byte* base = channel.memory_.data();
  channel.daemon_doorbell_ = std::move(parts.daemon_doorbell);
  channel.client_doorbell_ = std::move(parts.client_doorbell);
  channel.submissions_ = RingProducer<SubmissionEntry>(submission_memory(base, header));
  channel.completions_ = RingConsumer<CompletionEntry>(completion_memory(base, header));
  return channel;
}

ChannelHeader& ClientChannel::header() const { return header_of(memory_); }

std::span<std::byte> ClientChannel::query_area() const {
  return memory_.span().subspan(query_area_offset_);
}

Result<bool> ClientChannel::submit(const SubmissionEntry& entry) {
  if (in_flight_ >= kChannelEntries) return false;
  Result<bool> pushed = submissions_.push(entry);
  if (!pushed.ok() || !pushed.value()) return pushed;
  ++in_flight_;
  ring_if_asleep(header().daemon_sleeps, daemon_doorbell_.get());
  return true;
}

Result<std::optional<CompletionEntry>> ClientChannel::next_completion() {
  Result<std::optional<CompletionEntry>> entry = completions_.pop();
  if (entry.ok() && entry.value().has_value() && in_flight_ > 0) --in_flight_;
  return entry;
}

Result<ChannelWait> ClientChannel::wait(std::chrono::nanoseconds timeout,
                                        int socket,
                                        std::chrono::nanoseconds spin) {
  using Clock = std::chrono::steady_clock;
  timeout = std::clamp<std::chrono::nanoseconds>(timeout, std::chrono::nanoseconds{0}, kWaitMax);
  const Clock::time_point start = Clock::now();
  const Clock::time_point deadline = start + timeout;
  do {
    const Result<uint32_t> ready = completions_.available();
    if (!ready.ok()) return ready.error();
    if (ready.value() > 0) return ChannelWait::kReady;
  } while (Clock::now() - start < std::min(spin, timeout));

  ChannelWait outcome = ChannelWait::kTimeout;
  announce_sleep(header().client_sleeps);
  for (;;) {
    const Result<uint32_t> ready = completions_.available();
    if (!ready.ok()) {
      announce_awake(header().client_sleeps);
      return ready.error();
    }
    if (ready.value() > 0) {
      outcome = ChannelWait::kReady;
      break;
    }
    if (outcome == ChannelWait::kSocket) break;
    const auto left = std::max(deadline - Clock::now(), Clock::duration::zero());
    if (left == Clock::duration::zero()) break;
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec limit{static_cast<time_t>(seconds.count()),
                         static_cast<long>(std::chrono::nanoseconds(left - seconds).count())};
    std::array<pollfd, 2> watched{pollfd{client_doorbell_.get(), POLLIN, 0},
                                  pollfd{socket, POLLIN, 0}};
    const int woken = ::ppoll(watched.data(), watched.size(), &limit, nullptr);
    if (woken < 0 && errno != EINTR) {
      const Error failed = os_error("poll of a channel");
      announce_awake(header().client_sleeps);
      return failed;
    }
    if (woken > 0 && watched[0].revents != 0) drain_doorbell(client_doorbell_.get());
    // The ring is looked at once more first: a completion beats news of the socket.
    if (woken > 0 && watched[1].revents != 0) outcome = ChannelWait::kSocket;
  }
  announce_awake(header().client_sleeps);
  return outcome;
}

}  // namespace skv
