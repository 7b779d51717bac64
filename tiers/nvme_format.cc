#include "tiers/nvme_format.h"

#include <cstring>

#include "ipc/types/check.h"

namespace skv::nvme {
namespace {

// `sum` lies behind the magic; what it covers begins behind itself.
constexpr size_t kSummedFrom = offsetof(Prefix, sum) + sizeof(ChunkSum);

template <typename T>
T load(std::span<const std::byte> block, size_t offset = 0) {
  T value;
  std::memcpy(&value, block.data() + offset, sizeof value);
  return value;
}

}  // namespace

void begin_block(std::span<std::byte> block, const BlockId& id) {
  SKV_CHECK(block.size() >= kBlockBytes && block.size() % kBlockBytes == 0, "whole blocks");
  Prefix prefix{};
  prefix.magic = id.magic;
  prefix.format_version = kFormatVersion;
  prefix.bytes = static_cast<uint32_t>(block.size());
  prefix.store_uuid = id.store_uuid;
  prefix.own_offset = id.own_offset;
  std::memcpy(block.data(), &prefix, sizeof prefix);
}

void seal_block(std::span<std::byte> block) {
  const ChunkSum sum = checksum(block.subspan(kSummedFrom));
  std::memcpy(block.data() + offsetof(Prefix, sum), &sum, sizeof sum);
}

bool block_holds(std::span<const std::byte> block, const BlockId& id) {
  if (block.size() < kBlockBytes) {
    return false;
  }
  const auto prefix = load<Prefix>(block);
  return prefix.magic == id.magic && prefix.format_version == kFormatVersion &&
         prefix.bytes >= kBlockBytes && prefix.bytes <= block.size() &&
         prefix.bytes % kBlockBytes == 0 && prefix.store_uuid == id.store_uuid &&
         prefix.own_offset == id.own_offset &&
         prefix.sum == checksum(block.subspan(kSummedFrom, prefix.bytes - kSummedFrom));
}

void encode_record(const BodyRecord& record,
                   const ChunkSum& salt_id,
                   const BlockId& id,
                   const Place& place,
                   std::span<std::byte> block) {
  SKV_CHECK(block.size() == header_bytes(record.chunk_bytes.size()) &&
                record.chunk_sums.size() == record.chunk_bytes.size(),
            "header block and chunk table fit each other");
  begin_block(block, {kRecordMagic, id.store_uuid, place.offset});
  RecordHeader header{};
  std::memcpy(&header.prefix, block.data(), sizeof header.prefix);
  header.generation = place.generation;
  header.record_number = place.record_number;
  header.record_bytes = record_storage_bytes(record);
  header.salt_id = salt_id;
  header.fingerprint = record.fingerprint;
  header.key = record.key;
  header.parent_boundary = record.parent_boundary;
  header.end_boundary = record.end_boundary;
  header.end_digest = record.end_digest;
  header.space_uid = record.space_uid;
  header.first_position = record.first_position;
  header.token_count = record.token_count;
  header.vectors_bytes = record.vectors_bytes;
  header.vectors_sum = record.vectors_sum;
  header.chunk_count = static_cast<uint32_t>(record.chunk_bytes.size());
  header.index_kind = static_cast<uint8_t>(record.index.kind);
  header.run_tokens = record.index.run_tokens;
  std::memcpy(block.data(), &header, sizeof header);
  for (size_t i = 0; i < record.chunk_bytes.size(); ++i) {
    const ChunkEntry entry{record.chunk_bytes[i], record.chunk_sums[i]};
    std::memcpy(block.data() + kChunkTableOffset + i * sizeof entry, &entry, sizeof entry);
  }
  seal_block(block);
}

std::optional<uint64_t> claimed_header_bytes(std::span<const std::byte> block) {
  const auto prefix = load<Prefix>(block);
  if (prefix.magic != kRecordMagic || prefix.bytes < kBlockBytes ||
      prefix.bytes > header_bytes(kRecordChunksMax) || prefix.bytes % kBlockBytes != 0) {
    return std::nullopt;
  }
  return prefix.bytes;
}

std::optional<DecodedRecord> decode_record(std::span<const std::byte> block,
                                           const BlockId& id,
                                           uint64_t end_offset) {
  if (id.own_offset >= end_offset ||
      !block_holds(block, {kRecordMagic, id.store_uuid, id.own_offset})) {
    return std::nullopt;
  }
  const auto header = load<RecordHeader>(block);
  if (header.chunk_count == 0 || header.chunk_count > kRecordChunksMax ||
      header.prefix.bytes != header_bytes(header.chunk_count) ||
      header.vectors_bytes > kRecordVectorsBytesMax) {
    return std::nullopt;
  }
  DecodedRecord decoded;
  BodyRecord& record = decoded.record;
  const uint64_t room = end_offset - id.own_offset;
  uint64_t storage = header.prefix.bytes + storage_bytes(header.vectors_bytes);
  for (uint32_t i = 0; i < header.chunk_count; ++i) {
    const auto entry = load<ChunkEntry>(block, kChunkTableOffset + i * sizeof(ChunkEntry));
    if (entry.bytes == 0 || entry.bytes > room) {
      return std::nullopt;
    }
    storage += storage_bytes(entry.bytes);
    record.chunk_bytes.push_back(entry.bytes);
    record.chunk_sums.push_back(entry.sum);
  }
  if (storage != header.record_bytes || storage > room) {
    return std::nullopt;
  }
  record.key = header.key;
  record.space_uid = header.space_uid;
  record.fingerprint = header.fingerprint;
  record.parent_boundary = header.parent_boundary;
  record.end_boundary = header.end_boundary;
  record.end_digest = header.end_digest;
  record.first_position = header.first_position;
  record.token_count = header.token_count;
  record.index.kind = static_cast<IndexKind>(header.index_kind);
  record.index.run_tokens = header.run_tokens;
  record.vectors_bytes = header.vectors_bytes;
  record.vectors_sum = header.vectors_sum;
  decoded.salt_id = header.salt_id;
  decoded.generation = header.generation;
  decoded.record_number = header.record_number;
  decoded.record_bytes = header.record_bytes;
  return decoded;
}

uint64_t vectors_offset(const BodyRecord& record) {
  return header_bytes(record.chunk_bytes.size());
}

uint64_t chunk_offset(const BodyRecord& record, uint32_t chunk) {
  uint64_t offset = vectors_offset(record) + storage_bytes(record.vectors_bytes);
  for (uint32_t i = 0; i < chunk; ++i) {
    offset += storage_bytes(record.chunk_bytes[i]);
  }
  return offset;
}

uint64_t record_storage_bytes(const BodyRecord& record) {
  return chunk_offset(record, static_cast<uint32_t>(record.chunk_bytes.size()));
}

}  // namespace skv::nvme
