#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tiers/nvme_format.h"

namespace skv::nvme {
namespace {

struct Field {
  uint64_t offset;
  uint64_t bytes;
  std::string name;
  friend bool operator==(const Field&, const Field&) = default;
  friend void PrintTo(const Field& field, std::ostream* out) {
    *out << field.offset << " " << field.bytes << " " << field.name;
  }
};

#define FIELD(type, name) \
  Field { offsetof(type, name), sizeof(type::name), #name }

std::map<std::string, std::vector<Field>> layout_of_the_code() {
  return {
      {"Prefix",
       {FIELD(Prefix, magic), FIELD(Prefix, sum), FIELD(Prefix, format_version),
        FIELD(Prefix, bytes), FIELD(Prefix, store_uuid), FIELD(Prefix, own_offset)}},
      {"Superblock",
       {FIELD(Superblock, prefix), FIELD(Superblock, file_bytes), FIELD(Superblock, segment_bytes),
        FIELD(Superblock, segment_count), FIELD(Superblock, first_segment_offset),
        FIELD(Superblock, open_count)}},
      {"MetaHeader",
       {FIELD(MetaHeader, prefix), FIELD(MetaHeader, sequence), FIELD(MetaHeader, payload_bytes),
        FIELD(MetaHeader, space_count), FIELD(MetaHeader, model_count),
        FIELD(MetaHeader, purge_count), FIELD(MetaHeader, payload_sum)}},
      {"SpaceEntry",
       {FIELD(SpaceEntry, uid), FIELD(SpaceEntry, reserved), FIELD(SpaceEntry, salt)}},
      {"ModelEntry",
       {FIELD(ModelEntry, fingerprint), FIELD(ModelEntry, bytes), FIELD(ModelEntry, reserved)}},
      {"PurgeEntry", {FIELD(PurgeEntry, key_begin), FIELD(PurgeEntry, record_number)}},
      {"SegmentIndex",
       {FIELD(SegmentIndex, prefix), FIELD(SegmentIndex, generation),
        FIELD(SegmentIndex, record_count), FIELD(SegmentIndex, reserved)}},
      {"IndexEntry",
       {FIELD(IndexEntry, offset), FIELD(IndexEntry, bytes), FIELD(IndexEntry, reserved)}},
      {"SegmentHeader",
       {FIELD(SegmentHeader, prefix), FIELD(SegmentHeader, segment_index),
        FIELD(SegmentHeader, generation)}},
      {"SegmentSeal",
       {FIELD(SegmentSeal, prefix), FIELD(SegmentSeal, segment_index),
        FIELD(SegmentSeal, generation), FIELD(SegmentSeal, end_offset),
        FIELD(SegmentSeal, index_bytes)}},
      {"RecordHeader",
       {FIELD(RecordHeader, prefix), FIELD(RecordHeader, generation),
        FIELD(RecordHeader, record_number), FIELD(RecordHeader, record_bytes),
        FIELD(RecordHeader, salt_id), FIELD(RecordHeader, fingerprint), FIELD(RecordHeader, key),
        FIELD(RecordHeader, parent_boundary), FIELD(RecordHeader, end_boundary),
        FIELD(RecordHeader, end_digest), FIELD(RecordHeader, space_uid),
        FIELD(RecordHeader, first_position), FIELD(RecordHeader, token_count),
        FIELD(RecordHeader, vectors_bytes), FIELD(RecordHeader, vectors_sum),
        FIELD(RecordHeader, chunk_count), FIELD(RecordHeader, index_kind),
        FIELD(RecordHeader, run_tokens), FIELD(RecordHeader, reserved)}},
      {"ChunkEntry", {FIELD(ChunkEntry, bytes), FIELD(ChunkEntry, sum)}},
  };
}

std::string document() {
  std::ifstream in(std::string(SKV_SOURCE_DIR) + "/docs/on-disk-format.md");
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// Rows "| 56 | 8 | `file_bytes` | ..." below "### Name".
std::map<std::string, std::vector<Field>> layout_of_the_document() {
  std::map<std::string, std::vector<Field>> tables;
  std::istringstream lines(document());
  std::string heading;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind('#', 0) == 0) {
      heading = line.rfind("### ", 0) == 0 ? line.substr(4) : "";
    }
    std::istringstream row(line);
    char bar = 0;
    Field field{};
    char next = 0;
    if (row >> bar >> field.offset >> next >> field.bytes && bar == '|' && next == '|') {
      const size_t from = line.find('`');
      field.name = line.substr(from + 1, line.find('`', from + 1) - from - 1);
      tables[heading].push_back(field);
    }
  }
  return tables;
}

// Goal: the page and the code are one layout, and its tables leave no hole.
TEST(NvmeFormatDocument, TablesAreTheLayoutOfTheCode) {
  const auto code = layout_of_the_code();
  const auto page = layout_of_the_document();
  for (const auto& [name, fields] : code) {
    ASSERT_TRUE(page.contains(name)) << name;
    EXPECT_EQ(page.at(name), fields) << name;
    uint64_t end = 0;
    for (const Field& field : fields) {
      EXPECT_EQ(field.offset, end) << name << " " << field.name;
      end = field.offset + field.bytes;
    }
  }
}

TEST(NvmeFormatDocument, NumbersInTheTextAreTheConstantsOfTheCode) {
  const std::string text = document();
  EXPECT_NE(text.find("format version " + std::to_string(kFormatVersion)), std::string::npos);
  EXPECT_NE(text.find("begins at offset " + std::to_string(kChunkTableOffset)), std::string::npos);
  EXPECT_NE(text.find("8 KiB from 158 chunks on"), std::string::npos);
  EXPECT_EQ(header_bytes(157), 4096U);
  EXPECT_EQ(header_bytes(158), 8192U);
  EXPECT_EQ(header_bytes(kRecordChunksMax), 8192U);
  EXPECT_EQ(kFrontBytes, 4u << 20);
  EXPECT_EQ(superblock_offset(3), 3u << 20);
  EXPECT_EQ(meta_offset(3), (3u << 20) + 4096);
  EXPECT_EQ(kMetaPayloadBytesMax + kBlockBytes, (1u << 20) - 4096);
  for (const uint64_t magic :
       {kSuperblockMagic, kMetaMagic, kSegmentMagic, kSealMagic, kRecordMagic}) {
    std::string spelled(8, ' ');
    std::memcpy(spelled.data(), &magic, 8);
    EXPECT_NE(text.find("`" + spelled + "`"), std::string::npos) << spelled;
  }
}

}  // namespace
}  // namespace skv::nvme
