#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ipc/types/result.h"

namespace skv {

// One request at a disk. Stays where it is until it comes back from wait().
struct DiskRequest {
  enum class Kind : uint8_t { kRead = 0, kWrite = 1, kSync = 2 };
  Kind kind = Kind::kRead;
  uint64_t offset = 0;         // multiple of 4 KiB; not for kSync
  std::vector<iovec> buffers;  // each at a multiple of 4 KiB, whole 4 KiB; at most kBuffersMax
  int64_t result = 0;          // bytes done, maybe fewer than asked; or -errno
  void* owner = nullptr;       // whose it is; the disk does not look at it

  static constexpr size_t kBuffersMax = 256;
};

// The file or device below an NvmeStore: io_uring, a thread pool, or a simulation with faults. Like
// the system it promises little: a request may do less than asked, or fail. DiskEngine makes
// transfers of it.
//
// Thread  attach(), submit(), flush() and wait() on the one thread that works the disk; wake() on
// any;
//         the *_now() functions block, and may run on another thread (start-up, the space table).
class Disk {
 public:
  Disk() = default;
  virtual ~Disk() = default;
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  virtual std::string backend() const = 0;  // "io_uring", "threads", "simulated"
  virtual bool direct() const = 0;          // page cache is not in the way
  virtual uint64_t bytes() const = 0;

  // First call of the working thread. `depth`: most requests submitted and not yet back. Error: the
  // system refuses this backend.
  virtual Result<void> attach(uint32_t depth) = 0;
  // False: its queue has no place now; again after a wait().
  [[nodiscard]] virtual bool submit(DiskRequest& request) = 0;
  // Hands on what was submitted, and does not wait. wait() does that too.
  virtual void flush() {}
  // Appends what has completed. `block`: waits until there is something, or wake().
  virtual void wait(bool block, std::vector<DiskRequest*>& completed) = 0;
  virtual void wake() = 0;

  // All of `bytes` or an error; offset and size multiples of 4 KiB, memory aligned likewise.
  virtual Result<void> read_now(uint64_t offset, std::span<std::byte> bytes) = 0;
  virtual Result<void> write_now(uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual Result<void> sync_now() = 0;
};

}  // namespace skv
