#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tiers/disk.h"
#include "tiers/nvme_meta.h"

namespace skv {

// What a store's segments hold at open.
//
// Of a sealed segment the headers are walked; of any other every block is looked at and every
// record read and verified. A header that does not hold is stepped over, block by block, to the
// next that does. Of several records of one key the newest is taken.
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
  };
  std::vector<Segment> segments;
  std::vector<Record> records;  // ascending by offset
  uint64_t skipped = 0;         // headers that hold, with bytes that do not, or of an unknown space

  static NvmeRecovery run(Disk& disk,
                          const NvmeMeta& meta,
                          const std::function<void(uint32_t percent)>& progress);
};

}  // namespace skv
