#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace boost::interprocess {
class mapped_region;
}

namespace skv {

// Memory that several processes map. It has no name in the file system: who holds a descriptor may
// map it. All of it is sealed GROW|SHRINK|SEAL, so no process can truncate it under another's
// reads, and mode 0600, so that another uid cannot re-open a read-only descriptor for writing.

// What one entry of a CPU's page table can span where the system has such pages.
inline constexpr uint64_t kHugePageBytes = 2ULL << 20;

// A new zeroed memfd of `bytes`, sparse: pages cost memory when they are first written. `name`
// shows up in /proc only.
Result<UniqueFd> create_shared_memory(const std::string& name, uint64_t bytes);

// A second descriptor of the same memory that can only read, and never be made to write (not even
// by mprotect of its mappings). For clients.
Result<UniqueFd> reopen_read_only(int fd);

Result<uint64_t> shared_memory_bytes(int fd);

// Gives the pages of [offset, offset + bytes) back to the system; they read as zeros afterwards.
// Requires: both are multiples of 4 KiB. The descriptor must be writable.
Result<void> punch_hole(int fd, uint64_t offset, uint64_t bytes);

// Whether memory that a client made may be mapped by us: a memfd on tmpfs (no hugetlb: an empty
// pool would be a SIGBUS; no file system that could block us), sealed GROW and SHRINK (truncation
// would be a SIGBUS), and of exactly `bytes`. kInvalidArgument or kTooLarge otherwise.
Result<void> check_client_memfd(int fd, uint64_t bytes);

// A mapping of shared memory; unmapped at the end. The descriptor may be closed before.
//
// Thread  whoever; what lies in it has its own rules.
class MappedMemory {
 public:
  enum class Access : uint8_t { kReadOnly, kReadWrite };

  MappedMemory();
  ~MappedMemory();
  MappedMemory(MappedMemory&&) noexcept;
  MappedMemory& operator=(MappedMemory&&) noexcept;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  // [0, bytes) of the memory. `bytes` must be above 0. From kHugePageBytes on at a multiple of it,
  // where there is room: elsewhere no page of the memory can be mapped as a huge one.
  static Result<MappedMemory> map(int fd, uint64_t bytes, Access access);

  bool valid() const { return data_ != nullptr; }
  std::byte* data() const { return data_; }  // writing a kReadOnly mapping is a SIGSEGV
  uint64_t bytes() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  std::unique_ptr<boost::interprocess::mapped_region> region_;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace skv
