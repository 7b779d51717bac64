#pragma once

#include <unordered_map>

#include "ipc/shared_memory.h"
#include "tiers/move_copier.h"
#include "tiers/worker/device_backend.h"

namespace skv {

// A device made of ordinary memory: slabs are sealed memfds, a batch is copied by MoveCopier.
class EmulatedBackend final : public DeviceBackend {
 public:
  explicit EmulatedBackend(uint32_t copy_threads) : copier_(copy_threads) {}
  Result<NewSlab> create_slab(SlabId slab, uint64_t bytes) override;
  void destroy_slab(SlabId slab) override;
  Result<void> map_arena(SpaceId space, UniqueFd arena, uint64_t bytes) override;
  void unmap_arena(SpaceId space) override;
  void start(const Batch& batch) override;
  std::vector<PoolTicket> poll() override;

 private:
  std::unordered_map<SlabId, MappedMemory> slabs_;
  std::unordered_map<SpaceId, MappedMemory> arenas_;  // read-only
  std::vector<PoolTicket> done_;
  MoveCopier copier_;
};

}  // namespace skv
