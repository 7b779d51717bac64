#pragma once

#include <cstdint>

#include "kernels/cuda/device_math.h"
#include "kernels/difference.h"

// ResidentSet::difference (kernels/difference.cc) by a thread block, over flat arrays in device
// memory.
namespace skv::cuda {

inline constexpr uint64_t kReadNow = ~uint64_t{0};

// The state of one (row, layer, kv head); arrays as in ResidentSet, but a block finds its slot by a
// direct map of the context's grid instead of a hash.
struct ResidentState {
  uint32_t slot_count;
  uint32_t block_capacity;
  uint32_t* slot_of_block;  // [block_capacity]: kNoSlot if not resident
  uint64_t* last_read;      // [slot]
  uint64_t* absent_from;    // [slot]
  uint8_t* filling;         // [slot]
};

struct DifferenceJob {
  ResidentState state;
  const uint32_t* wanted;  // distinct blocks
  uint32_t wanted_count;
  uint64_t version;
  uint64_t readers_done;
  // Results: [wanted], [wanted], [wanted]; marks and candidates are working memory of [slot].
  uint32_t* slots;
  uint32_t* misses;
  uint32_t* victims;
  uint8_t* marks;
  uint32_t* candidates;
  uint32_t* counts;  // hits, misses, victims
};

template <typename Block>
SKV_BODY void difference(Block& block, const DifferenceJob& job) {
  const ResidentState& s = job.state;
  block.for_each(s.slot_count, [&](uint32_t slot) { job.marks[slot] = 0; });
  block.for_each(job.wanted_count, [&](uint32_t i) {
    const uint32_t wanted = job.wanted[i];
    const uint32_t slot = wanted < s.block_capacity ? s.slot_of_block[wanted] : kNoSlot;
    job.slots[i] = slot;
    if (slot != kNoSlot) job.marks[slot] = 1;
  });
  const uint32_t misses = block.scan(
      job.wanted_count, [&](uint32_t i) -> uint32_t { return job.slots[i] == kNoSlot ? 1 : 0; },
      [&](uint32_t i, uint32_t before) {
        if (job.slots[i] == kNoSlot) job.misses[before] = i;
      });
  const auto reusable = [&](uint32_t slot) -> uint32_t {
    if (job.marks[slot] != 0 || s.filling[slot] != 0) return 0;
    const uint64_t absent = s.absent_from[slot] == kReadNow ? job.version : s.absent_from[slot];
    return absent != 0 && job.readers_done + 1 < absent ? 0 : 1;
  };
  const uint32_t candidates =
      block.scan(s.slot_count, reusable, [&](uint32_t slot, uint32_t before) {
        if (reusable(slot) != 0) job.candidates[before] = slot;
      });
  const uint32_t victims = smaller(candidates, misses);
  // The place of each candidate in order of last use; ties by lower slot, which is the list's
  // order.
  block.for_each(candidates, [&](uint32_t i) {
    const uint64_t mine = s.last_read[job.candidates[i]];
    uint32_t older = 0;
    for (uint32_t j = 0; j < candidates; ++j) {
      const uint64_t other = s.last_read[job.candidates[j]];
      older += other < mine || (other == mine && j < i) ? 1 : 0;
    }
    if (older < victims) job.victims[older] = job.candidates[i];
  });
  block.for_each(1, [&](uint32_t) {
    job.counts[0] = job.wanted_count - misses;
    job.counts[1] = misses;
    job.counts[2] = victims;
  });
}

}  // namespace skv::cuda
