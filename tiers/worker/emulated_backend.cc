#include "tiers/worker/emulated_backend.h"

#include <utility>

namespace skv {

Result<DeviceBackend::NewSlab> EmulatedBackend::create_slab(SlabId slab, uint64_t bytes) {
  Result<UniqueFd> memory = create_shared_memory("skvd-device-slab", bytes);
  if (!memory.ok()) return memory.error();
  Result<MappedMemory> mapping =
      MappedMemory::map(memory.value().get(), bytes, MappedMemory::Access::kReadWrite);
  if (!mapping.ok()) return mapping.error();
  NewSlab made;
  made.base = mapping.value().data();
  made.descriptor = std::move(memory).value();
  slabs_.emplace(slab, std::move(mapping).value());
  return made;
}

void EmulatedBackend::destroy_slab(SlabId slab) { slabs_.erase(slab); }

Result<void> EmulatedBackend::map_arena(SpaceId space, UniqueFd arena, uint64_t bytes) {
  Result<MappedMemory> mapping =
      MappedMemory::map(arena.get(), bytes, MappedMemory::Access::kReadOnly);
  if (!mapping.ok()) return mapping.error();
  arenas_[space] = std::move(mapping).value();
  return {};
}

void EmulatedBackend::unmap_arena(SpaceId space) { arenas_.erase(space); }

void EmulatedBackend::start(const Batch& batch) {
  copier_.run(batch.moves, arenas_.at(batch.space).data(), slabs_.at(batch.slab).data());
  done_.push_back(batch.ticket);
}

std::vector<PoolTicket> EmulatedBackend::poll() { return std::exchange(done_, {}); }

Result<std::unique_ptr<DeviceBackend>> make_device_backend(const std::string& kind,
                                                           uint32_t copy_threads) {
  if (kind == "emulated") return std::unique_ptr<DeviceBackend>(new EmulatedBackend(copy_threads));
  if (kind == "cuda") {
    return Error{ErrorCode::kUnsupported,
                 "cuda device: not served by this build; use device.kind = emulated or none"};
  }
  return Error{ErrorCode::kUnsupported,
               "device kind '" + kind + "' is not one of none, emulated, cuda"};
}

}  // namespace skv
