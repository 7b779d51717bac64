#include "client/channel.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "client/abi.h"

namespace skv::client {
namespace {

constexpr uint64_t kPlaceAlign = 64;
// A glance before sleeping, where the cores are not scarce (engines, daemon and the system want
// one each).
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr int kSpinCoresMin = 6;

std::chrono::nanoseconds spin_time() {
  static const std::chrono::nanoseconds spin = [] {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    const bool known = ::sched_getaffinity(0, sizeof cores, &cores) == 0;
    return known && CPU_COUNT(&cores) >= kSpinCoresMin ? std::chrono::nanoseconds(kSpin)
                                                       : std::chrono::nanoseconds(0);
  }();
  return spin;
}

// By serial of the connection. Destroyed when the thread exits.
struct Channels {
  std::vector<std::pair<std::shared_ptr<Connection>, std::unique_ptr<ThreadChannel>>> items;
};
thread_local Channels channels;  // NOLINT: one per thread is the point

}  // namespace

ThreadChannel::ThreadChannel(std::shared_ptr<Connection> connection,
                             ClientChannel rings,
                             uint32_t id)
    : connection_(std::move(connection)), rings_(std::move(rings)), id_(id) {}

ThreadChannel::~ThreadChannel() {
  if (!connection_->in_own_process()) return;  // a forked child: the parent's channel lives on
  connection_->give_back_channel();
  if (connection_->alive()) connection_->post(Verb::kChannelClose, ChannelClose{id_});
}

Result<ThreadChannel*> ThreadChannel::of_this_thread(const std::shared_ptr<Connection>& connection,
                                                     uint64_t query_bytes,
                                                     Deadline deadline) {
  const uint64_t place = (query_bytes + kPlaceAlign - 1) / kPlaceAlign * kPlaceAlign;
  std::erase_if(channels.items, [&](const auto& item) {
    if (!item.first->alive()) return true;
    return item.first == connection && item.second->place_bytes_ < place;
  });
  for (const auto& item : channels.items) {
    if (item.first == connection) return item.second.get();
  }
  SKV_TRY(opened, open(connection, place, deadline));
  channels.items.emplace_back(connection, std::move(opened));
  return channels.items.back().second.get();
}

Result<std::unique_ptr<ThreadChannel>> ThreadChannel::open(
    const std::shared_ptr<Connection>& connection, uint64_t place_bytes, Deadline deadline) {
  if (!connection->take_channel()) {
    return Error{ErrorCode::kTooLarge,
                 std::to_string(kThreadChannelsMax) +
                     " threads of this session prefetch already, the limit is " +
                     std::to_string(kThreadChannelsMax) +
                     ": a thread gives its channel back when it exits"};
  }
  std::vector<UniqueFd> fds;
  Result<ChannelOpenReply> reply = connection->call<ChannelOpenReply>(
      Verb::kChannelOpen, ChannelOpen{place_bytes * kPlaces}, deadline, {}, &fds);
  if (!reply.ok()) {
    connection->give_back_channel();
    return reply.error();
  }
  Result<ClientChannel> rings = Error{ErrorCode::kProtocol, "a channel needs 3 descriptors"};
  if (fds.size() == 3) {
    rings =
        ClientChannel::attach(ChannelParts{std::move(fds[0]), std::move(fds[1]), std::move(fds[2]),
                                           reply.value().bytes, reply.value().query_area_offset});
  }
  if (rings.ok() && rings.value().query_area().size() < place_bytes * kPlaces) {
    rings = Error{ErrorCode::kProtocol, "the query area is smaller than asked for"};
  }
  if (!rings.ok()) {
    connection->give_back_channel();
    connection->end(rings.error());
    return rings.error();
  }
  std::unique_ptr<ThreadChannel> channel(
      new ThreadChannel(connection, std::move(rings).value(), reply.value().channel));
  channel->place_bytes_ = place_bytes;
  return channel;
}

// The next completion, whichever it is; the place of its query is free again.
Result<CompletionEntry> ThreadChannel::next(Deadline deadline) {
  for (;;) {
    Result<std::optional<CompletionEntry>> completion = rings_.next_completion();
    if (!completion.ok()) {
      connection_->end(completion.error());
      return completion.error();
    }
    if (completion.value()) {
      const CompletionEntry entry = *completion.value();
      std::replace(ticket_at_.begin(), ticket_at_.end(), entry.ticket, uint64_t{0});
      return entry;
    }
    if (!connection_->alive()) {
      return Error{ErrorCode::kDisconnected, "the daemon went away during a prefetch"};
    }
    SKV_TRY(woken, rings_.wait(deadline - Clock::now(), connection_->socket(), spin_time()));
    if (woken == ChannelWait::kSocket) connection_->take_arrived();
    if (woken == ChannelWait::kTimeout && Clock::now() >= deadline) {
      return Error{ErrorCode::kTimeout, "the prefetch was not answered in time"};
    }
  }
}

Result<CompletionEntry> ThreadChannel::prefetch(SubmissionEntry entry,
                                                std::span<const std::byte> query,
                                                Deadline deadline) {
  auto place = std::find(ticket_at_.begin(), ticket_at_.end(), uint64_t{0});
  while (place == ticket_at_.end()) {
    SKV_CHECK_OK(next(deadline));
    place = std::find(ticket_at_.begin(), ticket_at_.end(), uint64_t{0});
  }
  entry.ticket = next_ticket_++;
  entry.query_offset =
      static_cast<uint32_t>(static_cast<uint64_t>(place - ticket_at_.begin()) * place_bytes_);
  entry.query_bytes = static_cast<uint32_t>(query.size());
  std::memcpy(rings_.query_area().data() + entry.query_offset, query.data(), query.size());
  Result<bool> taken = rings_.submit(entry);
  if (!taken.ok()) {
    connection_->end(taken.error());
    return taken.error();
  }
  if (!taken.value()) return Error{ErrorCode::kBusy, "the submission ring is full"};
  *place = entry.ticket;
  for (;;) {
    SKV_TRY(completion, next(deadline));
    if (completion.ticket == entry.ticket) return completion;
  }
}

}  // namespace skv::client
