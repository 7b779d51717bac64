#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ipc/types/result.h"
#include "tiers/disk_engine.h"

namespace skv {

// Where a store's jobs run: on a thread of their own, or inline inside collect() for simulations.
//
// Thread  loop.
// Owns    the disk and what runs on it. Destroyed: finishes all jobs first.
class JobRunner {
 public:
  JobRunner() = default;
  virtual ~JobRunner() = default;
  JobRunner(const JobRunner&) = delete;
  JobRunner& operator=(const JobRunner&) = delete;

  virtual void submit(std::unique_ptr<DiskJob> job) = 0;
  // Takes what has finished. wake_fd() is readable when there is some.
  virtual void collect(std::vector<std::unique_ptr<DiskJob>>& finished) = 0;
  // Blocks until at least one job finished. Requires: one was submitted and not collected.
  virtual void collect_wait(std::vector<std::unique_ptr<DiskJob>>& finished) = 0;
  virtual int wake_fd() const = 0;
  // Makes wake_fd() readable.
  virtual void notify() = 0;
  virtual Disk& disk() = 0;
};

// Error: the disk refused to be attached; `disk` is given back untouched.
Result<std::unique_ptr<JobRunner>> make_thread_runner(std::unique_ptr<Disk>& disk,
                                                      const DiskEngine::Limits& limits);
Result<std::unique_ptr<JobRunner>> make_inline_runner(std::unique_ptr<Disk>& disk,
                                                      const DiskEngine::Limits& limits);

}  // namespace skv
