#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ipc/types/result.h"
#include "tiers/disk.h"

namespace skv {

// The file (or block device) of a store: locked for one opener, O_DIRECT where the file system
// allows it, preallocated where it is new.
//
// Thread  any: only explicit-offset calls.
// Owns    the descriptor and with it the lock.
class DiskFile {
 public:
  // Makes an empty file `file_bytes` long. Error: kBusy (another opener holds the lock), kIo,
  // kNoSpace.
  static Result<std::shared_ptr<DiskFile>> open(const std::string& path, uint64_t file_bytes);
  ~DiskFile();
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  int fd() const { return fd_; }
  bool direct() const { return direct_; }
  uint64_t bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

  Result<void> read(uint64_t offset, std::span<std::byte> bytes) const;
  Result<void> write(uint64_t offset, std::span<const std::byte> bytes) const;
  Result<void> sync() const;

 private:
  DiskFile() = default;
  Result<void> open_or_create(uint64_t file_bytes);
  Error failed(const std::string& what, int error) const;

  std::string path_;
  int fd_ = -1;
  bool direct_ = false;
  uint64_t bytes_ = 0;
};

std::unique_ptr<Disk> make_uring_disk(std::shared_ptr<DiskFile> file);
std::unique_ptr<Disk> make_thread_disk(std::shared_ptr<DiskFile> file, uint32_t threads);

}  // namespace skv
