#include "tiers/host_store.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "ipc/types/check.h"
#include "tiers/arena_warmer.h"
#include "tiers/extent_list.h"
#include "tiers/host_arena.h"

namespace skv {
namespace {

constexpr uint64_t kHostPageBytes = 4096;

struct ChunkKey {
  SentenceUid uid;
  uint32_t chunk;
  friend bool operator==(const ChunkKey&, const ChunkKey&) = default;
};
struct ChunkKeyHash {
  size_t operator()(const ChunkKey& key) const {
    return (raw(key.uid) * 0x9E3779B97F4A7C15U) ^ (key.chunk * 0xC2B2AE3D27D4EB4FU);
  }
};

class MemfdHostStore final : public HostStore {
 public:
  explicit MemfdHostStore(const Options& options)
      : slab_bytes_(options.slab_bytes),
        slabs_max_(static_cast<uint32_t>(options.budget_bytes / options.slab_bytes)),
        kept_max_(static_cast<uint32_t>(
            std::min<uint64_t>(options.warm_bytes / options.slab_bytes, slabs_max_))) {
    stats_.budget_bytes = slabs_max_ * slab_bytes_;
    if (kept_max_ > 0) warmer_.emplace();
  }

  Result<Arena> arena(SpaceId space) override {
    auto at = spaces_.find(space);
    if (at == spaces_.end()) {
      Result<std::unique_ptr<HostArena>> made = HostArena::create(stats_.budget_bytes, slab_bytes_);
      if (!made.ok()) {
        return made.error();
      }
      at = spaces_
               .emplace(space, Space{std::move(made).value(),
                                     ExtentList({.length_bytes = stats_.budget_bytes,
                                                 .slab_bytes = slab_bytes_,
                                                 .page_bytes = kHostPageBytes}),
                                     0})
               .first;
      ++stats_.arenas;
      warm_ahead(space, at->second);
    }
    const HostArena& memory = *at->second.arena;
    return Arena{memory.read_only_fd(), memory.fd(), memory.memory()};
  }

  std::optional<HostExtent> reserve(SpaceId space,
                                    SentenceUid uid,
                                    uint32_t chunk,
                                    uint64_t bytes) override {
    const auto at = spaces_.find(space);
    SKV_CHECK(at != spaces_.end(), "reserve() in a space without arena");
    SKV_CHECK(bytes > 0, "reserve() of nothing");
    SKV_CHECK(!chunks_.contains({uid, chunk}), "reserve() of a chunk that has an extent");
    if (bytes > stats_.budget_bytes) {
      ++stats_.refused;
      return std::nullopt;
    }
    const uint64_t rounded = (bytes + kHostPageBytes - 1) / kHostPageBytes * kHostPageBytes;
    const auto placed = at->second.extents.allocate(rounded, slabs_max_ - slabs_charged_);
    if (!placed) {
      ++stats_.refused;
      return std::nullopt;
    }
    slabs_charged_ += placed->slabs_charged;
    if (placed->slabs_kept > 0) {
      slabs_kept_ -= placed->slabs_kept;
      std::erase_if(kept_, [this](const Kept& each) {
        return !spaces_.at(each.space).extents.kept(each.slab);
      });
    }
    if (placed->slabs_charged > 0) {
      give_back_kept();
      warm_ahead(space, at->second);
    }
    const HostExtent extent{placed->offset, rounded};
    chunks_.emplace(ChunkKey{uid, chunk}, Chunk{space, extent, false});
    at->second.used_bytes += rounded;
    stats_.used_bytes += rounded;
    stats_.charged_bytes = slabs_charged_ * slab_bytes_;
    stats_.peak_charged_bytes = std::max(stats_.peak_charged_bytes, stats_.charged_bytes);
    ++stats_.extents;
    return extent;
  }

  void publish(SentenceUid uid, uint32_t chunk) override {
    const auto at = chunks_.find({uid, chunk});
    SKV_CHECK(at != chunks_.end(), "publish() of a chunk without extent");
    stats_.published += at->second.published ? 0 : 1;
    at->second.published = true;
  }

  std::optional<HostExtent> find(SentenceUid uid, uint32_t chunk) const override {
    const auto at = chunks_.find({uid, chunk});
    if (at == chunks_.end() || !at->second.published) {
      return std::nullopt;
    }
    return at->second.extent;
  }

  std::optional<HostExtent> extent(SentenceUid uid, uint32_t chunk) const override {
    const auto at = chunks_.find({uid, chunk});
    return at == chunks_.end() ? std::nullopt : std::optional(at->second.extent);
  }

  bool erase(SentenceUid uid, uint32_t chunk) override {
    const auto at = chunks_.find({uid, chunk});
    if (at == chunks_.end()) {
      return false;
    }
    const HostExtent extent = at->second.extent;
    Space& space = spaces_.at(at->second.space);
    const ExtentList::SlabRange emptied = space.extents.release(extent.offset, extent.bytes);
    for (uint64_t slab = emptied.first; slab < emptied.first + emptied.count; ++slab) {
      --slabs_charged_;
      // What is being filled just now would have its pages again after the punch.
      const bool filling = warmer_ && !warmer_->forget(slab_memory(space, slab));
      if (slabs_kept_ < kept_max_ || filling) {
        keep(at->second.space, space, slab);
      } else {
        punch(space, slab);
      }
    }
    space.used_bytes -= extent.bytes;
    stats_.used_bytes -= extent.bytes;
    stats_.charged_bytes = slabs_charged_ * slab_bytes_;
    stats_.published -= at->second.published ? 1 : 0;
    --stats_.extents;
    chunks_.erase(at);
    return true;
  }

  std::span<std::byte> bytes(SpaceId space, const HostExtent& extent) override {
    const auto at = spaces_.find(space);
    SKV_CHECK(at != spaces_.end(), "bytes() of a space without arena");
    const std::span<std::byte> memory = at->second.arena->memory();
    SKV_CHECK(extent.offset <= memory.size() && extent.bytes <= memory.size() - extent.offset,
              "extent outside its arena");
    return memory.subspan(extent.offset, extent.bytes);
  }

  void settle() override {
    if (warmer_) warmer_->settle();
  }

  Stats stats() const override {
    Stats stats = stats_;
    stats.kept_bytes = slabs_kept_ * slab_bytes_;
    return stats;
  }

  uint64_t space_used_bytes(SpaceId space) const override {
    const auto at = spaces_.find(space);
    return at == spaces_.end() ? 0 : at->second.used_bytes;
  }

 private:
  struct Space {
    std::unique_ptr<HostArena> arena;
    ExtentList extents;
    uint64_t used_bytes;
  };
  struct Kept {
    SpaceId space;
    uint64_t slab;
  };
  struct Chunk {
    SpaceId space;
    HostExtent extent;
    bool published;
  };

  std::span<std::byte> slab_memory(const Space& space, uint64_t slab) const {
    return space.arena->memory().subspan(slab * slab_bytes_, slab_bytes_);
  }

  void punch(Space& space, uint64_t slab) {
    const Result<void> punched = space.arena->punch(slab * slab_bytes_, slab_bytes_);
    // A memfd of ours without write seal can always be punched. If not, the memory is not given
    // back, and the budget would be a lie.
    SKV_CHECK(punched.ok(), punched.error().message.c_str());
  }

  void keep(SpaceId id, Space& space, uint64_t slab) {
    space.extents.keep(slab);
    kept_.push_back({id, slab});
    ++slabs_kept_;
  }

  // Has the slabs filled that will be charged next.
  void warm_ahead(SpaceId id, Space& space) {
    while (slabs_kept_ < kept_max_ && slabs_charged_ + slabs_kept_ < slabs_max_) {
      const std::optional<uint64_t> slab = space.extents.next_fresh();
      if (!slab) return;
      keep(id, space, *slab);
      warmer_->add(slab_memory(space, *slab));
    }
  }

  // Back within the budget: kept slabs go, the oldest first. One that is being filled stays.
  void give_back_kept() {
    for (size_t looks = kept_.size(); looks > 0 && slabs_charged_ + slabs_kept_ > slabs_max_;
         --looks) {
      const Kept oldest = kept_.front();
      kept_.pop_front();
      Space& space = spaces_.at(oldest.space);
      if (!warmer_->forget(slab_memory(space, oldest.slab))) {
        kept_.push_back(oldest);
        continue;
      }
      space.extents.unkeep(oldest.slab);
      --slabs_kept_;
      punch(space, oldest.slab);
    }
  }

  uint64_t slab_bytes_;
  uint32_t slabs_max_;
  uint32_t kept_max_;
  uint32_t slabs_charged_ = 0;
  uint32_t slabs_kept_ = 0;
  std::map<SpaceId, Space> spaces_;
  std::unordered_map<ChunkKey, Chunk, ChunkKeyHash> chunks_;
  std::deque<Kept> kept_;  // oldest first
  Stats stats_;
  std::optional<ArenaWarmer> warmer_;  // last: it ends before the memory does
};

}  // namespace

Result<std::unique_ptr<HostStore>> HostStore::create(const Options& options) {
  const uint64_t slab = options.slab_bytes;
  if (slab < kHostPageBytes || (slab & (slab - 1)) != 0) {
    return Error{ErrorCode::kInvalidArgument, "host.slab_bytes is " + std::to_string(slab) +
                                                  "; it must be a power of two and at least 4096"};
  }
  if (options.budget_bytes < slab || options.budget_bytes / slab > UINT32_MAX) {
    return Error{ErrorCode::kInvalidArgument,
                 "host.budget_bytes is " + std::to_string(options.budget_bytes) +
                     "; it must hold at least one slab of " + std::to_string(slab) + " bytes"};
  }
  return std::unique_ptr<HostStore>(std::make_unique<MemfdHostStore>(options));
}

}  // namespace skv
