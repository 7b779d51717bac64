#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "ipc/unique_fd.h"
#include "tiers/slot_pool.h"

namespace skv {

// What a device has to be able to do, inside the worker process (or inline, in tests).
//
// A backend trusts its caller: SlabTable has checked every id and range before. It decides where
// slabs lie and how bytes get there. `emulated` copies at once, on the calling thread; a backend
// with streams starts the batch and reports it from poll().
//
// Thread  one.
// Owns    slabs and its mappings of the arenas.
class DeviceBackend {
 public:
  struct Batch {
    PoolTicket ticket{};
    SpaceId space{};
    SlabId slab{};
    std::span<const SlotPool::Move> moves;  // valid until start() returns
  };
  struct NewSlab {
    UniqueFd descriptor;
    std::byte* base = nullptr;  // if it is mapped in this process
  };

  virtual ~DeviceBackend() = default;
  virtual Result<NewSlab> create_slab(SlabId slab, uint64_t bytes) = 0;
  virtual void destroy_slab(SlabId slab) = 0;
  virtual Result<void> map_arena(SpaceId space, UniqueFd arena, uint64_t bytes) = 0;
  virtual void unmap_arena(SpaceId space) = 0;
  virtual void start(const Batch& batch) = 0;
  virtual std::vector<PoolTicket> poll() = 0;  // batches whose bytes are in their slabs
};

// `copy_threads`: of a backend whose processor copies. kUnsupported, by name: what this build does
// not serve.
Result<std::unique_ptr<DeviceBackend>> make_device_backend(const std::string& kind,
                                                           uint32_t copy_threads);

}  // namespace skv
