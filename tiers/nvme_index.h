#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tiers/nvme_format.h"

namespace skv::nvme {

// The index of a sealed segment (SegmentIndex in nvme_format.h): its records' headers in one piece.
//
// Thread  any; plain functions.
struct IndexedRecord {
  BodyRecordRef record;
  ChunkSum salt_id;
  Place place;
};
uint64_t index_bytes(std::span<const IndexedRecord> records);
// Into a zeroed block of index_bytes(), to be written at `id.own_offset`. All of one generation.
struct IndexPlace {
  BlockId id;
  uint64_t generation = 0;
  uint64_t segment_start = 0;  // in the file
};
void encode_index(std::span<const IndexedRecord> records,
                  const IndexPlace& place,
                  std::span<std::byte> block);

struct IndexFound {
  uint64_t offset = 0;  // of the record, in the file
  DecodedRecord record;
};
// nullopt: not the index of this segment and generation, or a byte of it is wrong. Every header in
// it was verified as decode_record() does.
std::optional<std::vector<IndexFound>> decode_index(std::span<const std::byte> block,
                                                    const IndexPlace& place);

}  // namespace skv::nvme
