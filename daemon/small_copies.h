#pragma once

#include <cstdint>
#include <optional>

#include "daemon/data/copy_runner.h"
#include "daemon/loop.h"
#include "tiers/host_store.h"

namespace skv {

struct Core;

// Copies that take less time than the way to the data thread and back: two threads would be woken,
// some 10 us each, for 5 to 25 us of work. These are done where they are asked for.
//
// Limits  one copy is at most kBytesMax; all of them at most kWindowBytes in kWindowNs, about half
//         of the loop's time, so that other sessions' messages wait for one copy at most and the
//         rest goes to the data thread, beside the loop. Extents without pages go there too: a
//         first touch may take as long as the copy for each page.
// Thread  loop.
class SmallCopies {
 public:
  static constexpr uint64_t kBytesMax = 256ULL << 10;
  static constexpr uint64_t kWindowBytes = 512ULL << 10;
  static constexpr uint64_t kWindowNs = 100'000;

  SmallCopies(Loop& loop, HostStore& host);

  // Done, or the data thread's to do: then `task` is as it was.
  std::optional<TaskDone> run(CopyTask& task);
  const DataCounters& counters() const { return counters_; }

 private:
  bool has_pages(const CopyTask& task) const;

  Loop& loop_;
  HostStore& host_;
  DataCounters counters_;
  std::optional<TaskDone> done_;
  CopyRunner runner_;
  uint64_t window_ns_ = 0;  // when it began
  uint64_t window_bytes_ = 0;
};

// Runs `copy`, whose id is of Core::tasks: here if it may be and is small, else on the data thread.
// `here` false: something that the data thread does must come before it.
void start_copy(Core& core, CopyTask copy, bool here);

}  // namespace skv
