#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace skv {

// Where the free pages of one arena are, and which of its slabs are in use: best fit, neighbours
// coalesced, ties to the lowest offset, so the same calls give the same places.
//
// A slab in use is charged. Of the extents that fit, allocate() takes the smallest that needs no
// slab to be charged; where there is none, the one that needs the fewest, and only if the caller's
// limit allows it; of several such, the one with the most slabs that were kept. A kept slab is not
// in use and has memory all the same (tiers/host_store.h).
//
// Units   bytes; sizes and offsets are multiples of page_bytes, slabs aligned to slab_bytes.
// Thread  the owner's.
class ExtentList {
 public:
  // Requires: page_bytes divides slab_bytes, slab_bytes divides length_bytes.
  struct Geometry {
    uint64_t length_bytes = 0;
    uint64_t slab_bytes = 0;
    uint64_t page_bytes = 4096;
  };
  explicit ExtentList(const Geometry& geometry);

  struct Placed {
    uint64_t offset = 0;
    uint32_t slabs_charged = 0;  // newly, by this extent
    uint32_t slabs_kept = 0;     // of these: were kept, and are no longer
  };
  // nullopt: nothing fits without charging more than `slabs_max` slabs.
  std::optional<Placed> allocate(uint64_t bytes, uint32_t slabs_max);

  // Slabs [first, first + count) that nothing uses any more: the caller punches or keeps them.
  struct SlabRange {
    uint64_t first = 0;
    uint32_t count = 0;
  };
  // Requires: exactly an allocated extent.
  SlabRange release(uint64_t offset, uint64_t bytes);

  // Requires: the slab is not in use; keep(): not kept, unkeep(): kept.
  void keep(uint64_t slab);
  void unkeep(uint64_t slab);
  bool kept(uint64_t slab) const { return kept_[slab]; }
  // The slab that will be charged next when all kept ones are: the first of the largest hole that
  // is neither in use nor kept. nullopt: none.
  std::optional<uint64_t> next_fresh() const;

  uint64_t free_bytes() const { return free_bytes_; }
  uint32_t charged_slabs() const { return charged_slabs_; }
  size_t free_extents() const { return by_offset_.size(); }

 private:
  Placed cost_at(uint64_t offset, uint64_t bytes) const;
  void insert_free(uint64_t offset, uint64_t bytes);
  void remove_free(std::map<uint64_t, uint64_t>::iterator at);

  Geometry geometry_;
  std::map<uint64_t, uint64_t> by_offset_;           // offset -> bytes
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // bytes, offset
  std::vector<uint64_t> used_in_slab_;               // bytes
  std::vector<bool> kept_;                           // by slab
  uint64_t free_bytes_ = 0;
  uint32_t charged_slabs_ = 0;
};

}  // namespace skv
