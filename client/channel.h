#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "client/connection.h"
#include "client/deadline.h"
#include "ipc/channel.h"
#include "ipc/spin.h"
#include "ipc/types/result.h"

namespace skv::client {

// The submission channel of one thread on one connection: taken on its first prefetch or hot
// request, given back when the thread exits.
//
// Its argument area has places of two sizes: kRequestPlaces for frames of the control socket, each
// with room for the largest reply, then kQueryPlaces for prefetches. A submission has a place until
// its completion is taken, whoever still waits for it.
//
// Thread  submits: the one it was opened for. Waits: any, since skv_wait takes the tickets of
// others. Of
//         those that wait one watches the ring and hands out what arrives, as with the socket.
// Owns    the rings' mapping and doorbells; a place in Connection::take_channel.
class ThreadChannel : public std::enable_shared_from_this<ThreadChannel> {
 public:
  // Opened if there is none, or if its places are too small for `query_bytes` (0: any will do).
  // kTooLarge: 64 threads of the session have one.
  static Result<std::shared_ptr<ThreadChannel>> of_this_thread(
      const std::shared_ptr<Connection>& connection, uint64_t query_bytes, Deadline deadline);
  ~ThreadChannel();
  ThreadChannel(const ThreadChannel&) = delete;
  ThreadChannel& operator=(const ThreadChannel&) = delete;

  // False: no place is free, nothing was sent.
  Result<bool> submit(const OperationPtr& operation, std::span<const uint8_t> frame);
  // As Connection::wait and abandon, for what was submitted here.
  Result<void> wait(const OperationPtr& operation, Deadline deadline);
  void abandon(const OperationPtr& operation);

  // Fills in ticket, place and sizes. kTimeout: the daemon may still do it; its completion is
  // dropped when it comes.
  Result<CompletionEntry> prefetch(SubmissionEntry entry,
                                   std::span<PrefetchRow> rows,
                                   std::span<const std::byte> queries,
                                   Deadline deadline);
  // The same, not waited for; a place is, if none is free.
  Result<void> guess(SubmissionEntry entry,
                     const PrefetchRow& row,
                     std::span<const std::byte> query,
                     Deadline deadline);

 private:
  static constexpr uint32_t kRequestPlaces = 40;
  static constexpr uint32_t kQueryPlaces = 4;
  static constexpr uint32_t kPlaces = kRequestPlaces + kQueryPlaces;
  static_assert(kPlaces <= kChannelEntries);
  struct Place {
    uint64_t ticket = 0;     // in flight; 0: free
    OperationPtr operation;  // of a request
    bool waited = false;     // of a prefetch: somebody wants to know
    bool done = false;
    CompletionEntry completion{};
  };

  ThreadChannel(std::shared_ptr<Connection> connection, ClientChannel rings, uint32_t id);
  static Result<std::shared_ptr<ThreadChannel>> open(const std::shared_ptr<Connection>& connection,
                                                     uint64_t query_place_bytes,
                                                     Deadline deadline);
  std::span<std::byte> argument(uint32_t place) const;
  Result<void> check_served() const;
  uint32_t free_place(uint32_t first, uint32_t end) const;
  Result<void> send(uint32_t place, SubmissionEntry entry);
  // Waits for a place, fills it, submits.
  Result<uint32_t> send_rows(std::unique_lock<std::mutex>& lock,
                             SubmissionEntry entry,
                             std::span<const PrefetchRow> rows,
                             std::span<const std::byte> queries,
                             Deadline deadline);
  // Until `done()`; takes what arrives meanwhile. `lock` is of mutex_.
  template <typename Done>
  Result<void> wait_until(std::unique_lock<std::mutex>& lock, Deadline deadline, Done&& done);
  Result<bool> take_completions();
  void take_reply(Place& place, uint32_t index, const CompletionEntry& completion);
  void undo_late(std::unique_lock<std::mutex>& lock);

  const std::shared_ptr<Connection> connection_;
  const uint32_t id_;
  uint64_t query_place_bytes_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  ClientChannel rings_;
  AdaptiveSpin spin_;      // of the thread that watches
  bool watching_ = false;  // a thread looks at the completion ring without the mutex
  uint32_t waiters_ = 0;   // that sleep on changed_
  uint32_t next_use_ = 1;
  std::array<Place, kPlaces> places_;
  std::vector<Operation> late_;  // answers to what was abandoned
};

}  // namespace skv::client
