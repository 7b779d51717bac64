#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "daemon/data/prefetch.h"
#include "daemon/data/residency.h"
#include "daemon/data/window.h"

namespace skv {

// Brings chunks into host memory for clients that rank for themselves and read in place. A fill
// that waits leases each chunk as it comes, until readers_done has passed the version it is for, so
// that what came first is not taken back for what comes later; one that does not wait only asks.
//
// Thread  data thread.
class FillRunner {
 public:
  struct Hooks {
    std::function<uint64_t()> now_ns;
    std::function<void(TaskDone)> done;
    std::function<void(SpaceId, const ChunkRef&, bool urgent)> ask;
  };
  FillRunner(Hooks hooks, Residency& residency) : hooks_(std::move(hooks)), residency_(residency) {}

  // Requires: the window is the session's, its client ranks and reads in place. All else of the
  // task is checked here: kInvalidArgument names sentences and chunks that the feed does not have.
  void add(const FillTask& task, std::shared_ptr<Window> window, uint64_t deadline_ns);
  void chunk_arrived(const ChunkRef& chunk);
  void chunk_failed(const ChunkRef& chunk);
  // Ends those whose deadline has passed, with what has come.
  void run();
  uint64_t next_deadline_ns() const;
  // The window closes: answers kCancelled, or nothing where its session ends.
  void abort(const Window& window, bool silent);

 private:
  struct Fill {
    TaskId task{};
    SessionId session{};
    std::shared_ptr<Window> window;
    uint64_t version = 0;
    uint64_t deadline_ns = 0;
    std::vector<TaskDone::Filled> filled;
    std::unordered_map<ChunkRef, std::vector<uint32_t>, ChunkRefHash> waiting;  // indices
    std::vector<ExtentLease> leases;
  };
  void finish(Fill& fill);
  void finish_ready();

  Hooks hooks_;
  Residency& residency_;
  std::deque<Fill> fills_;
};

}  // namespace skv
