#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ipc/shared_memory.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// The memory of one space: a memfd of fixed length, sparse, sealed GROW|SHRINK|SEAL and 0600,
// mapped read-write here; clients get a descriptor that can only be mapped for reading.
//
// Thread  created and punched on the loop thread; the bytes belong to whoever holds an extent.
// Owns    both descriptors and the mapping.
class HostArena {
 public:
  // `step_bytes`: in what units memory is used and punched. Steps of whole huge pages get huge
  // pages where the system has them for shared memory.
  static Result<std::unique_ptr<HostArena>> create(uint64_t bytes, uint64_t step_bytes);

  int fd() const { return fd_.get(); }
  int read_only_fd() const { return read_only_fd_.get(); }
  std::span<std::byte> memory() const { return memory_.span(); }

  // Gives the pages back to the system; from then on they read as zeros, in every mapping.
  Result<void> punch(uint64_t offset, uint64_t bytes) {
    return punch_hole(fd_.get(), offset, bytes);
  }

 private:
  HostArena() = default;

  UniqueFd fd_;
  UniqueFd read_only_fd_;
  MappedMemory memory_;
};

}  // namespace skv
