#include <liburing.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "tiers/disk_file.h"

namespace skv {
namespace {

// io_uring with one issuer: the ring lives on the thread that attached. wake() is a write to an
// eventfd that the ring itself reads, so the thread sleeps in one place.
class UringDisk final : public Disk {
 public:
  explicit UringDisk(std::shared_ptr<DiskFile> file) : file_(std::move(file)) {}
  ~UringDisk() override {
    if (ring_made_) {
      io_uring_queue_exit(&ring_);
    }
    if (wake_fd_ >= 0) {
      close(wake_fd_);
    }
  }
  UringDisk(const UringDisk&) = delete;
  UringDisk& operator=(const UringDisk&) = delete;

  std::string backend() const override { return "io_uring"; }
  bool direct() const override { return file_->direct(); }
  uint64_t bytes() const override { return file_->bytes(); }

  Result<void> attach(uint32_t depth) override;
  bool submit(DiskRequest& request) override;
  // EINTR, EAGAIN, EBUSY: the entries stay in the ring, the next call hands them on.
  void flush() override { (void)io_uring_submit(&ring_); }
  void wait(bool block, std::vector<DiskRequest*>& completed) override;
  void wake() override {
    const uint64_t one = 1;
    (void)!write(wake_fd_, &one, sizeof one);
  }

  Result<void> read_now(uint64_t offset, std::span<std::byte> bytes) override {
    return file_->read(offset, bytes);
  }
  Result<void> write_now(uint64_t offset, std::span<const std::byte> bytes) override {
    return file_->write(offset, bytes);
  }
  Result<void> sync_now() override { return file_->sync(); }

 private:
  io_uring_sqe* entry();
  void arm_wake();

  std::shared_ptr<DiskFile> file_;
  io_uring ring_{};
  bool ring_made_ = false;
  bool file_registered_ = false;
  int wake_fd_ = -1;
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;
};

Result<void> UringDisk::attach(uint32_t depth) {
  // +2: the eventfd read, and one spare. The completion queue is twice that, so it never overflows.
  const uint32_t entries = depth + 2;
  int made = -EINVAL;
  for (const uint32_t flags : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0U}) {
    made = io_uring_queue_init(entries, &ring_, flags);  // Linux < 6.1 does not know the flags
    if (made != -EINVAL) {
      break;
    }
  }
  if (made < 0) {
    return Error{ErrorCode::kUnsupported,
                 std::string("io_uring is refused here: ") + std::strerror(-made)};
  }
  ring_made_ = true;
  wake_fd_ = eventfd(0, EFD_CLOEXEC);
  if (wake_fd_ < 0) {
    return Error{ErrorCode::kIo, std::string("eventfd: ") + std::strerror(errno)};
  }
  const int fd = file_->fd();
  const int registered = io_uring_register_files(&ring_, &fd, 1);
  file_registered_ = registered == 0;
  if (!file_registered_) {
    spdlog::info("nvme file {}: io_uring takes no registered file ({}): a little slower",
                 file_->path(), std::strerror(-registered));
  }
  arm_wake();
  return {};
}

// Null: the submission queue is full, and the system takes nothing from it now.
io_uring_sqe* UringDisk::entry() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {
    flush();
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void UringDisk::arm_wake() {
  io_uring_sqe* const sqe = entry();
  if (sqe == nullptr) {
    return;  // before the next wait
  }
  io_uring_prep_read(sqe, wake_fd_, &wake_count_, sizeof wake_count_, 0);
  io_uring_sqe_set_data(sqe, &wake_count_);
  wake_armed_ = true;
}

bool UringDisk::submit(DiskRequest& request) {
  io_uring_sqe* const sqe = entry();
  if (sqe == nullptr) {
    return false;
  }
  const int fd = file_registered_ ? 0 : file_->fd();
  const auto count = static_cast<unsigned>(request.buffers.size());
  switch (request.kind) {
    case DiskRequest::Kind::kRead:
      io_uring_prep_readv(sqe, fd, request.buffers.data(), count, request.offset);
      break;
    case DiskRequest::Kind::kWrite:
      io_uring_prep_writev(sqe, fd, request.buffers.data(), count, request.offset);
      break;
    case DiskRequest::Kind::kSync:
      io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
      break;
  }
  if (file_registered_) {
    sqe->flags |= IOSQE_FIXED_FILE;
  }
  io_uring_sqe_set_data(sqe, &request);
  return true;
}

void UringDisk::wait(bool block, std::vector<DiskRequest*>& completed) {
  if (!wake_armed_) {
    arm_wake();
  }
  // EINTR, EAGAIN, EBUSY: what is there is taken below, the rest next time. Without an entry for
  // the wake-up nobody could end the sleep.
  if (block && wake_armed_) {
    (void)io_uring_submit_and_wait(&ring_, 1);
  } else {
    (void)io_uring_submit_and_get_events(&ring_);
  }
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
    void* const data = io_uring_cqe_get_data(cqe);
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (data == &wake_count_) {
      wake_armed_ = false;
      continue;
    }
    auto* const request = static_cast<DiskRequest*>(data);
    request->result = result;
    completed.push_back(request);
  }
}

}  // namespace

std::unique_ptr<Disk> make_uring_disk(std::shared_ptr<DiskFile> file) {
  return std::make_unique<UringDisk>(std::move(file));
}

}  // namespace skv
