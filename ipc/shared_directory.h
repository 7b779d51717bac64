#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ipc/layout/shared_directory.h"
#include "ipc/shared_memory.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"

namespace skv {

// The daemon's side of one space's shared directory (ipc/layout/shared_directory.h).
//
// Grows by a new memory: the old one is left as it was, and says that it was replaced. Its pages
// live as long as a client maps them.
//
// Limits  slots_max; a boundary that finds no place is left out, and the header says so. A search
//         looks at kSharedDirectoryProbesMax slots at most, whatever keys a client makes.
// Thread  one (loop).
// Owns    the memory.
class SharedDirectoryWriter {
 public:
  // `slots_max` is rounded down to a power of two.
  static Result<std::unique_ptr<SharedDirectoryWriter>> create(uint64_t slots_max);

  // What ends at this boundary now; nothing at all takes it out.
  void set(const Digest& boundary_key, const BoundaryEdges& edges);

  // A read-only descriptor of the present memory, borrowed until the next set().
  int read_only_fd() const { return read_only_.get(); }
  uint64_t bytes() const { return memory_.bytes(); }
  uint64_t generation() const { return header().generation; }
  uint64_t live() const { return live_; }
  bool incomplete() const { return header().incomplete.load(std::memory_order_relaxed) != 0; }

 private:
  explicit SharedDirectoryWriter(uint64_t slots_max) : slots_max_(slots_max) {}
  Result<void> open(uint64_t slot_count, uint64_t generation);
  bool make_room(uint64_t slots_min);
  bool insert(uint64_t tag, uint64_t state);
  void take_out(uint64_t at);
  SharedDirectorySlot* find(uint64_t tag) const;

  SharedDirectoryHeader& header() const {
    return *reinterpret_cast<SharedDirectoryHeader*>(memory_.data());
  }
  SharedDirectorySlot& slot(uint64_t index) const {
    auto* const slots = memory_.data() + kSharedDirectorySlotsOffset;
    return reinterpret_cast<SharedDirectorySlot*>(slots)[index & mask_];
  }

  uint64_t slots_max_;
  UniqueFd read_only_;
  MappedMemory memory_;
  uint64_t mask_ = 0;
  uint64_t used_ = 0;     // slots with a tag
  uint64_t live_ = 0;     // of them, with a boundary
  bool refused_ = false;  // the system gave no memory for a larger one
};

// A client's side: the longest cover of a prefix, without asking.
//
// Thread  any; const, and the writer may write meanwhile: what changes during a match may be seen
//         or not, edge by edge.
class SharedDirectoryReader {
 public:
  // Error: kProtocol, the memory is not a shared directory of this version.
  static Result<SharedDirectoryReader> open(MappedMemory memory);

  // The present memory of its space; else ask for the new one.
  bool current() const {
    return header().newest.load(std::memory_order_acquire) == header().generation;
  }
  bool incomplete() const { return header().incomplete.load(std::memory_order_relaxed) != 0; }

  struct Query {
    std::span<const uint64_t> tags;  // of the boundaries after 1, 2, ... blocks
    uint32_t block_tokens = 0;
    uint32_t session = 0;  // whose own puts are not pending
  };
  struct Cover {
    uint32_t hit_tokens = 0;
    uint32_t pending_tokens = 0;
    uint32_t host_tokens = 0;  // of hit_tokens
  };
  // Memory between calls, so that a match allocates nothing.
  struct Scratch {
    std::vector<uint32_t> edges;  // stored edges that start where the cover reaches, and host bits
    std::vector<uint8_t> on_path;
  };
  // As Directory::match: longest cover by stored sentences, ties by the longest first edge, then
  // the second, and so on.
  Cover match(const Query& query, Scratch& scratch) const;

  // Zero if nothing that is stored or pending ends there.
  uint64_t find(uint64_t tag) const;

 private:
  explicit SharedDirectoryReader(MappedMemory memory);
  const SharedDirectoryHeader& header() const {
    return *reinterpret_cast<const SharedDirectoryHeader*>(memory_.data());
  }

  MappedMemory memory_;
  const SharedDirectorySlot* slots_ = nullptr;
  uint64_t mask_ = 0;
};

}  // namespace skv
