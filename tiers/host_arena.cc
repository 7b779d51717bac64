#include "tiers/host_arena.h"

#include <sys/mman.h>

#include <utility>

namespace skv {
Result<std::unique_ptr<HostArena>> HostArena::create(uint64_t bytes, uint64_t step_bytes) {
  std::unique_ptr<HostArena> arena(new HostArena);
  Result<UniqueFd> fd = create_shared_memory("skv-host", bytes);
  if (!fd.ok()) {
    return fd.error();
  }
  arena->fd_ = std::move(fd).value();
  Result<UniqueFd> read_only = reopen_read_only(arena->fd_.get());
  if (!read_only.ok()) {
    return read_only.error();
  }
  arena->read_only_fd_ = std::move(read_only).value();
  Result<MappedMemory> memory =
      MappedMemory::map(arena->fd_.get(), bytes, MappedMemory::Access::kReadWrite);
  if (!memory.ok()) {
    return memory.error();
  }
  arena->memory_ = std::move(memory).value();
  // Neither in a core dump nor in a child: prompts can be told from KV bytes.
  (void)madvise(arena->memory_.data(), bytes, MADV_DONTDUMP);
  (void)madvise(arena->memory_.data(), bytes, MADV_DONTFORK);
  // One fault and one entry of the page table for 2 MiB. Smaller steps would be charged less than
  // they take.
  if (step_bytes % kHugePageBytes == 0) {
    (void)madvise(arena->memory_.data(), bytes, MADV_HUGEPAGE);
  }
  return arena;
}

}  // namespace skv
