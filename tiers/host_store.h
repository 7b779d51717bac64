#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

// A place in the arena of a space: whole 4 KiB pages.
struct HostExtent {
  uint64_t offset = 0;  // bytes from the arena's start
  uint64_t bytes = 0;
  friend bool operator==(const HostExtent&, const HostExtent&) = default;
};

// The host tier's memory: chunks of bodies in one arena per space, under one budget.
//
// Shape   an arena is a memfd as long as the budget, sparse, sealed (GROW|SHRINK|SEAL), 0600; its
//         clients get a read-only descriptor. Extents are placed by best fit and coalesced on free,
//         the same way each run. First use of a slab (a step of slab_bytes) charges it to the
//         budget; when its last extent goes, its pages are punched (they read as zeros) and the
//         charge is given back. A client that reads a hole of its mapping gives that page memory
//         again, uncharged, until the slab is next punched; the cgroup's limit bounds that.
// Units   bytes; an extent is storage_bytes() of its chunk.
// Warm    the first touch of a page costs more than the copy into it. So up to warm_bytes of slabs
//         that nothing uses have their pages: those that emptied last, and those that will be
//         charged next, which a thread of this store fills ahead (ArenaWarmer). They belong to
//         their space like any other slab, and go as soon as the budget needs them.
// Limits  charged + kept <= budget, over all spaces, but for a slab that is being filled just now.
// One extent per (sentence, chunk). Thread  loop thread. The bytes of a reserved extent belong to
// whoever the loop gave them to (data
//         thread, NVMe ring thread) until publish() or erase().
// Owns    memory, mappings and descriptors; an arena lives as long as the store, so memory of one
//         space never becomes another's.
// Errors  a full tier is an outcome (nullopt). kIo: the system refused a memfd or mapping.
class HostStore {
 public:
  struct Options {
    uint64_t budget_bytes = 0;       // rounded down to slabs; at least one
    uint64_t slab_bytes = 2u << 20;  // power of two, >= 4 KiB
    uint64_t warm_bytes = 0;         // rounded down to slabs
  };
  struct Arena {
    int read_only_fd = -1;        // for SCM_RIGHTS; owned by the store
    int fd = -1;                  // read-write, for the device worker; owned by the store
    std::span<std::byte> memory;  // read-write mapping of the whole arena
  };
  struct Stats {
    uint64_t budget_bytes = 0;
    uint64_t used_bytes = 0;     // extents
    uint64_t charged_bytes = 0;  // slabs
    uint64_t peak_charged_bytes = 0;
    uint64_t kept_bytes = 0;  // slabs with pages that nothing uses
    uint64_t extents = 0;
    uint64_t published = 0;
    uint64_t refused = 0;  // reserve() that found no room
    uint32_t arenas = 0;
  };

  static Result<std::unique_ptr<HostStore>> create(const Options& options);
  virtual ~HostStore() = default;
  HostStore(const HostStore&) = delete;
  HostStore& operator=(const HostStore&) = delete;

  // The space's arena, made on first use.
  virtual Result<Arena> arena(SpaceId space) = 0;

  // Room for `bytes` (rounded up to 4 KiB) of a chunk; what is in it is undefined. nullopt: the
  // budget is full or too scattered; erase something and try again.
  // Requires: arena(space) was ok; (uid, chunk) has no extent; bytes > 0.
  virtual std::optional<HostExtent> reserve(SpaceId space,
                                            SentenceUid uid,
                                            uint32_t chunk,
                                            uint64_t bytes) = 0;
  // Its bytes are there now: find() returns it. Requires: reserved.
  virtual void publish(SentenceUid uid, uint32_t chunk) = 0;
  // The published extent; nullopt: a miss.
  virtual std::optional<HostExtent> find(SentenceUid uid, uint32_t chunk) const = 0;
  // Reserved or published.
  virtual std::optional<HostExtent> extent(SentenceUid uid, uint32_t chunk) const = 0;
  // Gives the extent back. Requires: nobody reads or writes it any more. False: there was none.
  virtual bool erase(SentenceUid uid, uint32_t chunk) = 0;

  // The memory of an extent of this space.
  virtual std::span<std::byte> bytes(SpaceId space, const HostExtent& extent) = 0;

  // Waits until what is to be warm is. For tests and benchmarks.
  virtual void settle() = 0;

  virtual Stats stats() const = 0;
  virtual uint64_t space_used_bytes(SpaceId space) const = 0;

 protected:
  HostStore() = default;
};

}  // namespace skv
