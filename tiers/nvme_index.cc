#include "tiers/nvme_index.h"

#include <array>
#include <cstring>
#include <utility>

#include "ipc/types/check.h"

namespace skv::nvme {
namespace {

uint32_t stored_bytes(uint64_t chunk_count) {
  return static_cast<uint32_t>(kChunkTableOffset + chunk_count * sizeof(ChunkEntry));
}

// A record header as on disk: what is stored, zeros behind it.
using HeaderBlock = std::array<std::byte, 2 * kBlockBytes>;
static_assert(header_bytes(kRecordChunksMax) <= sizeof(HeaderBlock));

}  // namespace

uint64_t index_bytes(std::span<const IndexedRecord> records) {
  uint64_t bytes = sizeof(SegmentIndex);
  for (const IndexedRecord& each : records) {
    bytes += sizeof(IndexEntry) + stored_bytes(each.record->chunk_bytes.size());
  }
  return storage_bytes(bytes);
}

void encode_index(std::span<const IndexedRecord> records,
                  const IndexPlace& place,
                  std::span<std::byte> block) {
  SKV_CHECK(block.size() == index_bytes(records), "index block and records fit each other");
  begin_block(block, {kIndexMagic, place.id.store_uuid, place.id.own_offset});
  SegmentIndex index{};
  std::memcpy(&index.prefix, block.data(), sizeof index.prefix);
  index.generation = place.generation;
  index.record_count = static_cast<uint32_t>(records.size());
  std::memcpy(block.data(), &index, sizeof index);
  uint64_t at = sizeof index;
  HeaderBlock header;
  for (const IndexedRecord& each : records) {
    const uint64_t chunks = each.record->chunk_bytes.size();
    const IndexEntry entry{each.place.offset - place.segment_start, stored_bytes(chunks), 0};
    header.fill(std::byte{0});
    encode_record(*each.record, each.salt_id, place.id, each.place,
                  std::span(header).first(header_bytes(chunks)));
    std::memcpy(block.data() + at, &entry, sizeof entry);
    std::memcpy(block.data() + at + sizeof entry, header.data(), entry.bytes);
    at += sizeof entry + entry.bytes;
  }
  seal_block(block);
}

std::optional<std::vector<IndexFound>> decode_index(std::span<const std::byte> block,
                                                    const IndexPlace& place) {
  if (!block_holds(block, {kIndexMagic, place.id.store_uuid, place.id.own_offset})) {
    return std::nullopt;
  }
  SegmentIndex index;
  std::memcpy(&index, block.data(), sizeof index);
  if (index.generation != place.generation) {
    return std::nullopt;
  }
  std::vector<IndexFound> found;
  block = block.subspan(sizeof index);
  HeaderBlock header;
  for (uint32_t i = 0; i < index.record_count; ++i) {
    IndexEntry entry;
    if (block.size() < sizeof entry) {
      return std::nullopt;
    }
    std::memcpy(&entry, block.data(), sizeof entry);
    block = block.subspan(sizeof entry);
    const uint64_t records_end = place.id.own_offset;
    if (entry.bytes < kChunkTableOffset || entry.bytes > header.size() ||
        entry.bytes > block.size() || entry.offset >= records_end - place.segment_start ||
        entry.offset % kBlockBytes != 0) {
      return std::nullopt;
    }
    header.fill(std::byte{0});
    std::memcpy(header.data(), block.data(), entry.bytes);
    block = block.subspan(entry.bytes);
    const uint64_t offset = place.segment_start + entry.offset;
    std::optional<DecodedRecord> record =
        decode_record(header, {kRecordMagic, place.id.store_uuid, offset}, records_end);
    if (!record || record->generation != place.generation) {
      return std::nullopt;
    }
    found.push_back({offset, std::move(*record)});
  }
  return found;
}

}  // namespace skv::nvme
