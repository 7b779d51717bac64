#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "client/connection.h"
#include "client/deadline.h"
#include "client/handles.h"
#include "client/skv.h"
#include "ipc/types/result.h"

namespace skv::client {

class Memory;

// Keeps a mapping alive for views that outlive its handle.
struct Hold : Object {
  static constexpr HandleKind kKind = HandleKind::kHold;
  Hold(uint64_t owner_serial, std::shared_ptr<void> first, std::shared_ptr<void> second = nullptr)
      : Object(owner_serial), one(std::move(first)), two(std::move(second)) {}
  std::shared_ptr<void> one, two;
};

// An engine's session: the present connection, and a new one after it is lost.
//
// Models, contexts and memories find out by Connection::serial() that they must be opened again,
// and do so when they are next used. Windows, leases and channels belong to one connection.
//
// Thread  any. One thread connects, the others wait for it.
// Errors  perform() ends with kDisconnected when the connection is lost under a request: a miss. A
//         request that was not sent yet is tried again on a new connection, within the deadline.
class Session : public Object {
 public:
  static constexpr HandleKind kKind = HandleKind::kSession;

  struct Options {
    Connection::Options connection;
    uint32_t connect_timeout_ms = 0;
    uint32_t call_timeout_ms = 0;
  };
  static Result<std::shared_ptr<Session>> open(Options options);
  explicit Session(Options options);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() override;

  void close();
  // Alive as far as known, else connects; kCancelled after close().
  Result<std::shared_ptr<Connection>> connection(Deadline deadline);
  Result<void> reconnect(uint32_t timeout_ms);
  std::shared_ptr<Connection> last_connection() const;  // dead or alive, not null once open
  uint32_t connections() const;
  Deadline call_deadline(uint32_t timeout_ms = 0) const;

  struct Done {
    std::shared_ptr<Connection> connection;
    OperationPtr operation;
  };
  // `prepare(connection)` opens again what it needs and submits one request.
  template <typename Prepare>
  Result<Done> begin(Deadline deadline, Prepare&& prepare) {
    for (int attempt = 1;; ++attempt) {
      Result<std::shared_ptr<Connection>> found = connection(deadline);
      if (!found.ok()) return found.error();
      const std::shared_ptr<Connection>& now = found.value();
      Result<OperationPtr> operation = prepare(*now);
      if (operation.ok()) return Done{now, std::move(operation).value()};
      const bool lost = operation.error().code == ErrorCode::kDisconnected && !now->alive();
      if (!lost || attempt == kAttemptsMax || Clock::now() >= deadline) return operation.error();
    }
  }
  template <typename Prepare>
  Result<Done> perform(Deadline deadline, Prepare&& prepare) {
    Result<Done> begun = begin(deadline, std::forward<Prepare>(prepare));
    if (!begun.ok()) return begun.error();
    Done& done = begun.value();
    if (Result<void> waited = done.connection->wait(done.operation, deadline); !waited.ok()) {
      done.connection->abandon(done.operation);
      return waited.error();
    }
    return begun;
  }
  template <typename Reply, typename Prepare>
  Result<Reply> call(Deadline deadline, Prepare&& prepare) {
    Result<Done> done = perform(deadline, std::forward<Prepare>(prepare));
    if (!done.ok()) return done.error();
    return done.value().connection->template reply<Reply>(done.value().operation);
  }

  // Asynchronous operations, until they are waited for. `memory` is not closed under them.
  Result<skv_ticket> keep(Done started, std::shared_ptr<Memory> memory, Deadline deadline);
  Result<void> wait(skv_ticket ticket, Deadline deadline, skv_load_result* result);
  bool uses(const Memory& memory);

 private:
  struct Started {
    Done done;
    std::shared_ptr<Memory> memory;
    bool finished = false;
  };
  static constexpr int kAttemptsMax = 4;

  Result<std::shared_ptr<Connection>> connect(Deadline deadline, bool once);
  void note_finished();

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Connection> connection_;
  bool connecting_ = false;
  bool closed_ = false;
  bool down_ = false;  // the last attempt was in vain: later calls try once
  uint32_t connections_ = 0;

  std::mutex started_mutex_;
  skv_ticket next_ticket_ = 1;
  std::map<skv_ticket, Started> started_;
};

inline constexpr uint32_t kAsyncMax = 128;  // in flight; the daemon's own limit is above it

}  // namespace skv::client
