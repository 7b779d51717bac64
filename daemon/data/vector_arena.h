#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>

#include "ipc/identity/model.h"
#include "ipc/types/ids.h"
#include "ipc/types/result.h"
#include "kernels/rank_pages.h"
#include "tiers/arena_warmer.h"
#include "tiers/extent_list.h"
#include "tiers/host_arena.h"

namespace skv {

// The vector pages of one space: one sealed memfd of fixed length, sparse, which clients of the
// space map for reading. Contexts that go over the same stored sentences share full pages.
//
// Charge  pages are charged in slabs, up to the length; where it is full, a page is refused and the
//         feed that wanted it covers no more. A slab is a huge page, where the system has some: the
//         warmer makes it one, behind the first writes.
// Thread  data thread.
// Owns    the memory; pages hold this object, so it lives until the last of them is gone.
class VectorArena final : public PageMemory {
 public:
  // `bytes` is rounded up to slabs.
  static Result<std::shared_ptr<VectorArena>> create(uint64_t bytes,
                                                     std::shared_ptr<ArenaWarmer> warmer);

  int read_only_fd() const { return memory_->read_only_fd(); }
  uint64_t bytes() const { return memory_->memory().size(); }
  uint64_t charged_bytes() const { return places_.charged_slabs() * kSlabBytes; }
  uint64_t offset_of(const std::byte* page) const {
    return static_cast<uint64_t>(page - memory_->memory().data());
  }

  std::byte* allocate(uint64_t bytes) override;
  void release(std::byte* memory, uint64_t bytes) override;

  // What decides the bytes of a full page: its sentences and the index. A uid stands for one stored
  // sentence of one model for as long as the daemon lives.
  struct PageKey {
    IndexDescriptor index;
    std::array<SentenceUid, kPageSentences> sentences{};
    friend bool operator==(const PageKey&, const PageKey&) = default;
  };
  std::shared_ptr<const VectorPage> find(const PageKey& key) const;
  // The first page of a key stays the one that is shared.
  void share(const PageKey& key, const std::shared_ptr<const VectorPage>& page);

 private:
  static constexpr uint64_t kSlabBytes = kHugePageBytes;
  struct PageKeyHash {
    size_t operator()(const PageKey& key) const;
  };

  VectorArena(std::unique_ptr<HostArena> memory, std::shared_ptr<ArenaWarmer> warmer);
  std::span<std::byte> slab(uint64_t index) const {
    return memory_->memory().subspan(index * kSlabBytes, kSlabBytes);
  }

  std::unique_ptr<HostArena> memory_;
  std::shared_ptr<ArenaWarmer> warmer_;  // of slabs in use only
  ExtentList places_;
  std::unordered_map<PageKey, std::weak_ptr<const VectorPage>, PageKeyHash> full_;
  size_t sweep_at_ = 64;  // entries of full_ at which those of pages that are gone are dropped
};

}  // namespace skv
