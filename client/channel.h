#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "client/connection.h"
#include "client/deadline.h"
#include "ipc/channel.h"
#include "ipc/types/result.h"

namespace skv::client {

// The submission channel of the calling thread on one connection: taken on its first prefetch,
// given back when the thread exits.
//
// Thread  the one that asked for it.
// Owns    the rings' mapping and doorbells; a place in Connection::take_channel.
class ThreadChannel {
 public:
  // Opened if there is none, or if its query area is smaller than `query_bytes`. kTooLarge: 64
  // threads of the session have one.
  static Result<ThreadChannel*> of_this_thread(const std::shared_ptr<Connection>& connection,
                                               uint64_t query_bytes,
                                               Deadline deadline);
  ~ThreadChannel();
  ThreadChannel(const ThreadChannel&) = delete;
  ThreadChannel& operator=(const ThreadChannel&) = delete;

  // Fills in ticket and place of the query. kTimeout: the daemon may still do it; its completion is
  // dropped when it comes.
  Result<CompletionEntry> prefetch(SubmissionEntry entry,
                                   std::span<const std::byte> query,
                                   Deadline deadline);

 private:
  ThreadChannel(std::shared_ptr<Connection> connection, ClientChannel rings, uint32_t id);
  static Result<std::unique_ptr<ThreadChannel>> open(const std::shared_ptr<Connection>& connection,
                                                     uint64_t query_bytes,
                                                     Deadline deadline);
  Result<CompletionEntry> next(Deadline deadline);

  const std::shared_ptr<Connection> connection_;
  ClientChannel rings_;
  const uint32_t id_;
  uint64_t next_ticket_ = 1;
  // A query that timed out may still wait to be read by the daemon; the next one goes elsewhere.
  static constexpr uint32_t kPlaces = 2;
  uint64_t place_bytes_ = 0;                   // the query area has kPlaces of these
  std::array<uint64_t, kPlaces> ticket_at_{};  // in flight with its query there; 0: free
};

}  // namespace skv::client
