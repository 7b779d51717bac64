#include "tiers/slot_pool_none.h"

#include "ipc/types/check.h"

namespace skv {

Result<void> NoneSlotPool::map_arena(SpaceId /*space*/, int /*arena*/, uint64_t /*bytes*/) {
  return {};
}

void NoneSlotPool::unmap_arena(SpaceId /*space*/) {}

Result<void> NoneSlotPool::create_slab(PoolTicket /*ticket*/, uint64_t /*bytes*/) {
  return Error{ErrorCode::kUnsupported,
               "device.kind = none has no slabs: windows read host memory in place"};
}

void NoneSlotPool::destroy_slab(SlabId /*slab*/) {}

size_t NoneSlotPool::submit(PoolTicket /*ticket*/,
                            SpaceId /*space*/,
                            SlabId /*slab*/,
                            std::span<const Move> /*moves*/) {
  SKV_CHECK(false, "moves without a device: has_slabs() said so");
  return 0;
}

}  // namespace skv
