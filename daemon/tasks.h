#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "daemon/data/data_messages.h"
#include "daemon/placement.h"

namespace skv {

// Copies and derivations that the data thread runs for the loop, with the chunk leases that keep
// their extents in place until it says that it is done.
//
// Thread  loop.
class Tasks {
 public:
  using Done = std::function<void(TaskDone& done)>;

  explicit Tasks(Placement& placement) : placement_(placement) {}

  // The id for the command that the caller posts next.
  TaskId begin(SessionId session, std::vector<ChunkLease> leases, Done done);
  // TaskDone of the data thread: releases, then calls `done` unless its session ends.
  enum class Session : uint8_t { kLives, kEnds };
  void finish(TaskDone event, Session session);
  // SessionClosed: the data thread runs none of them any more. Releases, calls nothing.
  void drop(SessionId session);

  size_t count() const { return tasks_.size(); }
  size_t count(SessionId session) const;

 private:
  struct Task {
    SessionId session{};
    std::vector<ChunkLease> leases;
    Done done;
  };
  void release(const Task& task);

  Placement& placement_;
  uint64_t next_ = 1;
  std::unordered_map<TaskId, Task> tasks_;
};

}  // namespace skv
