#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "tiers/disk_file.h"

namespace skv {
namespace {

// preadv, pwritev and fdatasync on a few threads, for systems that refuse io_uring (containers,
// kernel.io_uring_disabled). One mutex for both queues: a request takes tens of microseconds at the
// disk, so it is never contended for long.
class ThreadDisk final : public Disk {
 public:
  ThreadDisk(std::shared_ptr<DiskFile> file, uint32_t threads)
      : file_(std::move(file)), thread_count_(threads) {}
  ~ThreadDisk() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }
  ThreadDisk(const ThreadDisk&) = delete;
  ThreadDisk& operator=(const ThreadDisk&) = delete;

  std::string backend() const override { return "threads"; }
  bool direct() const override { return file_->direct(); }
  uint64_t bytes() const override { return file_->bytes(); }

  Result<void> attach(uint32_t /*depth*/) override {
    for (uint32_t i = 0; i < thread_count_; ++i) {
      threads_.emplace_back([this] { work(); });
    }
    return {};
  }

  bool submit(DiskRequest& request) override {
    {
      const std::lock_guard lock(mutex_);
      submitted_.push_back(&request);
    }
    work_.notify_one();
    return true;
  }

  void wait(bool block, std::vector<DiskRequest*>& completed) override {
    std::unique_lock lock(mutex_);
    if (block) {
      done_.wait(lock, [this] { return woken_ || !completed_.empty(); });
    }
    woken_ = false;
    completed.insert(completed.end(), completed_.begin(), completed_.end());
    completed_.clear();
  }

  void wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    done_.notify_one();
  }

  Result<void> read_now(uint64_t offset, std::span<std::byte> bytes) override {
    return file_->read(offset, bytes);
  }
  Result<void> write_now(uint64_t offset, std::span<const std::byte> bytes) override {
    return file_->write(offset, bytes);
  }
  Result<void> sync_now() override { return file_->sync(); }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || !submitted_.empty(); });
      if (submitted_.empty()) {
        return;
      }
      DiskRequest* const request = submitted_.front();
      submitted_.pop_front();
      lock.unlock();
      request->result = run(*request);
      lock.lock();
      completed_.push_back(request);
      done_.notify_one();
    }
  }

  int64_t run(const DiskRequest& request) const {
    const auto offset = static_cast<off_t>(request.offset);
    const auto count = static_cast<int>(request.buffers.size());
    int64_t result = 0;
    switch (request.kind) {
      case DiskRequest::Kind::kRead:
        result = preadv(file_->fd(), request.buffers.data(), count, offset);
        break;
      case DiskRequest::Kind::kWrite:
        result = pwritev(file_->fd(), request.buffers.data(), count, offset);
        break;
      case DiskRequest::Kind::kSync:
        result = fdatasync(file_->fd());
        break;
    }
    return result < 0 ? -errno : result;
  }

  std::shared_ptr<DiskFile> file_;
  uint32_t thread_count_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards all below
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<DiskRequest*> submitted_;
  std::vector<DiskRequest*> completed_;
  bool woken_ = false;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<Disk> make_thread_disk(std::shared_ptr<DiskFile> file, uint32_t threads) {
  return std::make_unique<ThreadDisk>(std::move(file), threads);
}

}  // namespace skv
