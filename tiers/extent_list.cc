#include "tiers/extent_list.h"

#include <algorithm>
#include <iterator>

#include "ipc/types/check.h"

namespace skv {

ExtentList::ExtentList(const Geometry& geometry) : geometry_(geometry) {
  SKV_CHECK(geometry.page_bytes > 0 && geometry.slab_bytes % geometry.page_bytes == 0 &&
                geometry.length_bytes % geometry.slab_bytes == 0,
            "page, slab and arena must divide each other");
  used_in_slab_.resize(geometry.length_bytes / geometry.slab_bytes);
  kept_.resize(used_in_slab_.size());
  if (geometry.length_bytes > 0) {
    insert_free(0, geometry.length_bytes);
  }
}

ExtentList::Placed ExtentList::cost_at(uint64_t offset, uint64_t bytes) const {
  Placed cost{.offset = offset};
  const uint64_t last = (offset + bytes - 1) / geometry_.slab_bytes;
  for (uint64_t slab = offset / geometry_.slab_bytes; slab <= last; ++slab) {
    if (used_in_slab_[slab] != 0) continue;
    ++cost.slabs_charged;
    cost.slabs_kept += kept_[slab] ? 1 : 0;
  }
  return cost;
}

std::optional<ExtentList::Placed> ExtentList::allocate(uint64_t bytes, uint32_t slabs_max) {
  SKV_CHECK(bytes > 0 && bytes % geometry_.page_bytes == 0, "extents are whole pages");
  std::optional<Placed> best;
  std::pair<uint64_t, uint64_t> best_hole;
  for (auto hole = by_size_.lower_bound({bytes, 0}); hole != by_size_.end(); ++hole) {
    const auto [hole_bytes, hole_offset] = *hole;
    // At either end of the hole, where its neighbours' slabs are already charged.
    for (const uint64_t offset : {hole_offset, hole_offset + hole_bytes - bytes}) {
      const Placed cost = cost_at(offset, bytes);
      const bool better =
          !best || cost.slabs_charged < best->slabs_charged ||
          (cost.slabs_charged == best->slabs_charged && cost.slabs_kept > best->slabs_kept);
      if (cost.slabs_charged <= slabs_max && better) {
        best = cost;
        best_hole = *hole;
      }
    }
    if (best && best->slabs_charged == 0) {
      break;
    }
  }
  if (!best) {
    return std::nullopt;
  }
  const auto [hole_bytes, hole_offset] = best_hole;
  remove_free(by_offset_.find(hole_offset));
  if (best->offset > hole_offset) {
    insert_free(hole_offset, best->offset - hole_offset);
  }
  if (best->offset + bytes < hole_offset + hole_bytes) {
    insert_free(best->offset + bytes, hole_offset + hole_bytes - best->offset - bytes);
  }
  charged_slabs_ += best->slabs_charged;
  const uint64_t end = best->offset + bytes;
  for (uint64_t at = best->offset; at < end;) {
    const uint64_t slab = at / geometry_.slab_bytes;
    const uint64_t upto = std::min(end, (slab + 1) * geometry_.slab_bytes);
    used_in_slab_[slab] += upto - at;
    kept_[slab] = false;
    at = upto;
  }
  return best;
}

ExtentList::SlabRange ExtentList::release(uint64_t offset, uint64_t bytes) {
  SKV_CHECK(bytes > 0 && bytes % geometry_.page_bytes == 0 && offset % geometry_.page_bytes == 0 &&
                offset + bytes <= geometry_.length_bytes,
            "extents are whole pages of the arena");
  SlabRange emptied;
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset; at < end;) {
    const uint64_t slab = at / geometry_.slab_bytes;
    const uint64_t upto = std::min(end, (slab + 1) * geometry_.slab_bytes);
    SKV_CHECK(used_in_slab_[slab] >= upto - at, "released more than was allocated");
    used_in_slab_[slab] -= upto - at;
    if (used_in_slab_[slab] == 0) {
      // Only the first and the last slab of an extent are shared, so the emptied ones are a run.
      if (emptied.count == 0) {
        emptied.first = slab;
      }
      ++emptied.count;
    }
    at = upto;
  }
  charged_slabs_ -= emptied.count;

  auto next = by_offset_.lower_bound(offset);
  SKV_CHECK(next == by_offset_.end() || next->first >= end, "released twice");
  if (next != by_offset_.end() && next->first == end) {
    bytes += next->second;
    remove_free(next);
  }
  next = by_offset_.lower_bound(offset);
  if (next != by_offset_.begin()) {
    auto before = std::prev(next);
    SKV_CHECK(before->first + before->second <= offset, "released twice");
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      remove_free(before);
    }
  }
  insert_free(offset, bytes);
  return emptied;
}

void ExtentList::keep(uint64_t slab) {
  SKV_CHECK(used_in_slab_[slab] == 0 && !kept_[slab], "only an unused slab can be kept, once");
  kept_[slab] = true;
}

void ExtentList::unkeep(uint64_t slab) {
  SKV_CHECK(kept_[slab], "the slab is kept");
  kept_[slab] = false;
}

std::optional<uint64_t> ExtentList::next_fresh() const {
  if (by_size_.empty()) return std::nullopt;
  const auto [bytes, offset] = *by_size_.rbegin();
  const uint64_t end = (offset + bytes) / geometry_.slab_bytes;
  for (uint64_t slab = (offset + geometry_.slab_bytes - 1) / geometry_.slab_bytes; slab < end;
       ++slab) {
    if (!kept_[slab]) return slab;
  }
  return std::nullopt;
}

void ExtentList::insert_free(uint64_t offset, uint64_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_size_.emplace(bytes, offset);
  free_bytes_ += bytes;
}

void ExtentList::remove_free(std::map<uint64_t, uint64_t>::iterator at) {
  by_size_.erase({at->second, at->first});
  free_bytes_ -= at->second;
  by_offset_.erase(at);
}

}  // namespace skv
