#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ipc/types/result.h"

namespace skv {

// The memory of one space: a memfd of fixed length, sparse, sealed GROW|SHRINK|SEAL and 0600,
// mapped read-write here; clients get a descriptor that can only be mapped for reading.
//
// Thread  created and punched on the loop thread; the bytes belong to whoever holds an extent.
// Owns    both descriptors and the mapping.
class HostArena {
 public:
  static Result<std::unique_ptr<HostArena>> create(uint64_t bytes);
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  int fd() const { return fd_; }
  int read_only_fd() const { return read_only_fd_; }
  std::span<std::byte> memory() const { return memory_; }

  // Gives the pages back to the system; from then on they read as zeros, in every mapping.
  Result<void> punch(uint64_t offset, uint64_t bytes);

 private:
  HostArena() = default;

  int fd_ = -1;
  int read_only_fd_ = -1;
  std::span<std::byte> memory_;
};

}  // namespace skv
