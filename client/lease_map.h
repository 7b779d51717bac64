#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "client/connection.h"
#include "client/deadline.h"
#include "ipc/lease_map.h"
#include "ipc/types/result.h"

namespace skv::client {

// The lease map of one context on one connection: leases without a message. Closed at the daemon
// when nobody uses it any more, that is after the last lease by it and its context.
//
// Thread  any.
class LeaseMap {
 public:
  static Result<std::shared_ptr<LeaseMap>> open(const std::shared_ptr<Connection>& connection,
                                                uint32_t context,
                                                uint32_t chunk_count,
                                                Deadline deadline);
  LeaseMap(std::shared_ptr<Connection> connection, uint32_t id, LeaseMapReader reader)
      : connection_(std::move(connection)), id_(id), reader_(std::move(reader)) {}
  LeaseMap(const LeaseMap&) = delete;
  LeaseMap& operator=(const LeaseMap&) = delete;
  ~LeaseMap();

  const std::shared_ptr<Connection>& connection() const { return connection_; }
  // As LeaseMapReader. A forked child leases nothing and gives nothing back: the words count what
  // its parent reads.
  bool take(const LeaseMapReader::Range& range, std::vector<uint64_t>& offsets) const;
  void give_back(const LeaseMapReader::Range& range) const;

 private:
  const std::shared_ptr<Connection> connection_;
  const uint32_t id_;
  const LeaseMapReader reader_;
};

}  // namespace skv::client
