#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace skv {

inline constexpr uint32_t kNoSlot = 0xFFFFFFFF;
inline constexpr uint32_t kNoBlock = 0xFFFFFFFF;

// What a wanted read set lacks, and where it can go.
struct Difference {
  std::span<const uint32_t> slots;    // per wanted entry: its slot, kNoSlot if it is a miss
  std::span<const uint32_t> misses;   // indices into the wanted list, ascending
  std::span<const uint32_t> victims;  // slots to fill, least recently read first, ties by lower
                                      // slot; at most one per miss, fewer if none is reusable
  uint32_t hit_count = 0;
};

// The blocks of one (row, layer, kv head) that lie in the window's slots, kept by recency: the read
// set moves inside it from step to step, and only what is not here has to be moved.
//
// One step:  difference(wanted, version, readers_done)
//            per miss that is moved: assign(victim, block), later arrived(slot) or forget(slot)
//            publish(version, slots of the table's entries)
// Version rule: versions rise. A slot that a table no longer holds as of version v (the first table
// of this layer and head without it) may be reused once readers_done >= v - 1: until then a reader
// of an older table may still read it. A slot of the wanted list is never a victim, nor one that is
// being filled.
//
// Shape   flat arrays of fixed size; an open hash of twice the slots from block to slot.
// Thread  one owner. No allocation after construction.
// Errors  none; a caller's mistake is a check.
class ResidentSet {
 public:
  explicit ResidentSet(uint32_t slot_count);

  // `wanted`: distinct blocks. `version`: of the table that is being made, higher than any that was
  // published. Results live in this object until its next call. A block that is still being filled
  // is a hit; filling(slot) tells.
  Difference difference(std::span<const uint32_t> wanted, uint64_t version, uint64_t readers_done);

  // The slot will hold `block`; what it held is gone from the set. Requires: a victim of the last
  // difference, `block` not resident.
  void assign(uint32_t slot, uint32_t block);
  void arrived(uint32_t slot);  // its bytes are there
  void forget(uint32_t slot);   // they will not come, or are no longer valid: the slot is empty

  // Asks for what difference() will look at: some KiB that were not touched since the last step.
  void warm() const;

  // The table `version` holds exactly `slots` (kNoSlot entries are skipped): they are read now.
  // Only noted: the clocks move with the next difference(), when they are at hand anyway.
  void publish(uint64_t version, std::span<const uint32_t> slots);

  uint32_t slot_count() const { return static_cast<uint32_t>(blocks_.size()); }
  uint32_t find(uint32_t block) const;  // kNoSlot if not resident
  uint32_t block(uint32_t slot) const { return blocks_[slot]; }
  bool filling(uint32_t slot) const { return filling_[slot] != 0; }
  uint32_t resident_count() const { return resident_count_; }
  // The clocks, as a device's copy of this state starts from (kernels/cuda/difference_body.h).
  std::span<const uint64_t> last_read() {
    settle();
    return last_read_;
  }
  std::span<const uint64_t> absent_from() {
    settle();
    return absent_from_;
  }
  void clear();  // forgets all; requires that no reader is left

 private:
  void settle();
  uint32_t choose_victims(size_t wanted_count,
                          uint32_t count_max,
                          uint64_t version,
                          uint64_t readers_done);
  uint32_t bucket_of(uint32_t block) const;
  void insert(uint32_t block, uint32_t slot);
  void remove(uint32_t block);

  std::vector<uint32_t> blocks_;       // per slot
  std::vector<uint64_t> last_read_;    // per slot: version of the last table that held it; 0: none
  std::vector<uint64_t> absent_from_;  // per slot: first version of this table without it;
                                       // 0: never in a table, UINT64_MAX: in the current one
  std::vector<uint8_t> filling_;       // per slot
  std::vector<uint32_t> wanted_mark_;  // per slot: stamp of the last choice of victims that had it
                                       // in its wanted list
  std::vector<uint32_t> current_;      // slots of the last table
  std::vector<uint32_t> settled_;      // slots of the last table that moved the clocks
  std::vector<uint32_t> hash_;         // buckets: slot, or kNoSlot
  std::vector<uint32_t> slots_;        // results of difference
  std::vector<uint32_t> misses_;
  std::vector<uint32_t> victims_;
  uint32_t hash_mask_ = 0;
  uint32_t stamp_ = 0;
  uint32_t resident_count_ = 0;
  uint64_t published_ = 0;
  bool unsettled_ = false;  // current_ has not moved the clocks yet
};

}  // namespace skv
