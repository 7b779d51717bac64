#include "tiers/job_runner.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

#include "ipc/types/check.h"

namespace skv {
namespace {

// An eventfd that merges wake-ups: raise() any number of times, clear() once.
class WakeUp {
 public:
  WakeUp() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    SKV_CHECK(fd_ >= 0, "eventfd: out of descriptors");
  }
  ~WakeUp() { close(fd_); }
  WakeUp(const WakeUp&) = delete;
  WakeUp& operator=(const WakeUp&) = delete;

  int fd() const { return fd_; }
  void raise() const {
    const uint64_t one = 1;
    (void)!write(fd_, &one, sizeof one);
  }
  void clear() const {
    uint64_t count = 0;
    (void)!read(fd_, &count, sizeof count);
  }
  void sleep() const {
    pollfd poll_on{.fd = fd_, .events = POLLIN, .revents = 0};
    (void)poll(&poll_on, 1, -1);
  }

 private:
  int fd_;
};

// The ring thread: owns the disk's queue, sleeps in the disk.
class ThreadRunner final : public JobRunner {
 public:
  ThreadRunner(std::unique_ptr<Disk>& disk, const DiskEngine::Limits& limits) : disk_(disk.get()) {
    std::promise<Result<void>> attached;
    std::future<Result<void>> answer = attached.get_future();
    thread_ = std::thread([this, limits, said = std::move(attached)]() mutable {
      Result<void> result = disk_->attach(limits.requests);
      const bool refused = !result.ok();
      said.set_value(std::move(result));
      if (!refused) {
        run(limits);
      }
    });
    attached_ = answer.get();
    if (attached_.ok()) {
      owned_disk_ = std::move(disk);
    } else {
      thread_.join();
    }
  }
  ~ThreadRunner() override {
    if (attached_.ok()) {
      {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
      }
      disk_->wake();
      thread_.join();
    }
  }
  ThreadRunner(const ThreadRunner&) = delete;
  ThreadRunner& operator=(const ThreadRunner&) = delete;

  const Result<void>& attached() const { return attached_; }

  void submit(std::unique_ptr<DiskJob> job) override {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = submitted_.empty();
      submitted_.push_back(std::move(job));
    }
    if (first) {
      disk_->wake();  // for all that follow until they are taken
    }
  }

  void collect(std::vector<std::unique_ptr<DiskJob>>& finished) override {
    wake_up_.clear();
    const std::lock_guard lock(mutex_);
    std::move(finished_.begin(), finished_.end(), std::back_inserter(finished));
    finished_.clear();
  }

  void collect_wait(std::vector<std::unique_ptr<DiskJob>>& finished) override {
    const size_t before = finished.size();
    for (collect(finished); finished.size() == before; collect(finished)) {
      wake_up_.sleep();
    }
  }

  int wake_fd() const override { return wake_up_.fd(); }
  void notify() override { wake_up_.raise(); }
  Disk& disk() override { return *disk_; }

 private:
  void run(const DiskEngine::Limits& limits) {
    DiskEngine engine(*disk_, limits);
    std::vector<std::unique_ptr<DiskJob>> incoming;
    std::vector<std::unique_ptr<DiskJob>> finished;
    for (bool stopping = false;;) {
      {
        const std::lock_guard lock(mutex_);
        incoming.swap(submitted_);
        stopping = stopping_;
      }
      for (std::unique_ptr<DiskJob>& job : incoming) {
        engine.add(std::move(job));
      }
      incoming.clear();
      if (stopping && engine.idle()) {
        return;
      }
      engine.step(/*block=*/true, finished);
      if (!finished.empty()) {
        {
          const std::lock_guard lock(mutex_);
          std::move(finished.begin(), finished.end(), std::back_inserter(finished_));
        }
        finished.clear();
        wake_up_.raise();
      }
    }
  }

  Disk* disk_;
  std::unique_ptr<Disk> owned_disk_;
  Result<void> attached_;
  WakeUp wake_up_;
  std::mutex mutex_;  // the two queues: held for a swap or a push, never over a system call
  std::vector<std::unique_ptr<DiskJob>> submitted_;
  std::vector<std::unique_ptr<DiskJob>> finished_;
  bool stopping_ = false;
  std::thread thread_;
};

class InlineRunner final : public JobRunner {
 public:
  InlineRunner(std::unique_ptr<Disk> disk, const DiskEngine::Limits& limits)
      : disk_(std::move(disk)), engine_(*disk_, limits) {}
  ~InlineRunner() override {
    std::vector<std::unique_ptr<DiskJob>> finished;
    while (!engine_.idle()) {
      engine_.step(/*block=*/true, finished);
    }
  }
  InlineRunner(const InlineRunner&) = delete;
  InlineRunner& operator=(const InlineRunner&) = delete;

  void submit(std::unique_ptr<DiskJob> job) override {
    engine_.add(std::move(job));
    wake_up_.raise();
  }
  void collect(std::vector<std::unique_ptr<DiskJob>>& finished) override {
    wake_up_.clear();
    engine_.step(/*block=*/false, finished);
    if (!engine_.idle()) {
      wake_up_.raise();
    }
  }
  void collect_wait(std::vector<std::unique_ptr<DiskJob>>& finished) override {
    const size_t before = finished.size();
    while (finished.size() == before) {
      engine_.step(/*block=*/true, finished);
    }
  }
  int wake_fd() const override { return wake_up_.fd(); }
  void notify() override { wake_up_.raise(); }
  Disk& disk() override { return *disk_; }

 private:
  std::unique_ptr<Disk> disk_;
  DiskEngine engine_;
  WakeUp wake_up_;
};

}  // namespace

Result<std::unique_ptr<JobRunner>> make_thread_runner(std::unique_ptr<Disk>& disk,
                                                      const DiskEngine::Limits& limits) {
  auto runner = std::make_unique<ThreadRunner>(disk, limits);
  if (!runner->attached().ok()) {
    return runner->attached().error();
  }
  return std::unique_ptr<JobRunner>(std::move(runner));
}

Result<std::unique_ptr<JobRunner>> make_inline_runner(std::unique_ptr<Disk>& disk,
                                                      const DiskEngine::Limits& limits) {
  if (Result<void> attached = disk->attach(limits.requests); !attached.ok()) {
    return attached.error();
  }
  return std::unique_ptr<JobRunner>(std::make_unique<InlineRunner>(std::move(disk), limits));
}

}  // namespace skv
