#include "kernels/difference.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <utility>

#include "ipc/types/check.h"

namespace skv {
namespace {
constexpr uint64_t kReadNow = std::numeric_limits<uint64_t>::max();
}  // namespace

ResidentSet::ResidentSet(uint32_t slot_count)
    : blocks_(slot_count, kNoBlock),
      last_read_(slot_count, 0),
      absent_from_(slot_count, 0),
      filling_(slot_count, 0),
      wanted_mark_(slot_count, 0),
      hash_(std::bit_ceil(std::max(slot_count, 4U)) * size_t{2}, kNoSlot),
      slots_(slot_count),
      misses_(slot_count),
      victims_(slot_count),
      hash_mask_(static_cast<uint32_t>(hash_.size()) - 1) {
  current_.reserve(slot_count);
  settled_.reserve(slot_count);
}

uint32_t ResidentSet::bucket_of(uint32_t block) const {
  return (block * 0x9E3779B1U >> 7) & hash_mask_;
}

uint32_t ResidentSet::find(uint32_t block) const {
  for (uint32_t at = bucket_of(block); hash_[at] != kNoSlot; at = (at + 1) & hash_mask_) {
    if (blocks_[hash_[at]] == block) return hash_[at];
  }
  return kNoSlot;
}

void ResidentSet::insert(uint32_t block, uint32_t slot) {
  uint32_t at = bucket_of(block);
  while (hash_[at] != kNoSlot) at = (at + 1) & hash_mask_;
  hash_[at] = slot;
  blocks_[slot] = block;
  ++resident_count_;
}

// Linear probing without tombstones: what could not reach its bucket for the hole moves into it.
void ResidentSet::remove(uint32_t block) {
  uint32_t hole = bucket_of(block);
  while (blocks_[hash_[hole]] != block) hole = (hole + 1) & hash_mask_;
  blocks_[hash_[hole]] = kNoBlock;
  for (uint32_t at = (hole + 1) & hash_mask_; hash_[at] != kNoSlot; at = (at + 1) & hash_mask_) {
    const uint32_t home = bucket_of(blocks_[hash_[at]]);
    const bool may_move = ((at - home) & hash_mask_) >= ((at - hole) & hash_mask_);
    if (!may_move) continue;
    hash_[hole] = hash_[at];
    hole = at;
  }
  hash_[hole] = kNoSlot;
  --resident_count_;
}

Difference ResidentSet::difference(std::span<const uint32_t> wanted,
                                   uint64_t version,
                                   uint64_t readers_done) {
  SKV_CHECK(version > published_, "versions rise");
  // Only a read set larger than any before grows these.
  if (slots_.size() < wanted.size()) {
    slots_.resize(wanted.size());
    misses_.resize(wanted.size());
  }
  settle();
  uint32_t miss_count = 0;
  for (uint32_t i = 0; i < wanted.size(); ++i) {
    slots_[i] = find(wanted[i]);
    misses_[miss_count] = i;
    miss_count += slots_[i] == kNoSlot ? 1 : 0;
  }
  const uint32_t victim_count =
      miss_count == 0 ? 0 : choose_victims(wanted.size(), miss_count, version, readers_done);

  Difference result;
  result.slots = {slots_.data(), wanted.size()};
  result.misses = {misses_.data(), miss_count};
  result.victims = {victims_.data(), victim_count};
  result.hit_count = static_cast<uint32_t>(wanted.size()) - miss_count;
  return result;
}

// The least recently read of the slots that the last difference did not want.
uint32_t ResidentSet::choose_victims(size_t wanted_count,
                                     uint32_t count_max,
                                     uint64_t version,
                                     uint64_t readers_done) {
  if (++stamp_ == 0) {
    std::fill(wanted_mark_.begin(), wanted_mark_.end(), 0U);
    stamp_ = 1;
  }
  for (size_t i = 0; i < wanted_count; ++i) {
    if (slots_[i] != kNoSlot) wanted_mark_[slots_[i]] = stamp_;
  }
  uint32_t candidate_count = 0;
  for (uint32_t slot = 0; slot < slot_count(); ++slot) {
    if (wanted_mark_[slot] == stamp_ || filling_[slot] != 0) continue;
    // In the current table and not wanted: this version will be the first without it.
    const uint64_t absent_from = absent_from_[slot] == kReadNow ? version : absent_from_[slot];
    if (absent_from != 0 && readers_done + 1 < absent_from) continue;
    victims_[candidate_count++] = slot;
  }
  const auto older = [this](uint32_t a, uint32_t b) {
    return last_read_[a] != last_read_[b] ? last_read_[a] < last_read_[b] : a < b;
  };
  const uint32_t victim_count = std::min(candidate_count, count_max);
  if (victim_count < candidate_count) {
    std::nth_element(victims_.begin(), victims_.begin() + victim_count,
                     victims_.begin() + candidate_count, older);
  }
  std::sort(victims_.begin(), victims_.begin() + victim_count, older);
  return victim_count;
}

void ResidentSet::assign(uint32_t slot, uint32_t block) {
  SKV_CHECK(slot < slot_count() && filling_[slot] == 0, "a slot that is not being filled");
  SKV_CHECK(block != kNoBlock && find(block) == kNoSlot, "a block that is not resident");
  if (blocks_[slot] != kNoBlock) remove(blocks_[slot]);
  insert(block, slot);
  filling_[slot] = 1;
  last_read_[slot] = 0;
  absent_from_[slot] = 0;
}

void ResidentSet::arrived(uint32_t slot) { filling_[slot] = 0; }

void ResidentSet::forget(uint32_t slot) {
  if (blocks_[slot] != kNoBlock) remove(blocks_[slot]);
  filling_[slot] = 0;
  last_read_[slot] = 0;
}

void ResidentSet::warm() const {
  constexpr size_t kLine = 64;
  const auto touch = [](const auto& array) {
    const auto* const bytes = reinterpret_cast<const char*>(array.data());
    const size_t size = array.size() * sizeof(array[0]);
    for (size_t at = 0; at < size; at += kLine) __builtin_prefetch(bytes + at);
  };
  touch(hash_);
  touch(blocks_);
  touch(last_read_);
  touch(absent_from_);
  touch(current_);
  touch(settled_);
}

void ResidentSet::publish(uint64_t version, std::span<const uint32_t> slots) {
  SKV_CHECK(version > published_, "versions rise");
  settle();
  published_ = version;
  unsettled_ = true;
  current_.clear();
  std::copy_if(slots.begin(), slots.end(), std::back_inserter(current_),
               [](uint32_t slot) { return slot != kNoSlot; });
}

void ResidentSet::settle() {
  if (!unsettled_) return;
  unsettled_ = false;
  for (const uint32_t slot : current_) {
    last_read_[slot] = published_;
    absent_from_[slot] = kReadNow;
  }
  for (const uint32_t slot : settled_) {
    if (absent_from_[slot] == kReadNow && last_read_[slot] != published_) {
      absent_from_[slot] = published_;
    }
  }
  std::swap(current_, settled_);
  current_.clear();
}

void ResidentSet::clear() {
  std::fill(blocks_.begin(), blocks_.end(), kNoBlock);
  std::fill(last_read_.begin(), last_read_.end(), uint64_t{0});
  std::fill(absent_from_.begin(), absent_from_.end(), uint64_t{0});
  std::fill(filling_.begin(), filling_.end(), uint8_t{0});
  std::fill(hash_.begin(), hash_.end(), kNoSlot);
  current_.clear();
  settled_.clear();
  unsettled_ = false;
  resident_count_ = 0;
}

}  // namespace skv
