#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "tiers/body_store.h"
#include "tiers/checksum.h"

namespace skv::nvme {

// What is in the file, format version 0 (docs/on-disk-format.md has the same tables; a test
// compares them). Little-endian, every structure begins at a multiple of 4 KiB.
//
//   [front 4 MiB: copy i of superblock at i MiB, metadata slot i at i MiB + 4 KiB][segment 0][1]...
//   segment: [SegmentHeader 4 KiB] record* ... [SegmentSeal in the last 4 KiB]
//   record:  [RecordHeader + chunk table, whole 4 KiB][vectors, whole 4 KiB][chunk 0][chunk 1]...
static_assert(std::endian::native == std::endian::little, "the format is memory order");

inline constexpr uint32_t kFormatVersion = 0;
inline constexpr uint64_t kBlockBytes = 4096;
inline constexpr uint64_t kFrontBytes = 4u << 20;
inline constexpr uint64_t kCopyStride = 1u << 20;
inline constexpr uint32_t kCopies = 4;
inline constexpr uint64_t kMetaOffset = kBlockBytes;  // in the stride of a copy
inline constexpr uint64_t kMetaPayloadBytesMax = kCopyStride - 2 * kBlockBytes;
inline constexpr uint64_t kSegmentBytesMin = 1u << 20;
inline constexpr uint64_t kSegmentBytesMax = 1u << 30;
inline constexpr uint64_t kSegmentBytesDefault = 64u << 20;
inline constexpr uint32_t kSegmentsMin = 6;

inline constexpr uint64_t kSuperblockMagic = 0x5245505553564B53;  // "SKVSUPER"
inline constexpr uint64_t kMetaMagic = 0x304154454D564B53;        // "SKVMETA0"
inline constexpr uint64_t kSegmentMagic = 0x304745532D564B53;     // "SKV-SEG0"
inline constexpr uint64_t kSealMagic = 0x304C414553564B53;        // "SKVSEAL0"
inline constexpr uint64_t kIndexMagic = 0x305844492D564B53;       // "SKV-IDX0"
inline constexpr uint64_t kRecordMagic = 0x304345522D564B53;      // "SKV-REC0"

using Uuid = std::array<uint8_t, 16>;

// Begins every structure. `sum` covers bytes [24, bytes): all after itself; the magic is compared.
struct Prefix {
  uint64_t magic;
  ChunkSum sum;
  uint32_t format_version;
  uint32_t bytes;  // of the structure, a multiple of 4 KiB
  Uuid store_uuid;
  uint64_t own_offset;  // in the file: a block that was written elsewhere is not taken
};
static_assert(sizeof(Prefix) == 56);

struct Superblock {
  Prefix prefix;
  uint64_t file_bytes;
  uint64_t segment_bytes;
  uint64_t segment_count;
  uint64_t first_segment_offset;
  uint64_t open_count;  // +1 at each open, before anything else is written
};
static_assert(sizeof(Superblock) == 96);

// Metadata version n is in slots 2 (n mod 2) and 2 (n mod 2) + 1, so a torn write leaves n - 1.
struct MetaHeader {
  Prefix prefix;
  uint64_t sequence;
  uint32_t payload_bytes;
  uint32_t space_count;
  uint32_t model_count;
  uint32_t purge_count;
  ChunkSum payload_sum;
};
static_assert(sizeof(MetaHeader) == 96);

// Payload: SpaceEntry x space_count, then per model a ModelEntry and its bytes, rounded up to 8,
// then PurgeEntry x purge_count.
struct SpaceEntry {
  uint32_t uid;
  uint32_t reserved;
  Digest salt;
};
static_assert(sizeof(SpaceEntry) == 40);
struct ModelEntry {
  Digest fingerprint;
  uint32_t bytes;
  uint32_t reserved;
};
static_assert(sizeof(ModelEntry) == 40);
// What was purged stays away: no record of this key counts whose number is not above this one.
struct PurgeEntry {
  std::array<uint8_t, 16> key_begin;  // first half of a sentence key
  uint64_t record_number;
};
static_assert(sizeof(PurgeEntry) == 24);

struct SegmentHeader {
  Prefix prefix;
  uint64_t segment_index;
  uint64_t generation;  // open_count << 32 | grants of this open: never twice in one store
};
static_assert(sizeof(SegmentHeader) == 72);

// In the last block of a segment once all in it is complete and durable. Without it every record of
// the segment is verified at open.
struct SegmentSeal {
  Prefix prefix;
  uint64_t segment_index;
  uint64_t generation;
  uint64_t end_offset;   // in the segment: behind the last record; the index begins there
  uint64_t index_bytes;  // whole 4 KiB; 0: there was no room for one
};
static_assert(sizeof(SegmentSeal) == 88);

// The headers of the records that were live when the segment was sealed, without what their blocks
// are filled up with: one read instead of one per record. Entries follow, each an IndexEntry and as
// many bytes of the record's header.
struct SegmentIndex {
  Prefix prefix;
  uint64_t generation;
  uint32_t record_count;
  uint32_t reserved;
};
static_assert(sizeof(SegmentIndex) == 72);
struct IndexEntry {
  uint64_t offset;  // of the record, in the segment
  uint32_t bytes;   // kChunkTableOffset and the chunk table
  uint32_t reserved;
};
static_assert(sizeof(IndexEntry) == 16);

struct RecordHeader {
  Prefix prefix;  // bytes: 4096, or 8192 from 158 chunks on
  uint64_t generation;
  uint64_t record_number;  // open_count << 32 | count: of two records of one key the higher counts
  uint64_t record_bytes;   // header, vectors, chunks: what the record takes of the segment
  ChunkSum salt_id;        // XXH3-128 of the space's salt
  Digest fingerprint;
  Digest key;
  Digest parent_boundary;
  Digest end_boundary;
  Digest end_digest;
  uint32_t space_uid;
  uint32_t first_position;
  uint32_t token_count;
  uint32_t vectors_bytes;
  ChunkSum vectors_sum;
  uint32_t chunk_count;
  uint8_t index_kind;
  uint8_t run_tokens;
  uint16_t reserved;
};
static_assert(sizeof(RecordHeader) == 296);
inline constexpr uint64_t kChunkTableOffset = 320;

struct ChunkEntry {
  uint64_t bytes;  // what the sum covers; storage is rounded up to 4 KiB
  ChunkSum sum;
};
static_assert(sizeof(ChunkEntry) == 24);

constexpr uint64_t superblock_offset(uint32_t copy) { return copy * kCopyStride; }
constexpr uint64_t meta_offset(uint32_t slot) { return slot * kCopyStride + kMetaOffset; }
constexpr uint64_t header_bytes(uint64_t chunk_count) {
  return storage_bytes(kChunkTableOffset + chunk_count * sizeof(ChunkEntry));
}

// Where a record is.
struct Place {
  uint64_t offset = 0;  // in the file
  uint64_t generation = 0;
  uint64_t record_number = 0;
};

// Writes `sum` into the prefix of a finished structure of block.size() bytes.
void seal_block(std::span<std::byte> block);
// Fills magic, version, bytes, uuid and own offset of a zeroed block.
struct BlockId {
  uint64_t magic = 0;
  Uuid store_uuid{};
  uint64_t own_offset = 0;
};
void begin_block(std::span<std::byte> block, const BlockId& id);
// Magic, version, size, uuid, own offset and sum hold. `block` may be longer than the structure.
bool block_holds(std::span<const std::byte> block, const BlockId& id);

// The header of `record` at `place`, into a zeroed block of header_bytes(), summed.
void encode_record(const BodyRecord& record,
                   const ChunkSum& salt_id,
                   const BlockId& id,
                   const Place& place,
                   std::span<std::byte> block);

struct DecodedRecord {
  BodyRecord record;
  ChunkSum salt_id;
  uint64_t generation = 0;
  uint64_t record_number = 0;
  uint64_t record_bytes = 0;
};
// How many bytes a header at `block` (at least 4 KiB) claims to have: 4096, 8192, or nullopt: none.
std::optional<uint64_t> claimed_header_bytes(std::span<const std::byte> block);
// nullopt: not a header of this store at this offset, or a byte of it is wrong. Checks
// sizes against each other and that the record ends at or before `end_offset` (in the file).
std::optional<DecodedRecord> decode_record(std::span<const std::byte> block,
                                           const BlockId& id,
                                           uint64_t end_offset);

// Offsets from the record's start.
uint64_t vectors_offset(const BodyRecord& record);
uint64_t chunk_offset(const BodyRecord& record, uint32_t chunk);
uint64_t record_storage_bytes(const BodyRecord& record);

}  // namespace skv::nvme
