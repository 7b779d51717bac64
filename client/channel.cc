#include "client/channel.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "client/abi.h"
#include "ipc/codec.h"

namespace skv::client {
namespace {

constexpr uint64_t kPlaceAlign = 64;
// Unless the session says otherwise: a glance before sleeping, where the cores are not scarce
// (engines, daemon and the system want one each).
constexpr uint32_t kSpinUs = 20;
constexpr uint32_t kSpinCoresMin = 6;

uint64_t spin_limit_ns(const Connection& connection) {
  if (connection.spin_us()) return uint64_t{*connection.spin_us()} * 1000;
  static const uint32_t kCores = cores_allowed();
  return kCores >= kSpinCoresMin ? kSpinUs * 1000 : 0;
}

// Destroyed when the thread exits.
struct Channels {
  std::vector<std::pair<std::shared_ptr<Connection>, std::shared_ptr<ThreadChannel>>> items;
};
thread_local Channels channels;  // NOLINT: one per thread is the point

Error lost() { return Error{ErrorCode::kDisconnected, "the daemon went away during a call"}; }

}  // namespace

ThreadChannel::ThreadChannel(std::shared_ptr<Connection> connection,
                             ClientChannel rings,
                             uint32_t id)
    : connection_(std::move(connection)),
      id_(id),
      rings_(std::move(rings)),
      spin_(spin_limit_ns(*connection_)) {}

ThreadChannel::~ThreadChannel() {
  if (!connection_->in_own_process()) return;  // a forked child: the parent's channel lives on
  connection_->give_back_channel();
  if (connection_->alive()) connection_->post(Verb::kChannelClose, ChannelClose{id_});
}

Result<std::shared_ptr<ThreadChannel>> ThreadChannel::of_this_thread(
    const std::shared_ptr<Connection>& connection, uint64_t query_bytes, Deadline deadline) {
  const uint64_t wanted = (query_bytes + kPlaceAlign - 1) / kPlaceAlign * kPlaceAlign;
  for (const auto& [of, channel] : channels.items) {
    if (of == connection && channel->query_place_bytes_ >= wanted) return channel;
  }
  if (Clock::now() >= deadline) return Error{ErrorCode::kTimeout, "no time to open a channel"};
  // Too small, or of a connection that is gone. Requests in flight keep theirs until they are done.
  std::erase_if(channels.items,
                [&](const auto& item) { return !item.first->alive() || item.first == connection; });
  SKV_TRY(opened, open(connection, wanted, deadline));
  channels.items.emplace_back(connection, opened);
  return opened;
}

Result<std::shared_ptr<ThreadChannel>> ThreadChannel::open(
    const std::shared_ptr<Connection>& connection, uint64_t query_place_bytes, Deadline deadline) {
  if (!connection->take_channel()) {
    return Error{ErrorCode::kTooLarge,
                 std::to_string(kThreadChannelsMax) +
                     " threads of this session have a channel already, the limit is " +
                     std::to_string(kThreadChannelsMax) +
                     ": a thread gives its channel back when it exits"};
  }
  const uint64_t area =
      uint64_t{kRequestPlaces} * kMessageBytesMax + kQueryPlaces * query_place_bytes;
  std::vector<UniqueFd> fds;
  Result<ChannelOpenReply> reply =
      connection->call<ChannelOpenReply>(Verb::kChannelOpen, ChannelOpen{area}, deadline, {}, &fds);
  if (!reply.ok()) {
    connection->give_back_channel();
    return reply.error();
  }
  Result<ClientChannel> rings = Error{ErrorCode::kProtocol, "a channel needs 3 descriptors"};
  if (fds.size() == 3) {
    rings = ClientChannel::attach(ChannelParts{std::move(fds[0]), std::move(fds[1]),
                                               std::move(fds[2]), reply.value().bytes,
                                               reply.value().argument_area_offset});
  }
  if (rings.ok() && rings.value().argument_area().size() < area) {
    rings = Error{ErrorCode::kProtocol, "the argument area is smaller than asked for"};
  }
  if (!rings.ok()) {
    connection->give_back_channel();
    connection->end(rings.error());
    return rings.error();
  }
  std::shared_ptr<ThreadChannel> channel(
      new ThreadChannel(connection, std::move(rings).value(), reply.value().channel));
  channel->query_place_bytes_ = query_place_bytes;
  return channel;
}

// ---- places -------------------------------------------------------------------------------------

std::span<std::byte> ThreadChannel::argument(uint32_t place) const {
  const std::span<std::byte> area = rings_.argument_area();
  if (place < kRequestPlaces) {
    return area.subspan(size_t{place} * kMessageBytesMax, kMessageBytesMax);
  }
  return area.subspan(
      size_t{kRequestPlaces} * kMessageBytesMax + (place - kRequestPlaces) * query_place_bytes_,
      query_place_bytes_);
}

uint32_t ThreadChannel::free_place(uint32_t first, uint32_t end) const {
  while (first < end && places_[first].ticket != 0) ++first;
  return first;
}

// The ticket tells the place, so that a completion is found without a search.
Result<void> ThreadChannel::send(uint32_t place, SubmissionEntry entry) {
  entry.ticket = uint64_t{next_use_++} << 8 | place;
  entry.argument_offset =
      static_cast<uint32_t>(argument(place).data() - rings_.argument_area().data());
  Result<bool> taken = rings_.submit(entry);
  if (!taken.ok()) {
    connection_->end(taken.error());
    return taken.error();
  }
  if (!taken.value()) {
    connection_->end(Error{ErrorCode::kProtocol, "the submission ring is full"});
    return lost();
  }
  places_[place].ticket = entry.ticket;
  places_[place].done = false;
  return {};
}

// A ring takes entries also when nobody serves it any more. Asked before a request is sent, the
// socket knows, and a request that was not sent may be tried again on a new connection.
Result<void> ThreadChannel::check_served() const {
  pollfd socket{connection_->socket(), POLLRDHUP, 0};
  if (::poll(&socket, 1, 0) <= 0) return {};
  const Error gone{ErrorCode::kDisconnected, "the daemon closed the connection"};
  connection_->end(gone);
  return gone;
}

Result<bool> ThreadChannel::submit(const OperationPtr& operation, std::span<const uint8_t> frame) {
  SKV_CHECK_OK(check_served());
  std::unique_lock lock(mutex_);
  uint32_t place = free_place(0, kRequestPlaces);
  if (place == kRequestPlaces && !watching_) {
    SKV_CHECK_OK(take_completions());
    place = free_place(0, kRequestPlaces);
  }
  if (place == kRequestPlaces || frame.size() > kMessageBytesMax) return false;
  std::memcpy(argument(place).data(), frame.data(), frame.size());
  SubmissionEntry entry{};
  entry.verb = static_cast<uint32_t>(ChannelVerb::kRequest);
  entry.argument_bytes = static_cast<uint32_t>(frame.size());
  entry.reply_bytes_max = kMessageBytesMax;
  SKV_CHECK_OK(send(place, entry));
  operation->channel = shared_from_this();
  places_[place].operation = operation;
  undo_late(lock);
  return true;
}

// ---- completions --------------------------------------------------------------------------------

// Requires: no other thread watches the ring.
Result<bool> ThreadChannel::take_completions() {
  bool any = false;
  for (;;) {
    Result<std::optional<CompletionEntry>> next = rings_.next_completion();
    if (!next.ok()) {
      connection_->end(next.error());
      return next.error();
    }
    if (!next.value()) return any;
    const CompletionEntry& completion = *next.value();
    const uint64_t index = completion.ticket & 0xFF;
    if (index >= kPlaces || places_[index].ticket != completion.ticket || places_[index].done) {
      const Error wrong{ErrorCode::kProtocol, "a completion of no submission of ours"};
      connection_->end(wrong);
      return wrong;
    }
    any = true;
    Place& place = places_[index];
    if (place.operation) {
      take_reply(place, static_cast<uint32_t>(index), completion);
    } else if (place.waited) {
      place.completion = completion;
      place.done = true;
    } else {
      place.ticket = 0;
    }
  }
}

void ThreadChannel::take_reply(Place& place, uint32_t index, const CompletionEntry& completion) {
  const OperationPtr operation = std::exchange(place.operation, nullptr);
  place.ticket = 0;
  operation->done = true;
  if (completion.status != 0) {
    operation->error =
        Error{static_cast<ErrorCode>(completion.status), "the daemon refused a request by channel"};
  } else {
    // Copied before it is looked at, as from a socket.
    const size_t bytes = std::min<size_t>(completion.reply_bytes, kMessageBytesMax);
    const auto* from = reinterpret_cast<const uint8_t*>(argument(index).data());
    std::vector<uint8_t> frame(from, from + bytes);
    Result<FrameHeader> header = decode_header(frame);
    if (header.ok() &&
        (header.value().is_reply == 0 || header.value().ticket != operation->ticket ||
         header.value().verb != static_cast<uint16_t>(operation->verb))) {
      header = Error{ErrorCode::kProtocol, "a reply by channel to another request"};
    }
    if (!header.ok()) {
      operation->error = header.error();
      connection_->end(header.error());
      return;
    }
    operation->frame.header = header.value();
    frame.erase(frame.begin(), frame.begin() + sizeof(FrameHeader));
    operation->frame.body = std::move(frame);
  }
  if (operation->abandoned && !operation->error && operation->frame.header.status == 0) {
    late_.push_back(std::move(*operation));
  }
}

void ThreadChannel::undo_late(std::unique_lock<std::mutex>& lock) {
  if (late_.empty()) return;
  const std::vector<Operation> late = std::exchange(late_, {});
  lock.unlock();
  for (const Operation& one : late) connection_->undo(one);
  lock.lock();
}

template <typename Done>
Result<void> ThreadChannel::wait_until(std::unique_lock<std::mutex>& lock,
                                       Deadline deadline,
                                       Done&& done) {
  while (!done()) {
    if (watching_) {
      ++waiters_;
      const bool in_time = changed_.wait_until(lock, deadline) == std::cv_status::no_timeout;
      --waiters_;
      if (!in_time && !done() && Clock::now() >= deadline) {
        return Error{ErrorCode::kTimeout, "the daemon did not answer in time"};
      }
      continue;
    }
    SKV_TRY(any, take_completions());
    if (any) {
      if (waiters_ > 0) changed_.notify_all();
      continue;
    }
    if (!connection_->alive()) return lost();
    watching_ = true;
    lock.unlock();
    const Deadline began = Clock::now();
    const Result<ChannelWait> woken = rings_.wait(deadline - began, connection_->socket(),
                                                  std::chrono::nanoseconds(spin_.budget_ns()));
    spin_.waited(static_cast<uint64_t>((Clock::now() - began).count()));
    if (woken.ok() && woken.value() == ChannelWait::kSocket) connection_->take_arrived();
    lock.lock();
    watching_ = false;
    if (waiters_ > 0) changed_.notify_all();  // one of them watches next
    if (!woken.ok()) return woken.error();
    if (woken.value() == ChannelWait::kTimeout && Clock::now() >= deadline) {
      return Error{ErrorCode::kTimeout, "the daemon did not answer in time"};
    }
  }
  return {};
}

Result<void> ThreadChannel::wait(const OperationPtr& operation, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const Result<void> waited = wait_until(lock, deadline, [&] { return operation->done; });
  undo_late(lock);
  if (!operation->done) return waited.error();
  if (operation->error) return *operation->error;
  return {};
}

void ThreadChannel::abandon(const OperationPtr& operation) {
  std::unique_lock lock(mutex_);
  operation->abandoned = true;
  for (Place& place : places_) {
    if (place.operation != operation) continue;
    // What waits here no longer holds the channel: its thread may have exited.
    place.operation = std::make_shared<Operation>();
    place.operation->verb = operation->verb;
    place.operation->ticket = operation->ticket;
    place.operation->abandoned = true;
  }
  if (!operation->done || operation->error || operation->frame.header.status != 0) return;
  late_.push_back(std::move(*operation));
  undo_late(lock);
}

Result<uint32_t> ThreadChannel::send_rows(std::unique_lock<std::mutex>& lock,
                                          SubmissionEntry entry,
                                          std::span<const PrefetchRow> rows,
                                          std::span<const std::byte> queries,
                                          Deadline deadline) {
  uint32_t index = kPlaces;
  SKV_CHECK_OK(wait_until(lock, deadline, [&] {
    index = free_place(kRequestPlaces, kPlaces);
    return index < kPlaces;
  }));
  const std::span<std::byte> place = argument(index);
  std::memcpy(place.data(), rows.data(), rows.size_bytes());
  std::memcpy(place.data() + rows.size_bytes(), queries.data(), queries.size());
  entry.row_count = static_cast<uint32_t>(rows.size());
  entry.argument_bytes = static_cast<uint32_t>(rows.size_bytes() + queries.size());
  SKV_CHECK_OK(send(index, entry));
  return index;
}

Result<void> ThreadChannel::guess(SubmissionEntry entry,
                                  const PrefetchRow& row,
                                  std::span<const std::byte> query,
                                  Deadline deadline) {
  std::unique_lock lock(mutex_);
  SKV_CHECK_OK(send_rows(lock, entry, {&row, 1}, query, deadline));
  return {};
}

Result<CompletionEntry> ThreadChannel::prefetch(SubmissionEntry entry,
                                                std::span<PrefetchRow> rows,
                                                std::span<const std::byte> queries,
                                                Deadline deadline) {
  std::unique_lock lock(mutex_);
  SKV_TRY(index, send_rows(lock, entry, rows, queries, deadline));
  Place& mine = places_[index];
  mine.waited = true;
  const Result<void> waited = wait_until(lock, deadline, [&] { return mine.done; });
  mine.waited = false;
  if (!waited.ok()) return waited.error();
  // A submission that was refused as a whole leaves the rows as they were sent.
  std::memcpy(rows.data(), argument(index).data(), rows.size_bytes());
  mine.ticket = 0;
  mine.done = false;
  undo_late(lock);
  return mine.completion;
}

}  // namespace skv::client
