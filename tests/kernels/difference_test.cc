#include "kernels/difference.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

namespace skv {
namespace {

using Slots = std::vector<uint32_t>;
Slots copy(std::span<const uint32_t> values) { return {values.begin(), values.end()}; }

// One whole step with everything that is missing moved at once; returns the table's slots.
Slots step(ResidentSet& set, const Slots& wanted, uint64_t version, uint64_t readers_done) {
  const Difference difference = set.difference(wanted, version, readers_done);
  Slots slots = copy(difference.slots);
  const Slots misses = copy(difference.misses);
  const Slots victims = copy(difference.victims);
  for (size_t i = 0; i < victims.size(); ++i) {
    set.assign(victims[i], wanted[misses[i]]);
    set.arrived(victims[i]);
    slots[misses[i]] = victims[i];
  }
  set.publish(version, slots);
  return slots;
}

TEST(Difference, EmptySlotsFirstThenTheLeastRecentlyRead) {
  ResidentSet set(6);
  EXPECT_EQ(step(set, {10, 11}, 1, 0), (Slots{0, 1}));
  EXPECT_EQ(step(set, {11, 12}, 2, 1), (Slots{1, 2}));
  EXPECT_EQ(step(set, {12, 13, 14, 15}, 3, 2), (Slots{2, 3, 4, 5}));
  EXPECT_EQ(set.resident_count(), 6U);
  // Read last: 10 at 1, 11 at 2, the others at 3.
  const Difference difference = set.difference(std::vector<uint32_t>{20, 21, 22}, 4, 3);
  EXPECT_EQ(copy(difference.victims), (Slots{0, 1, 2}));
  EXPECT_EQ(difference.hit_count, 0U);
}

TEST(Difference, WhatWasReadLatelyIsStillThere) {
  ResidentSet set(4);
  step(set, {1, 2}, 1, 0);
  step(set, {3, 4}, 2, 1);
  const Difference difference = set.difference(std::vector<uint32_t>{1, 4}, 3, 2);
  EXPECT_EQ(difference.hit_count, 2U);
  EXPECT_TRUE(difference.misses.empty());
  EXPECT_EQ(copy(difference.slots), (Slots{0, 3}));
}

// Goal: a slot is reused only when nobody can still read the last table that held it.
TEST(Difference, VersionRule) {
  ResidentSet set(2);
  step(set, {1, 2}, 5, 0);
  // Version 6 would be the first without them: the reader must have finished with 5.
  EXPECT_TRUE(set.difference(std::vector<uint32_t>{3}, 6, 4).victims.empty());
  EXPECT_EQ(set.difference(std::vector<uint32_t>{3}, 6, 5).victims.size(), 1U);
  EXPECT_EQ(step(set, {2, 3}, 6, 5), (Slots{1, 0}));
  // Other layers used versions 7 to 9. Block 2 leaves with 10, 3 stays.
  EXPECT_TRUE(set.difference(std::vector<uint32_t>{3, 4}, 10, 8).victims.empty());
  EXPECT_EQ(copy(set.difference(std::vector<uint32_t>{3, 4}, 10, 9).victims), (Slots{1}));
  // A table without block 2 at 10, whose place was not needed: 9 is enough from then on.
  step(set, {3}, 10, 0);
  EXPECT_EQ(copy(set.difference(std::vector<uint32_t>{3, 4}, 11, 9).victims), (Slots{1}));
  EXPECT_TRUE(set.difference(std::vector<uint32_t>{3, 4}, 11, 8).victims.empty());
}

TEST(Difference, WhatIsBeingFilledStays) {
  ResidentSet set(2);
  const Difference first = set.difference(std::vector<uint32_t>{7}, 1, 0);
  ASSERT_EQ(copy(first.victims), (Slots{0}));
  set.assign(0, 7);
  EXPECT_TRUE(set.filling(0));
  EXPECT_EQ(copy(set.difference(std::vector<uint32_t>{8, 9}, 1, 0).victims), (Slots{1}));
  const Difference hit = set.difference(std::vector<uint32_t>{7}, 1, 0);
  EXPECT_EQ(hit.hit_count, 1U);
  set.forget(0);
  EXPECT_EQ(set.find(7), kNoSlot);
  EXPECT_EQ(set.resident_count(), 0U);
  EXPECT_EQ(copy(set.difference(std::vector<uint32_t>{8, 9}, 1, 0).victims), (Slots{0, 1}));
}

TEST(Difference, NoSlotsAndNothingWanted) {
  ResidentSet none(0);
  const Difference difference = none.difference(std::vector<uint32_t>{1, 2}, 1, 0);
  EXPECT_EQ(difference.misses.size(), 2U);
  EXPECT_TRUE(difference.victims.empty());
  ResidentSet set(3);
  EXPECT_EQ(set.difference({}, 1, 0).victims.size(), 0U);
}

TEST(Difference, ClearForgetsAll) {
  ResidentSet set(3);
  step(set, {1, 2, 3}, 1, 0);
  set.clear();
  EXPECT_EQ(set.resident_count(), 0U);
  EXPECT_EQ(set.difference(std::vector<uint32_t>{4, 5, 6}, 2, 0).victims.size(), 3U);
}

// A resident set that remembers everything and computes every answer from the words of the header.
struct Naive {
  struct Slot {
    std::optional<uint32_t> block;
    uint64_t last_read = 0;
    std::vector<uint64_t> tables;  // versions whose table held this slot with this block
    bool filling = false;
  };
  explicit Naive(uint32_t count) : slots(count) {}
  std::vector<Slot> slots;
  std::vector<uint64_t> versions;  // of all tables

  std::optional<uint32_t> find(uint32_t block) const {
    for (uint32_t i = 0; i < slots.size(); ++i) {
      if (slots[i].block == block) return i;
    }
    return std::nullopt;
  }
  bool reusable(uint32_t slot, uint64_t version, uint64_t readers_done) const {
    if (slots[slot].filling) return false;
    if (slots[slot].tables.empty()) return true;
    const uint64_t last = slots[slot].tables.back();
    const auto next = std::upper_bound(versions.begin(), versions.end(), last);
    const uint64_t absent_from = next == versions.end() ? version : *next;
    return readers_done + 1 >= absent_from;
  }
  Slots victims(const Slots& wanted, uint64_t version, uint64_t readers_done) const {
    Slots result;
    for (uint32_t i = 0; i < slots.size(); ++i) {
      const bool is_wanted =
          slots[i].block.has_value() &&
          std::find(wanted.begin(), wanted.end(), *slots[i].block) != wanted.end();
      if (!is_wanted && reusable(i, version, readers_done)) result.push_back(i);
    }
    std::stable_sort(result.begin(), result.end(), [this](uint32_t a, uint32_t b) {
      return slots[a].last_read < slots[b].last_read;
    });
    return result;
  }
};

// Goal: over any life the set answers as the naive model does, and never gives a reader's slot
// away.
RC_GTEST_PROP(Difference, AgreesWithTheNaiveModel, ()) {
  const auto slot_count = *rc::gen::inRange(0U, 24U);
  ResidentSet set(slot_count);
  Naive naive(slot_count);
  uint64_t version = 0;
  uint64_t readers_done = 0;
  const auto steps = *rc::gen::inRange(1, 40);
  for (int i = 0; i < steps; ++i) {
    version += *rc::gen::inRange(uint64_t{1}, uint64_t{4});
    const auto unsorted = *rc::gen::container<std::set<uint32_t>>(rc::gen::inRange(0U, 60U));
    const Slots wanted(unsorted.begin(), unsorted.end());
    readers_done = std::max(readers_done, *rc::gen::inRange(uint64_t{0}, version));
    const Difference difference = set.difference(wanted, version, readers_done);
    Slots slots = copy(difference.slots);
    const Slots misses = copy(difference.misses);
    const Slots victims = copy(difference.victims);

    Slots want_victims = naive.victims(wanted, version, readers_done);
    size_t miss = 0;
    for (size_t w = 0; w < wanted.size(); ++w) {
      const std::optional<uint32_t> at = naive.find(wanted[w]);
      RC_ASSERT(slots[w] == at.value_or(kNoSlot));
      if (!at.has_value()) RC_ASSERT(misses.at(miss++) == w);
    }
    RC_ASSERT(miss == misses.size());
    RC_ASSERT(difference.hit_count == wanted.size() - misses.size());
    want_victims.resize(std::min(want_victims.size(), misses.size()));
    RC_ASSERT(victims == want_victims);

    // Some moves arrive, some fail, some are still on their way when the table is published.
    for (size_t v = 0; v < victims.size(); ++v) {
      const auto fate = *rc::gen::inRange(0, 6);
      Naive::Slot& slot = naive.slots[victims[v]];
      set.assign(victims[v], wanted[misses[v]]);
      slot = {wanted[misses[v]], 0, {}, true};
      if (fate == 0) {
        set.forget(victims[v]);
        slot = {};
      } else if (fate > 1) {
        set.arrived(victims[v]);
        slot.filling = false;
        slots[misses[v]] = victims[v];
      }
    }
    for (uint32_t& slot : slots) {
      if (slot != kNoSlot && set.filling(slot)) slot = kNoSlot;
    }
    set.publish(version, slots);
    naive.versions.push_back(version);
    for (const uint32_t slot : slots) {
      if (slot == kNoSlot) continue;
      naive.slots[slot].last_read = version;
      naive.slots[slot].tables.push_back(version);
    }
    for (uint32_t slot = 0; slot < slot_count; ++slot) {
      if (set.filling(slot) && *rc::gen::inRange(0, 2) == 0) {
        set.arrived(slot);
        naive.slots[slot].filling = false;
      }
      RC_ASSERT(set.block(slot) == naive.slots[slot].block.value_or(kNoBlock));
    }
  }
}

}  // namespace
}  // namespace skv
