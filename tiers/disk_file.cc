#include "tiers/disk_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "tiers/aligned_buffer.h"

namespace skv {
namespace {

// 3 s in all. Tearing down a ring takes tens of milliseconds.
constexpr int kLockTries = 300;
constexpr std::chrono::milliseconds kLockPause{10};

}  // namespace

Error DiskFile::failed(const std::string& what, int error) const {
  return {error == ENOSPC || error == EDQUOT ? ErrorCode::kNoSpace : ErrorCode::kIo,
          "nvme file " + path_ + ": " + what + ": " + std::strerror(error)};
}

Result<std::shared_ptr<DiskFile>> DiskFile::open(const std::string& path, uint64_t file_bytes) {
  std::shared_ptr<DiskFile> file(new DiskFile);
  file->path_ = path;
  if (Result<void> opened = file->open_or_create(file_bytes); !opened.ok()) {
    return opened.error();
  }
  return file;
}

DiskFile::~DiskFile() {
  if (fd_ >= 0) {
    // Said aloud: an io_uring keeps a reference to the file for a while after it is closed.
    (void)flock(fd_, LOCK_UN);
    close(fd_);
  }
}

Result<void> DiskFile::open_or_create(uint64_t file_bytes) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC;
  fd_ = ::open(path_.c_str(), kFlags | O_DIRECT, 0600);
  direct_ = fd_ >= 0;
  if (fd_ < 0 && errno == EINVAL) {
    fd_ = ::open(path_.c_str(), kFlags, 0600);
  }
  if (fd_ < 0) {
    return failed("open", errno);
  }
  // The lock belongs to this open, so a second open in the same process is refused too.
  // A daemon that was killed lets go a moment after its end: the system takes its io_uring apart in
  // the background, and the lock with it.
  int locked = flock(fd_, LOCK_EX | LOCK_NB);
  for (int tries = 0; locked != 0 && errno == EWOULDBLOCK && tries < kLockTries; ++tries) {
    std::this_thread::sleep_for(kLockPause);
    locked = flock(fd_, LOCK_EX | LOCK_NB);
  }
  if (locked != 0) {
    if (errno == EWOULDBLOCK) {
      return Error{
          ErrorCode::kBusy,
          "nvme file " + path_ +
              " is in use by another daemon: stop that one, or give this one another path"};
    }
    return failed("flock", errno);
  }
  struct stat status {};
  if (fstat(fd_, &status) != 0) {
    return failed("fstat", errno);
  }
  if (S_ISBLK(status.st_mode)) {
    if (ioctl(fd_, BLKGETSIZE64, &bytes_) != 0) {
      return failed("BLKGETSIZE64", errno);
    }
  } else if (!S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kInvalidArgument,
                 "nvme file " + path_ + " is neither a file nor a block device"};
  } else if (status.st_size == 0) {
    // Asked first: fallocate takes all there is before it says that there is not enough.
    struct statvfs room {};
    const uint64_t free_bytes =
        fstatvfs(fd_, &room) == 0 ? uint64_t{room.f_bavail} * room.f_frsize : file_bytes;
    if (free_bytes < file_bytes) {
      return Error{ErrorCode::kNoSpace, "nvme file " + path_ + ": nvme.bytes is " +
                                            std::to_string(file_bytes) + ", the file system has " +
                                            std::to_string(free_bytes) + " free"};
    }
    if (fallocate(fd_, 0, 0, static_cast<off_t>(file_bytes)) != 0) {
      const int error = errno;
      if (error != EOPNOTSUPP) {
        if (ftruncate(fd_, 0) != 0) spdlog::warn("nvme file {}: cannot empty it again", path_);
        return failed("preallocating " + std::to_string(file_bytes) + " bytes", error);
      }
      spdlog::warn("nvme file {}: this file system cannot preallocate; it may run out of space",
                   path_);
      if (ftruncate(fd_, static_cast<off_t>(file_bytes)) != 0) {
        return failed("ftruncate", errno);
      }
    }
    bytes_ = file_bytes;
  } else {
    bytes_ = static_cast<uint64_t>(status.st_size);
  }
  // Some file systems take the flag and refuse the read.
  if (direct_ && bytes_ >= 4096) {
    const AlignedBuffer probe(4096);
    if (pread(fd_, probe.data(), 4096, 0) < 0 && errno == EINVAL) {
      direct_ = false;
      if (fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) & ~O_DIRECT) != 0) {
        return failed("clearing O_DIRECT", errno);
      }
    }
  }
  if (!direct_) {
    spdlog::warn("nvme file {}: no O_DIRECT on this file system; the page cache is in the way",
                 path_);
  }
  return {};
}

Result<void> DiskFile::read(uint64_t offset, std::span<std::byte> bytes) const {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t got =
        pread(fd_, bytes.data() + at, bytes.size() - at, static_cast<off_t>(offset + at));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      return got < 0 ? failed("read at " + std::to_string(offset + at), errno)
                     : failed("read behind its end at " + std::to_string(offset + at), EIO);
    }
    at += static_cast<size_t>(got);
  }
  return {};
}

Result<void> DiskFile::write(uint64_t offset, std::span<const std::byte> bytes) const {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t put =
        pwrite(fd_, bytes.data() + at, bytes.size() - at, static_cast<off_t>(offset + at));
    if (put < 0 && errno == EINTR) {
      continue;
    }
    if (put <= 0) {
      return failed("write at " + std::to_string(offset + at), put < 0 ? errno : EIO);
    }
    at += static_cast<size_t>(put);
  }
  return {};
}

Result<void> DiskFile::sync() const {
  while (fdatasync(fd_) != 0) {
    if (errno != EINTR) {
      return failed("fdatasync", errno);
    }
  }
  return {};
}

}  // namespace skv
