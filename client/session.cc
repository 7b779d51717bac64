#include "client/session.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "client/abi.h"
#include "client/memory.h"

namespace skv::client {
namespace {

std::atomic<uint64_t> owners{0};

constexpr auto kBackOffFirst = std::chrono::milliseconds(10);
constexpr auto kBackOffMax = std::chrono::milliseconds(1000);
constexpr uint32_t kCallTimeoutMs = 30'000;  // where the daemon proposes none

// Half to all of it, so that the engines of a node do not come back in one instant.
Clock::duration jittered(Clock::duration delay) {
  thread_local std::minstd_rand random{std::random_device{}()};
  return delay / 2 + delay / 2 * static_cast<int64_t>(random() % 1024) / 1024;
}

// Whether waiting may help.
bool passing(ErrorCode code) {
  return code == ErrorCode::kDisconnected || code == ErrorCode::kBusy ||
         code == ErrorCode::kTimeout;
}

}  // namespace

Session::Session(Options options) : Object(owners.fetch_add(1) + 1), options_(std::move(options)) {}

Session::~Session() { close(); }

Result<std::shared_ptr<Session>> Session::open(Options options) {
  auto session = std::make_shared<Session>(std::move(options));
  SKV_CHECK_OK(session->reconnect(session->options_.connect_timeout_ms));
  return session;
}

void Session::close() {
  std::shared_ptr<Connection> last;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    last = connection_;
    changed_.notify_all();
  }
  if (last) {
    last->end(Error{ErrorCode::kCancelled, "the session was closed"});
    last->unmap();
  }
  const std::lock_guard lock(started_mutex_);
  for (const auto& [ticket, one] : started_) one.done.connection->abandon(one.done.operation);
  started_.clear();
}

std::shared_ptr<Connection> Session::last_connection() const {
  const std::lock_guard lock(mutex_);
  return connection_;
}

uint32_t Session::connections() const {
  const std::lock_guard lock(mutex_);
  return connections_;
}

Deadline Session::call_deadline(uint32_t timeout_ms) const {
  if (timeout_ms == 0) timeout_ms = options_.call_timeout_ms;
  if (timeout_ms == 0) {
    const std::shared_ptr<Connection> last = last_connection();
    if (last) timeout_ms = last->hello().reply_deadline_ms;
  }
  return after_ms(timeout_ms == 0 ? kCallTimeoutMs : timeout_ms);
}

Result<std::shared_ptr<Connection>> Session::connection(Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (!closed_ && connection_ && connection_->alive()) return connection_;
  }
  return connect(std::min(deadline, after_ms(options_.connect_timeout_ms)), false);
}

Result<void> Session::reconnect(uint32_t timeout_ms) {
  {
    const std::lock_guard lock(mutex_);
    down_ = false;
  }
  auto connected = connect(after_ms(timeout_ms), timeout_ms == 0);
  if (!connected.ok()) return connected.error();
  return {};
}

Result<std::shared_ptr<Connection>> Session::connect(Deadline deadline, bool once) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (closed_) return Error{ErrorCode::kCancelled, "the session was closed"};
    if (connection_ && connection_->alive()) return connection_;
    if (!connecting_) break;
    if (changed_.wait_until(lock, deadline) == std::cv_status::timeout && connecting_) {
      return Error{ErrorCode::kDisconnected, "another thread is still connecting"};
    }
  }
  connecting_ = true;
  once = once || down_;
  Clock::duration back_off = kBackOffFirst;
  Result<std::shared_ptr<Connection>> opened = Error{};
  for (;;) {
    lock.unlock();
    // A single try still gives a listening daemon a moment to say hello.
    const Deadline hello_by =
        once ? after_ms(std::max(options_.connect_timeout_ms / 4, 1U)) : deadline;
    opened = Connection::open(options_.connection, hello_by);
    lock.lock();
    if (opened.ok() || closed_ || once || !passing(opened.error().code)) break;
    const Deadline again = Clock::now() + jittered(back_off);
    if (again >= deadline) break;
    changed_.wait_until(lock, again, [this] { return closed_; });
    back_off = std::min<Clock::duration>(back_off * 2, kBackOffMax);
  }
  connecting_ = false;
  changed_.notify_all();
  if (closed_) {
    if (opened.ok()) opened.value()->end(Error{ErrorCode::kCancelled, "the session was closed"});
    return Error{ErrorCode::kCancelled, "the session was closed"};
  }
  down_ = !opened.ok();
  if (!opened.ok()) return opened.error();
  const std::shared_ptr<Connection> before = std::exchange(connection_, opened.value());
  ++connections_;
  lock.unlock();
  if (before) before->unmap();
  return opened;
}

Result<skv_ticket> Session::keep(Done started, std::shared_ptr<Memory> memory, Deadline deadline) {
  skv_ticket ticket = 0;
  {
    const std::lock_guard lock(started_mutex_);
    ticket = next_ticket_++;
    started_.emplace(ticket, Started{std::move(started), std::move(memory)});
    // Looking which of them are done costs a look at each.
    if (started_.size() <= kAsyncMax) return ticket;
  }
  // Above the limit, wait for the oldest that still runs: its place is what the next one needs.
  for (;;) {
    note_finished();
    Done oldest;
    {
      const std::lock_guard lock(started_mutex_);
      uint32_t running = 0;
      for (const auto& [id, one] : started_) {
        if (one.finished) continue;
        if (running++ == 0) oldest = one.done;
      }
      if (running <= kAsyncMax) return ticket;
    }
    if (Clock::now() >= deadline) return ticket;
    (void)oldest.connection->wait(oldest.operation, deadline).ok();
  }
}

// Without waiting: an operation whose reply has arrived no longer counts.
void Session::note_finished() {
  std::vector<std::pair<skv_ticket, Done>> running;
  {
    const std::lock_guard lock(started_mutex_);
    for (const auto& [id, one] : started_) {
      if (!one.finished) running.emplace_back(id, one.done);
    }
  }
  for (const auto& [id, done] : running) {
    const Result<void> waited = done.connection->wait(done.operation, Clock::now());
    if (!waited.ok() && waited.error().code == ErrorCode::kTimeout) continue;
    const std::lock_guard lock(started_mutex_);
    const auto found = started_.find(id);
    if (found == started_.end()) continue;
    found->second.finished = true;
    found->second.memory = nullptr;
  }
}

bool Session::uses(const Memory& memory) {
  note_finished();
  const std::lock_guard lock(started_mutex_);
  return std::any_of(started_.begin(), started_.end(),
                     [&memory](const auto& item) { return item.second.memory.get() == &memory; });
}

Result<void> Session::wait(skv_ticket ticket, Deadline deadline, skv_load_result* result) {
  Done done;
  {
    const std::lock_guard lock(started_mutex_);
    const auto found = started_.find(ticket);
    if (found == started_.end()) {
      return Error{ErrorCode::kUnknownHandle,
                   "ticket " + std::to_string(ticket) + " is not open in this session"};
    }
    done = found->second.done;
  }
  const Result<void> waited = done.connection->wait(done.operation, deadline);
  if (!waited.ok() && waited.error().code == ErrorCode::kTimeout) return waited.error();
  {
    const std::lock_guard lock(started_mutex_);
    if (started_.erase(ticket) == 0) {
      return Error{ErrorCode::kUnknownHandle,
                   "ticket " + std::to_string(ticket) + " was waited for by another thread"};
    }
  }
  if (!waited.ok()) return waited.error();
  skv_load_result loaded{};
  if (done.operation->verb == Verb::kLoad) {
    SKV_TRY(reply, done.connection->reply<LoadReply>(done.operation));
    loaded.host_chunks = reply.host_chunks;
    loaded.nvme_chunks = reply.nvme_chunks;
    loaded.bytes = reply.bytes;
  } else {
    SKV_CHECK_OK(done.connection->reply<Empty>(done.operation));
  }
  if (result != nullptr) write_struct(result, loaded);
  return {};
}

}  // namespace skv::client
