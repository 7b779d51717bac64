#include "client/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "client/abi.h"
#include "client/channel.h"
#include "client/process.h"
#include "ipc/os_error.h"

namespace skv::client {
namespace {

std::atomic<uint64_t> serials{0};

// How long one wait for room in the socket lasts before incoming frames are taken again: a daemon
// that waits for us to read must not wait for us to write.
constexpr auto kSendSlice = std::chrono::milliseconds(5);
// How old a look into the shared directory of a daemon that died may be.
constexpr Clock::duration kPeerCheck = std::chrono::milliseconds(2);

Result<short> poll_one(int fd, short events, Deadline deadline) {
  pollfd item{fd, events, 0};
  for (;;) {
    const int ready = ::poll(&item, 1, poll_ms(deadline));
    if (ready > 0) return item.revents;
    if (ready == 0) return static_cast<short>(0);
    if (errno != EINTR) return os_error("poll");
    if (Clock::now() >= deadline) return static_cast<short>(0);
  }
}

Result<std::shared_ptr<MappedMemory>> map_shared(int fd,
                                                 uint64_t bytes,
                                                 MappedMemory::Access access,
                                                 const char* what) {
  const Result<uint64_t> size = shared_memory_bytes(fd);
  if (!size.ok()) return size.error();
  if (bytes == 0 || size.value() < bytes) {
    return Error{ErrorCode::kProtocol, std::string("the daemon announced ") +
                                           std::to_string(bytes) + " bytes of " + what +
                                           " and passed " + std::to_string(size.value())};
  }
  SKV_TRY(mapped, MappedMemory::map(fd, bytes, access));
  return std::make_shared<MappedMemory>(std::move(mapped));
}

}  // namespace

Connection::Connection(UniqueFd socket)
    : serial_(serials.fetch_add(1) + 1),
      process_(own_pid()),
      writer_(UniqueFd(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 3))) {
  reader_ = FrameSocket(std::move(socket));
}

Connection::~Connection() = default;

bool Connection::in_own_process() const { return process_ == own_pid(); }

Result<std::shared_ptr<Connection>> Connection::open(const Options& options, Deadline deadline) {
  SKV_TRY(socket, connect_to(options.path));
  std::shared_ptr<Connection> connection(new Connection(std::move(socket)));
  connection->spin_us_ = options.spin_us;
  if (!connection->writer_.valid()) return os_error("dup of the control socket");
  if (Result<void> hello = connection->say_hello(options, deadline); !hello.ok()) {
    connection->end(hello.error());
    return hello.error();
  }
  return connection;
}

Result<void> Connection::say_hello(const Options& options, Deadline deadline) {
  Hello hello;
  hello.client_name = options.client_name;
  hello.client_instance = options.client_instance;
  std::vector<UniqueFd> fds;
  Result<HelloReply> reply = call<HelloReply>(Verb::kHello, hello, deadline, {}, &fds);
  if (!reply.ok()) return reply.error();
  hello_ = std::move(reply).value();
  if (hello_.version < hello.version_min || hello_.version > hello.version_max) {
    return Error{ErrorCode::kUnsupported,
                 "the daemon chose protocol version " + std::to_string(hello_.version) +
                     ", this library speaks " + std::to_string(kProtocolVersion)};
  }
  if (fds.size() != 2) {
    return Error{ErrorCode::kProtocol,
                 "hello brought " + std::to_string(fds.size()) + " descriptors instead of 2"};
  }
  SKV_TRY(staging, map_shared(fds[0].get(), hello_.staging_bytes, MappedMemory::Access::kReadWrite,
                              "staging memory"));
  staging_ = staging;
  staging_fd_ = std::move(fds[0]);
  SKV_TRY(host, map_shared(fds[1].get(), hello_.host_bytes, MappedMemory::Access::kReadOnly,
                           "host memory"));
  host_ = host;
  return {};
}

bool Connection::peer_gone() {
  if (!alive()) return true;
  const Clock::rep now = Clock::now().time_since_epoch().count();
  if (now - peer_checked_.load(std::memory_order_relaxed) < kPeerCheck.count()) return false;
  peer_checked_.store(now, std::memory_order_relaxed);
  pollfd item{reader_.fd(), POLLRDHUP, 0};
  if (::poll(&item, 1, 0) <= 0) return false;
  end(Error{ErrorCode::kDisconnected, "the daemon closed the connection"});
  return true;
}

Result<std::shared_ptr<const SharedDirectoryReader>> Connection::directory() {
  const std::lock_guard lock(directory_mutex_);
  if (directory_ != nullptr && directory_->current()) return directory_;
  const uint32_t timeout_ms = hello_.reply_deadline_ms == 0 ? 1000 : hello_.reply_deadline_ms;
  std::vector<UniqueFd> fds;
  SKV_TRY(reply,
          call<DirectoryMapReply>(Verb::kDirectoryMap, Empty{}, after_ms(timeout_ms), {}, &fds));
  if (fds.size() != 1) {
    return Error{ErrorCode::kProtocol, "directory_map brought " + std::to_string(fds.size()) +
                                           " descriptors instead of 1"};
  }
  SKV_TRY(mapped, MappedMemory::map(fds[0].get(), reply.bytes, MappedMemory::Access::kReadOnly));
  SKV_TRY(reader, SharedDirectoryReader::open(std::move(mapped)));
  directory_ = std::make_shared<const SharedDirectoryReader>(std::move(reader));
  return directory_;
}

Result<std::shared_ptr<MappedMemory>> Connection::vectors(int fd, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!vectors_ || vectors_->bytes() < bytes) {
    SKV_TRY(mapped, map_shared(fd, bytes, MappedMemory::Access::kReadOnly, "vectors"));
    vectors_ = mapped;
  }
  return vectors_;
}

Result<std::shared_ptr<MappedMemory>> Connection::host() {
  const std::lock_guard lock(mutex_);
  if (!host_) return *why_dead_;
  return host_;
}

void Connection::unmap() {
  std::shared_ptr<MappedMemory> host;  // unmapped without the lock: it may be large
  std::shared_ptr<MappedMemory> vectors;
  std::shared_ptr<const SharedDirectoryReader> directory;
  {
    const std::lock_guard lock(mutex_);
    host.swap(host_);
    vectors.swap(vectors_);
  }
  const std::lock_guard lock(directory_mutex_);
  directory.swap(directory_);
}

OperationPtr Connection::begin(Verb verb) {
  auto operation = std::make_shared<Operation>();
  operation->verb = verb;
  operation->ticket = next_ticket_.fetch_add(1, std::memory_order_relaxed);
  return operation;
}

// Its reply will come by the socket.
void Connection::await(const OperationPtr& operation) {
  const std::lock_guard lock(mutex_);
  pending_.emplace(operation->ticket, operation);
}

// False: by the socket then.
Result<bool> Connection::submit_by_channel(const OperationPtr& operation,
                                           std::span<const uint8_t> frame,
                                           Deadline deadline) {
  switch (operation->verb) {
    case Verb::kPutWrite:
    case Verb::kPutCommit:
    case Verb::kPutCancel:
    case Verb::kLoad:
    case Verb::kRelease:
      break;
    default:
      return false;
  }
  if (!in_own_process() || !alive()) return false;  // send() says so
  Result<std::shared_ptr<ThreadChannel>> channel =
      ThreadChannel::of_this_thread(shared_from_this(), 0, deadline);
  // Without one, as with the 65th thread, everything goes by the socket.
  if (!channel.ok()) return false;
  return channel.value()->submit(operation, frame);
}

void Connection::forget(const OperationPtr& operation) {
  const std::lock_guard lock(mutex_);
  pending_.erase(operation->ticket);
}

Result<void> Connection::send(std::span<const uint8_t> frame,
                              std::span<const int> fds,
                              Deadline deadline) {
  if (!in_own_process()) {
    return Error{ErrorCode::kDenied, "the connection belongs to the process it was forked from"};
  }
  for (;;) {
    if (!alive()) {
      const std::lock_guard lock(mutex_);
      return Error{ErrorCode::kDisconnected, why_dead_ ? why_dead_->message : "not connected"};
    }
    Result<SendOutcome> sent = SendOutcome::kWouldBlock;
    {
      const std::lock_guard lock(send_mutex_);
      sent = writer_.send(frame, fds);
    }
    if (!sent.ok()) {
      if (sent.error().code == ErrorCode::kDisconnected) end(sent.error());
      return sent.error();
    }
    if (sent.value() == SendOutcome::kSent) return {};
    drain();
    const Deadline slice = std::min(deadline, Clock::now() + kSendSlice);
    if (Result<short> room = poll_one(writer_.fd(), POLLOUT, slice); !room.ok())
      return room.error();
    if (Clock::now() >= deadline) {
      return Error{ErrorCode::kTimeout, "the daemon does not read its socket"};
    }
  }
}

// Waits for one frame. got stays false at the deadline.
Result<void> Connection::read_one(Deadline deadline, bool& got, Frame& frame) {
  for (;;) {
    SKV_TRY(outcome, reader_.receive(frame));
    if (outcome == ReceiveOutcome::kFrame) {
      got = true;
      return {};
    }
    if (outcome == ReceiveOutcome::kClosed) {
      return Error{ErrorCode::kDisconnected, "the daemon closed the connection"};
    }
    SKV_TRY(events, poll_one(reader_.fd(), POLLIN, deadline));
    if (events == 0) return {};
  }
}

Result<void> Connection::wait(const OperationPtr& operation, Deadline deadline) {
  if (operation->channel) return operation->channel->wait(operation, deadline);
  std::unique_lock lock(mutex_);
  while (!operation->done) {
    if (reading_) {
      const bool in_time = changed_.wait_until(lock, deadline) == std::cv_status::no_timeout;
      if (!in_time && !operation->done && Clock::now() >= deadline) break;
      continue;
    }
    reading_ = true;
    lock.unlock();
    bool got = false;
    Frame frame;
    const Result<void> read = read_one(deadline, got, frame);
    lock.lock();
    reading_ = false;
    if (!read.ok()) {
      end_locked(read.error());
    } else if (got) {
      dispatch(std::move(frame));
    }
    changed_.notify_all();
    std::vector<Operation> late = std::exchange(to_undo_, {});
    if (!late.empty()) {
      lock.unlock();
      for (const Operation& one : late) undo(one);
      lock.lock();
    }
    if (read.ok() && !got && !operation->done && Clock::now() >= deadline) break;
  }
  if (!operation->done) {
    return Error{ErrorCode::kTimeout, "the daemon did not answer in time (verb " +
                                          std::to_string(static_cast<int>(operation->verb)) + ")"};
  }
  if (operation->error) return *operation->error;
  return {};
}

// Takes what has arrived, without waiting, unless another thread is reading.
void Connection::drain() {
  std::unique_lock lock(mutex_);
  while (!reading_ && alive()) {
    reading_ = true;
    lock.unlock();
    bool got = false;
    Frame frame;
    const Result<void> read = read_one(Clock::now(), got, frame);
    lock.lock();
    reading_ = false;
    if (!read.ok()) end_locked(read.error());
    if (got) dispatch(std::move(frame));
    changed_.notify_all();
    if (!got) return;
  }
}

void Connection::dispatch(Frame frame) {
  if (frame.header.is_reply == 0) return dispatch_event(frame);
  const auto found = pending_.find(frame.header.ticket);
  if (found == pending_.end() || static_cast<uint16_t>(found->second->verb) != frame.header.verb) {
    end_locked(Error{ErrorCode::kProtocol, "a reply to no request of ours (ticket " +
                                               std::to_string(frame.header.ticket) + ", verb " +
                                               std::to_string(frame.header.verb) + ")"});
    return;
  }
  const OperationPtr operation = found->second;
  pending_.erase(found);
  operation->frame = std::move(frame);
  operation->done = true;
  if (operation->abandoned && operation->frame.header.status == 0) {
    to_undo_.push_back(std::move(*operation));
  }
}

void Connection::dispatch_event(const Frame& frame) {
  if (frame.header.verb != static_cast<uint16_t>(Verb::kWindowLost)) return;
  const Result<WindowLost> lost = decode_body<WindowLost>(frame.body);
  if (lost.ok()) lost_windows_.insert(lost.value().window);
}

bool Connection::window_lost(uint32_t window) {
  const std::lock_guard lock(mutex_);
  return lost_windows_.contains(window);
}

void Connection::abandon(const OperationPtr& operation) {
  if (operation->channel) return operation->channel->abandon(operation);
  std::unique_lock lock(mutex_);
  operation->abandoned = true;
  if (!operation->done || operation->error || operation->frame.header.status != 0) return;
  Operation late = std::move(*operation);
  lock.unlock();
  undo(late);
}

// What an abandoned request opened is closed again, so that it does not count against the session.
void Connection::undo(const Operation& late) {
  const std::span<const uint8_t> body(late.frame.body);
  switch (late.verb) {
    case Verb::kContextOpen:
      if (auto opened = decode_body<ContextOpenReply>(body); opened.ok()) {
        post(Verb::kContextClose, ContextClose{opened.value().context});
      }
      break;
    case Verb::kMemoryRegister:
      if (auto opened = decode_body<MemoryRegisterReply>(body); opened.ok()) {
        post(Verb::kMemoryUnregister, MemoryUnregister{opened.value().memory});
      }
      break;
    case Verb::kWindowOpen:
      if (auto opened = decode_body<WindowOpenReply>(body); opened.ok()) {
        post(Verb::kWindowClose, WindowClose{opened.value().window});
      }
      break;
    case Verb::kLeaseMapOpen:
      if (auto opened = decode_body<LeaseMapOpenReply>(body); opened.ok()) {
        post(Verb::kLeaseMapClose, LeaseMapClose{opened.value().map});
      }
      break;
    case Verb::kChannelOpen:
      if (auto opened = decode_body<ChannelOpenReply>(body); opened.ok()) {
        post(Verb::kChannelClose, ChannelClose{opened.value().channel});
      }
      break;
    case Verb::kLoad:
      if (auto loaded = decode_body<LoadReply>(body); loaded.ok() && loaded.value().lease != 0) {
        post(Verb::kRelease, Release{loaded.value().lease});
      }
      break;
    default:
      break;  // nothing stays open behind the others
  }
}

void Connection::end(const Error& why) {
  const std::lock_guard lock(mutex_);
  end_locked(why);
}

void Connection::end_locked(const Error& why) {
  if (why_dead_) return;
  why_dead_ = why;
  dead_.store(true, std::memory_order_release);
  if (in_own_process()) ::shutdown(reader_.fd(), SHUT_RDWR);  // wakes a leader in poll()
  for (auto& [ticket, operation] : pending_) {
    operation->error = why;
    operation->done = true;
  }
  pending_.clear();
  changed_.notify_all();
}

bool Connection::take_channel() {
  uint32_t now = channels_.load();
  while (now < kThreadChannelsMax) {
    if (channels_.compare_exchange_weak(now, now + 1)) return true;
  }
  return false;
}

void Connection::give_back_channel() { channels_.fetch_sub(1); }

}  // namespace skv::client
