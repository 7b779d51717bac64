#include "tiers/slot_pool_inline.h"

#include <fcntl.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "tiers/worker/emulated_backend.h"
#include "tiers/worker/slab_table.h"

namespace skv {

InlineSlotPool::InlineSlotPool(const Options& options) : options_(options) { start_device(); }

InlineSlotPool::~InlineSlotPool() = default;

void InlineSlotPool::start_device() {
  table_ = std::make_unique<SlabTable>(std::make_unique<EmulatedBackend>(options_.copy_threads),
                                       options_.budget_bytes);
}

uint64_t InlineSlotPool::budget_bytes() const { return options_.budget_bytes; }

uint64_t InlineSlotPool::used_bytes() const { return table_ ? table_->used_bytes() : 0; }

Result<void> InlineSlotPool::map_arena(SpaceId space, int arena, uint64_t bytes) {
  UniqueFd copy(::fcntl(arena, F_DUPFD_CLOEXEC, 0));
  UniqueFd kept(::fcntl(arena, F_DUPFD_CLOEXEC, 0));
  if (!copy || !kept) return Error{ErrorCode::kIo, "map_arena: no descriptor left"};
  if (table_) {
    if (Result<void> mapped = table_->map_arena(space, std::move(copy), bytes); !mapped.ok()) {
      return mapped;
    }
  }
  std::erase_if(arenas_, [&](const auto& entry) { return entry.first == space; });
  arenas_.emplace_back(space, Arena{std::move(kept), bytes});
  return {};
}

void InlineSlotPool::unmap_arena(SpaceId space) {
  std::erase_if(arenas_, [&](const auto& entry) { return entry.first == space; });
  if (table_) table_->unmap_arena(space);
}

Result<void> InlineSlotPool::create_slab(PoolTicket ticket, uint64_t bytes) {
  if (!table_) {
    start_device();
    for (const auto& [space, arena] : arenas_) {
      UniqueFd copy(::fcntl(arena.descriptor.get(), F_DUPFD_CLOEXEC, 0));
      if (Result<void> mapped = table_->map_arena(space, std::move(copy), arena.bytes);
          !mapped.ok()) {
        return mapped;
      }
    }
  }
  const SlabId id{next_slab_++};
  Result<DeviceBackend::NewSlab> made = table_->create_slab(id, bytes);
  if (!made.ok()) return made.error();
  completions_.push_back(Completion{
      ticket, {}, Slab{id, bytes, std::move(made.value().descriptor), made.value().base}});
  return {};
}

void InlineSlotPool::destroy_slab(SlabId slab) {
  if (table_) table_->destroy_slab(slab);
}

size_t InlineSlotPool::submit(PoolTicket ticket,
                              SpaceId space,
                              SlabId slab,
                              std::span<const Move> moves) {
  if (!table_) {
    completions_.push_back(
        Completion{ticket, Error{ErrorCode::kStale, "the device of this slab is gone"}, {}});
    return moves.size();
  }
  const std::span<const Move> taken =
      moves.first(std::min(moves.size(), options_.moves_per_submit));
  completions_.push_back(Completion{
      ticket, table_->start(DeviceBackend::Batch{ticket, space, slab, taken}), std::nullopt});
  table_->poll();  // the emulated backend has copied by now
  return taken.size();
}

SlotPool::Poll InlineSlotPool::poll() {
  Poll result;
  const size_t count = options_.hold_completions ? released_ : completions_.size();
  const auto end = completions_.begin() + static_cast<std::ptrdiff_t>(count);
  result.completions.assign(std::make_move_iterator(completions_.begin()),
                            std::make_move_iterator(end));
  completions_.erase(completions_.begin(), end);
  released_ = 0;
  result.lost = std::exchange(lost_, std::nullopt);
  return result;
}

void InlineSlotPool::lose_device() {
  table_.reset();
  for (Completion& completion : completions_) {
    completion.status = Error{ErrorCode::kStale, "the device was lost"};
    completion.slab.reset();
  }
  released_ = completions_.size();
  lost_ = "the device was lost";
}

}  // namespace skv
