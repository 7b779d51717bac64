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
#include "ipc/spin.h"

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

Result<DaemonChannel> DaemonChannel::create(uint64_t argument_area_bytes, ChannelParts& parts) {
  if (argument_area_bytes == 0 || argument_area_bytes > kArgumentAreaBytesMax) {
    return Error{ErrorCode::kTooLarge,
                 "argument_area_bytes is " + std::to_string(argument_area_bytes) +
                     ", allowed are 1 to " + std::to_string(kArgumentAreaBytesMax)};
  }
  DaemonChannel channel;
  channel.argument_area_bytes_ = (argument_area_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uint64_t bytes = kArgumentAreaOffset + channel.argument_area_bytes_;

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
  header->argument_area_offset = kArgumentAreaOffset;
  header->argument_area_bytes = channel.argument_area_bytes_;
  channel.submissions_ = RingConsumer<SubmissionEntry>(submission_memory(base, *header));
  channel.completions_ = RingProducer<CompletionEntry>(completion_memory(base, *header));

  parts.memory = std::move(memory).value();
  parts.daemon_doorbell = std::move(sent_daemon_doorbell).value();
  parts.client_doorbell = std::move(sent_client_doorbell).value();
  parts.bytes = bytes;
  parts.argument_area_offset = kArgumentAreaOffset;
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

Result<void> DaemonChannel::check_argument(const SubmissionEntry& entry) const {
  const uint64_t end =
      uint64_t{entry.argument_offset} + std::max(entry.argument_bytes, entry.reply_bytes_max);
  if (end > argument_area_bytes_) {
    return Error{ErrorCode::kInvalidArgument, "the argument ends at " + std::to_string(end) +
                                                  ", the argument area has " +
                                                  std::to_string(argument_area_bytes_) + " bytes"};
  }
  if (entry.argument_offset % sizeof(uint64_t) != 0) {
    return Error{ErrorCode::kInvalidArgument, "argument_offset must be a multiple of 8"};
  }
  return {};
}

void DaemonChannel::copy_argument(const SubmissionEntry& entry,
                                  uint32_t offset,
                                  std::span<std::byte> to) const {
  SKV_CHECK(uint64_t{offset} + to.size() <= entry.argument_bytes, "a copy inside the argument");
  if (to.empty()) return;
  std::memcpy(to.data(), memory_.data() + kArgumentAreaOffset + entry.argument_offset + offset,
              to.size());
}

void DaemonChannel::write_argument(const SubmissionEntry& entry, std::span<const std::byte> from) {
  SKV_CHECK(from.size() <= std::max(entry.argument_bytes, entry.reply_bytes_max),
            "an answer fits the place of its argument");
  if (from.empty()) return;
  std::memcpy(memory_.data() + kArgumentAreaOffset + entry.argument_offset, from.data(),
              from.size());
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

void DaemonChannel::awake() { announce_awake(header().daemon_sleeps); }

bool DaemonChannel::ready() {
  const Result<uint32_t> available = submissions_.available();
  if (!available.ok()) return true;
  if (available.value() == 0) return false;
  const Result<uint32_t> room = completions_.room();
  return !room.ok() || room.value() > in_flight_;
}

Result<ClientChannel> ClientChannel::attach(ChannelParts parts) {
  if (parts.argument_area_offset < kArgumentAreaOffset ||
      parts.bytes <= parts.argument_area_offset) {
    return Error{ErrorCode::kProtocol, "a channel of " + std::to_string(parts.bytes) +
                                           " bytes with its argument area at " +
                                           std::to_string(parts.argument_area_offset)};
  }
  Result<MappedMemory> mapped =
      MappedMemory::map(parts.memory.get(), parts.bytes, MappedMemory::Access::kReadWrite);
  if (!mapped.ok()) return mapped.error();
  ClientChannel channel;
  channel.memory_ = std::move(mapped).value();
  channel.argument_area_offset_ = parts.argument_area_offset;
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

std::span<std::byte> ClientChannel::argument_area() const {
  return memory_.span().subspan(argument_area_offset_);
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
  for (;;) {
    const Result<uint32_t> ready = completions_.available();
    if (!ready.ok()) return ready.error();
    if (ready.value() > 0) return ChannelWait::kReady;
    if (spin <= spin.zero() || Clock::now() - start >= std::min(spin, timeout)) break;
    spin_pause();
  }

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
