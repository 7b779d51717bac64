#include "daemon/data/vector_arena.h"

#include <algorithm>
#include <utility>

#include "ipc/layout/body_layout.h"
#include "ipc/layout/window.h"
#include "ipc/types/check.h"

namespace skv {

VectorArena::VectorArena(std::unique_ptr<HostArena> memory, std::shared_ptr<ArenaWarmer> warmer)
    : memory_(std::move(memory)),
      warmer_(std::move(warmer)),
      places_({.length_bytes = memory_->memory().size(),
               .slab_bytes = kSlabBytes,
               .page_bytes = kPageBytes}) {}

Result<std::shared_ptr<VectorArena>> VectorArena::create(uint64_t bytes,
                                                         std::shared_ptr<ArenaWarmer> warmer) {
  Result<std::unique_ptr<HostArena>> memory =
      HostArena::create(round_up(bytes, kSlabBytes), kSlabBytes);
  if (!memory.ok()) return memory.error();
  return std::shared_ptr<VectorArena>(
      new VectorArena(std::move(memory).value(), std::move(warmer)));
}

std::byte* VectorArena::allocate(uint64_t bytes) {
  const std::optional<ExtentList::Placed> placed =
      places_.allocate(round_up(bytes, kPageBytes), UINT32_MAX);
  if (!placed) return nullptr;
  if (placed->slabs_charged > 0) {
    const uint64_t end = placed->offset + bytes;
    for (uint64_t at = placed->offset / kSlabBytes; at * kSlabBytes < end; ++at) {
      warmer_->add(slab(at));
    }
  }
  return memory_->memory().data() + placed->offset;
}

void VectorArena::release(std::byte* memory, uint64_t bytes) {
  const ExtentList::SlabRange emptied =
      places_.release(offset_of(memory), round_up(bytes, kPageBytes));
  if (emptied.count == 0) return;
  // What is worked on after the punch would have its pages again.
  for (uint64_t i = 0; i < emptied.count; ++i) warmer_->drop(slab(emptied.first + i));
  const Result<void> punched =
      memory_->punch(emptied.first * kSlabBytes, emptied.count * kSlabBytes);
  SKV_CHECK(punched.ok(), punched.error().message.c_str());
}

size_t VectorArena::PageKeyHash::operator()(const PageKey& key) const {
  uint64_t hash = static_cast<uint64_t>(key.index.kind) << 8 | key.index.run_tokens;
  for (const SentenceUid uid : key.sentences) hash = (hash ^ raw(uid)) * 0x9E3779B97F4A7C15ULL;
  return static_cast<size_t>(hash ^ hash >> 32);
}

std::shared_ptr<const VectorPage> VectorArena::find(const PageKey& key) const {
  const auto found = full_.find(key);
  return found == full_.end() ? nullptr : found->second.lock();
}

void VectorArena::share(const PageKey& key, const std::shared_ptr<const VectorPage>& page) {
  if (full_.size() >= sweep_at_) {
    std::erase_if(full_, [](const auto& entry) { return entry.second.expired(); });
    sweep_at_ = std::max<size_t>(64, 2 * full_.size());
  }
  std::weak_ptr<const VectorPage>& place = full_[key];
  if (place.expired()) place = page;
}

}  // namespace skv
