#pragma once

#include "tiers/slot_pool.h"

namespace skv {

// No device: windows read blocks in place from the host arenas, nothing is copied for them.
class NoneSlotPool final : public SlotPool {
 public:
  const char* kind() const override { return "none"; }
  std::array<uint8_t, 16> device_uuid() const override { return {}; }
  bool has_slabs() const override { return false; }
  uint64_t budget_bytes() const override { return 0; }
  uint64_t used_bytes() const override { return 0; }
  Result<void> map_arena(SpaceId space, int arena, uint64_t bytes) override;
  void unmap_arena(SpaceId space) override;
  Result<void> create_slab(PoolTicket ticket, uint64_t bytes) override;
  void destroy_slab(SlabId slab) override;
  size_t submit(PoolTicket ticket,
                SpaceId space,
                SlabId slab,
                std::span<const Move> moves) override;
  Poll poll() override { return {}; }
  int wake_descriptor() const override { return -1; }
};

}  // namespace skv
