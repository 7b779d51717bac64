#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tiers/job_runner.h"
#include "tiers/nvme_meta.h"

namespace skv {

// What a store's segments hold at open.
//
// Of a sealed segment the index is read, of many segments at once: three small reads each. Where it
// has none (version 0 of old, or no room) or does not hold, the records' headers are walked; of a
// segment without seal every block is looked at and every record read and verified. A header that
// does not hold is stepped over, block by block, to the next that does. Of several records of one
// key the newest is live, unless it was purged; the others only have their place.
struct NvmeRecovery {
  struct Segment {
    uint64_t generation = 0;  // 0: never granted, or its header and seal are gone
    bool sealed = false;
    bool unreadable = false;  // its header block gives EIO: not to be used
  };
  struct Record {
    BodyRecord record;
    nvme::Place place;
    uint64_t bytes = 0;  // header, vectors, chunks
    bool live = true;
  };
  std::vector<Segment> segments;
  std::vector<Record> records;  // ascending by offset
  uint64_t skipped = 0;         // headers that hold, with bytes that do not, or of an unknown space
  uint64_t indexed_segments = 0;

  // Blocks. Requires: nothing else is at the runner.
  static NvmeRecovery run(JobRunner& runner,
                          const NvmeMeta& meta,
                          const std::function<void(uint32_t percent)>& progress);
};

}  // namespace skv
