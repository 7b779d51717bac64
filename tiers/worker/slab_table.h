#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "tiers/slot_pool.h"
#include "tiers/worker/device_backend.h"

namespace skv {

// The device side of a slot pool: what slabs and arenas there are, under one budget, and a check of
// every move against them before the backend sees it.
//
// The worker process wraps one behind its socket and ring; InlineSlotPool calls one directly.
//
// Thread  one.
class SlabTable {
 public:
  SlabTable(std::unique_ptr<DeviceBackend> backend, uint64_t budget_bytes);

  Result<void> map_arena(SpaceId space, UniqueFd arena, uint64_t bytes);
  void unmap_arena(SpaceId space);
  // kNoSpace with both numbers; kInvalidArgument: 0 bytes, an id that exists.
  Result<DeviceBackend::NewSlab> create_slab(SlabId slab, uint64_t bytes);
  void destroy_slab(SlabId slab);
  // Ok: it runs, its ticket comes from poll(). kInvalidArgument: nothing was moved.
  Result<void> start(const DeviceBackend::Batch& batch);
  std::vector<PoolTicket> poll() { return backend_->poll(); }

  bool has_arena(SpaceId space) const { return arenas_.contains(space); }
  bool has_slab(SlabId slab) const { return slabs_.contains(slab); }
  uint64_t budget_bytes() const { return budget_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }

 private:
  std::unique_ptr<DeviceBackend> backend_;
  uint64_t budget_bytes_;
  uint64_t used_bytes_ = 0;
  std::unordered_map<SlabId, uint64_t> slabs_;    // bytes
  std::unordered_map<SpaceId, uint64_t> arenas_;  // bytes
};

// Whether [offset, offset + bytes) lies in [0, limit), without overflow.
constexpr bool range_inside(uint64_t offset, uint64_t bytes, uint64_t limit) {
  return bytes <= limit && offset <= limit - bytes;
}

}  // namespace skv
