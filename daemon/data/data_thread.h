#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "daemon/data/data_messages.h"
#include "ipc/types/result.h"
#include "tiers/slot_pool.h"

namespace skv {

struct DataOptions {
  uint32_t slice_us = 200;  // most work between two looks at the channels
  // The same for copies: short, because what waits behind one is a prefetch or somebody's first
  // copy, and both may take less than a slice of ranking.
  uint32_t copy_slice_us = 30;
  uint32_t spin_us = 0;                 // most that it looks before it sleeps (ipc/spin.h)
  uint32_t spin_cores = 3;              // never with fewer
  uint32_t wait_deadline_us = 100'000;  // cold = wait without a deadline of its own
  uint32_t wait_deadline_us_max = 10'000'000;
  uint32_t commands_max = 4096;
  uint32_t events_max = 4096;
  uint64_t touch_interval_ns = 100'000'000;
  uint32_t recall_every =
      0;  // one of so many coarse rankings is compared with a full scan; 0: none
  std::function<uint64_t()> now_ns;  // empty: the monotonic clock
  std::function<bool()> called;      // whether commands wait; empty: they never do
};

// Numbers for skvctl status. Durations in microseconds, sums since start.
struct DataStatistics {
  uint64_t prefetches = 0;
  uint64_t prefetches_busy = 0;
  uint64_t prefetches_failed = 0;  // any other error
  uint64_t hits_device = 0;        // blocks
  uint64_t hits_host = 0;
  uint64_t hits_nvme = 0;
  uint64_t misses = 0;
  uint64_t read_ahead_asked = 0;
  uint64_t read_ahead_used = 0;
  uint64_t read_ahead_late = 0;
  uint64_t read_ahead_wasted = 0;
  uint64_t blocks_read = 0;
  uint64_t bytes_moved = 0;  // host to device slots
  uint64_t bytes_put = 0;
  uint64_t bytes_loaded = 0;
  uint64_t bytes_summed_again = 0;
  uint64_t tasks = 0;
  uint64_t rank_us = 0;          // inside ranking, all prefetches
  uint64_t recall_rankings = 0;  // coarse rankings that were compared with a full scan
  uint64_t recall_wanted = 0;    // blocks that it chose
  uint64_t recall_found = 0;     // and the coarse ranking too
  uint64_t prefetch_us = 0;      // sum of daemon_us
  uint64_t prefetch_us_p50 = 0;
  uint64_t prefetch_us_p99 = 0;
  uint64_t protocol_errors = 0;
  uint64_t devices_lost = 0;
  uint64_t commands_spilled = 0;  // posted while the queue was full
  uint64_t channels = 0;
  uint64_t windows = 0;
  uint64_t feeds = 0;
  uint64_t vector_pages_bytes = 0;  // of open contexts, all spaces
  uint64_t device_bytes_used = 0;
  uint64_t device_bytes_budget = 0;
};

// Where the loop puts commands: the data thread, or a fake in the tests of the loop.
class DataPort {
 public:
  virtual ~DataPort() = default;
  virtual void post(DataCommand command) = 0;
};

// The data thread: channels, windows, ranking, resident sets, copies (docs/architecture.md "Life of
// a prefetch"). A shell around DataCore (data_core.h), which does the work and runs inline in
// tests.
//
// Thread  start, post, drain, stop: the loop. `wake_loop` is called on the data thread when events
//         wait (uv_async_send); statistics(): any.
// Limits  commands_max and events_max in the queues. A full command queue spills to a list on the
//         loop's side, in order and counted; a full event queue holds the data thread's events
//         back.
// Owns    the pool and every table, channel and window. Stop: in-flight moves end, then all is
// freed.
class DataThread final : public DataPort {
 public:
  static Result<std::unique_ptr<DataThread>> start(DataOptions options,
                                                   std::unique_ptr<SlotPool> pool,
                                                   std::function<void()> wake_loop);
  ~DataThread() override;
  DataThread(const DataThread&) = delete;
  DataThread& operator=(const DataThread&) = delete;

  void post(DataCommand command) override;
  // Hands over what waits, at most events_max; returns how many. Wake-ups are merged: call until 0.
  size_t drain(const std::function<void(DataEvent)>& handle, size_t events_max = 256);
  DataStatistics statistics() const;
  // Ends the thread: after this no wake_loop comes. drain() still hands over what was left.
  void stop();

 private:
  struct State;
  explicit DataThread(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace skv
