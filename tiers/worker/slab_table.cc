#include "tiers/worker/slab_table.h"

#include <string>
#include <utility>

namespace skv {

SlabTable::SlabTable(std::unique_ptr<DeviceBackend> backend, uint64_t budget_bytes)
    : backend_(std::move(backend)), budget_bytes_(budget_bytes) {}

Result<void> SlabTable::map_arena(SpaceId space, UniqueFd arena, uint64_t bytes) {
  if (Result<void> mapped = backend_->map_arena(space, std::move(arena), bytes); !mapped.ok()) {
    return mapped;
  }
  arenas_[space] = bytes;
  return {};
}

void SlabTable::unmap_arena(SpaceId space) {
  if (arenas_.erase(space) > 0) backend_->unmap_arena(space);
}

Result<DeviceBackend::NewSlab> SlabTable::create_slab(SlabId slab, uint64_t bytes) {
  if (bytes == 0 || slabs_.contains(slab)) {
    return Error{ErrorCode::kInvalidArgument, "slab " + std::to_string(raw(slab)) + " of " +
                                                  std::to_string(bytes) +
                                                  " bytes: empty, or the id is taken"};
  }
  if (bytes > budget_bytes_ - used_bytes_) return no_room(bytes, used_bytes_, budget_bytes_);
  Result<DeviceBackend::NewSlab> made = backend_->create_slab(slab, bytes);
  if (!made.ok()) return made;
  slabs_.emplace(slab, bytes);
  used_bytes_ += bytes;
  return made;
}

void SlabTable::destroy_slab(SlabId slab) {
  const auto found = slabs_.find(slab);
  if (found == slabs_.end()) return;
  used_bytes_ -= found->second;
  slabs_.erase(found);
  backend_->destroy_slab(slab);
}

Result<void> SlabTable::start(const DeviceBackend::Batch& batch) {
  const auto slab = slabs_.find(batch.slab);
  const auto arena = arenas_.find(batch.space);
  if (slab == slabs_.end() || arena == arenas_.end()) {
    return Error{ErrorCode::kInvalidArgument,
                 "moves from space " + std::to_string(raw(batch.space)) + " to slab " +
                     std::to_string(raw(batch.slab)) + ": one of the two is unknown"};
  }
  for (const SlotPool::Move& move : batch.moves) {
    if (!range_inside(move.from, move.bytes, arena->second) ||
        !range_inside(move.to, move.bytes, slab->second)) {
      return Error{ErrorCode::kInvalidArgument,
                   "a move of " + std::to_string(move.bytes) + " bytes from " +
                       std::to_string(move.from) + " to " + std::to_string(move.to) +
                       " leaves an arena of " + std::to_string(arena->second) + " or a slab of " +
                       std::to_string(slab->second) + " bytes"};
    }
  }
  backend_->start(batch);
  return {};
}

}  // namespace skv
