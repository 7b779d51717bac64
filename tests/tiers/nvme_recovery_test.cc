#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "tests/tiers/nvme_fixture.h"
#include "tiers/nvme_format.h"

namespace skv {
namespace {

const SampleBody& body(uint64_t number) {
  static std::map<uint64_t, SampleBody> made;
  auto at = made.find(number);
  if (at == made.end()) {
    at = made.emplace(number, SampleBody::make(number, {65'536, 40'000}, 2'000)).first;
  }
  return at->second;
}

// Goal: whatever byte of a header is wrong, the header is not taken.
TEST(NvmeFormat, EveryFlippedByteOfARecordHeaderIsSeen) {
  for (const size_t chunks : {size_t{2}, size_t{160}}) {
    const SampleBody sample = SampleBody::make(1, std::vector<uint64_t>(chunks, 3'000));
    AlignedBuffer block(nvme::header_bytes(chunks));
    const nvme::BlockId id{nvme::kRecordMagic, {1, 2, 3}, 1u << 22};
    nvme::encode_record(sample.record, {5, 6}, id, {1u << 22, 7, 8}, block.span());
    const auto decoded = nvme::decode_record(block.span(), id, 1u << 30);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(decoded->record, sample.record);
    EXPECT_EQ(decoded->generation, 7U);
    EXPECT_EQ(decoded->record_number, 8U);
    for (uint64_t at = 0; at < block.size(); ++at) {
      block.data()[at] ^= std::byte{0x20};
      EXPECT_FALSE(nvme::decode_record(block.span(), id, 1u << 30).has_value()) << "byte " << at;
      block.data()[at] ^= std::byte{0x20};
    }
  }
}

TEST(NvmeFormat, HeaderElsewhereOrOfAnotherStoreOrTooLongIsNotTaken) {
  const SampleBody& sample = body(1);
  AlignedBuffer block(4096);
  const nvme::BlockId id{nvme::kRecordMagic, {1, 2, 3}, 1u << 22};
  nvme::encode_record(sample.record, {}, id, {1u << 22, 7, 8}, block.span());
  EXPECT_FALSE(nvme::decode_record(block.span(), {id.magic, id.store_uuid, 1u << 23}, 1u << 30));
  EXPECT_FALSE(nvme::decode_record(block.span(), {id.magic, {9}, id.own_offset}, 1u << 30));
  const uint64_t end = id.own_offset + nvme::record_storage_bytes(sample.record);
  EXPECT_TRUE(nvme::decode_record(block.span(), id, end));
  EXPECT_FALSE(nvme::decode_record(block.span(), id, end - 4096));
  EXPECT_FALSE(nvme::decode_record(block.span(), id, id.own_offset));
}

// Goal: the same through the whole store: before the segment was sealed the record is a miss, its
// neighbours are not; sealed, the index has what the header had.
TEST(NvmeRecovery, RecordWithAWrongHeaderIsAMissItsNeighboursAreNot) {
  for (const bool sealed : {false, true}) {
    NvmeOnSimulatedDisk nvme_disk;
    nvme_disk.open();
    for (uint64_t number = 1; number <= 3; ++number) {
      ASSERT_TRUE(put_now(nvme_disk.store(), body(number)).ok());
    }
    ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
    sealed ? nvme_disk.close() : nvme_disk.kill();
    const uint64_t at = nvme_disk.record_offset(body(2));
    ASSERT_NE(at, 0U);
    const std::vector<std::byte> before(nvme_disk.media().begin(), nvme_disk.media().end());
    for (uint64_t byte = 0; byte < 4096; byte += byte < 400 ? 13 : 401) {
      nvme_disk.media()[at + byte] ^= std::byte{0x80};
      nvme_disk.open();
      EXPECT_EQ(nvme_disk.store().find(body(2).record.key) != nullptr, sealed) << byte;
      EXPECT_TRUE(!sealed || holds(nvme_disk.store(), body(2))) << byte;
      EXPECT_TRUE(holds(nvme_disk.store(), body(1))) << byte;
      EXPECT_TRUE(holds(nvme_disk.store(), body(3))) << byte;
      nvme_disk.kill();
      std::copy(before.begin(), before.end(), nvme_disk.media().begin());
    }
  }
}

// Of a segment that was not sealed every byte is verified at open; of a sealed one when it is read.
TEST(NvmeRecovery, RecordWithWrongBytesIsNeverServed) {
  for (const bool sealed : {false, true}) {
    for (const uint64_t byte : {4096 + 5, 8192 + 100, 8192 + 65'536 + 39'999}) {
      NvmeOnSimulatedDisk nvme_disk;
      nvme_disk.open();
      ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
      ASSERT_TRUE(put_now(nvme_disk.store(), body(2)).ok());
      ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
      sealed ? nvme_disk.close() : nvme_disk.kill();
      nvme_disk.media()[nvme_disk.record_offset(body(1)) + byte] ^= std::byte{1};

      nvme_disk.open();

      EXPECT_EQ(nvme_disk.store().find(body(1).record.key) != nullptr, sealed);
      EXPECT_EQ(nvme_disk.store().stats().skipped_records, sealed ? 0U : 1U);
      EXPECT_FALSE(holds(nvme_disk.store(), body(1)));
      EXPECT_TRUE(holds(nvme_disk.store(), body(2)));
    }
  }
}

// Goal: a wrong byte in the index costs its speed, nothing else; so does a seal of a store that
// wrote none.
TEST(NvmeRecovery, WithoutIndexTheHeadersAreWalked) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  for (uint64_t number = 1; number <= 3; ++number) {
    ASSERT_TRUE(put_now(nvme_disk.store(), body(number)).ok());
  }
  nvme_disk.close();
  const uint64_t segment = nvme_disk.record_offset(body(1)) - 4096;
  const uint64_t seal_at = segment + NvmeOnSimulatedDisk::kSegment - 4096;
  nvme::SegmentSeal seal;
  std::memcpy(&seal, nvme_disk.media().data() + seal_at, sizeof seal);
  ASSERT_GT(seal.index_bytes, 0U);
  const std::vector<std::byte> before(nvme_disk.media().begin(), nvme_disk.media().end());
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().stats().indexed_segments, 1U);
  nvme_disk.kill();
  for (uint64_t byte = 0; byte < seal.index_bytes + 1; byte += byte < 200 ? 7 : 151) {
    std::copy(before.begin(), before.end(), nvme_disk.media().begin());
    nvme_disk.media()[segment + seal.end_offset + byte] ^= std::byte{0x40};
    nvme_disk.open();
    EXPECT_EQ(nvme_disk.store().stats().indexed_segments, 0U) << byte;
    for (uint64_t number = 1; number <= 3; ++number) {
      EXPECT_TRUE(holds(nvme_disk.store(), body(number))) << byte;
    }
    nvme_disk.kill();
  }
  std::copy(before.begin(), before.end(), nvme_disk.media().begin());
  seal.index_bytes = 0;
  std::memcpy(nvme_disk.media().data() + seal_at, &seal, sizeof seal);
  nvme::seal_block(nvme_disk.media().subspan(seal_at, 4096));
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().stats().indexed_segments, 0U);
  EXPECT_EQ(nvme_disk.store().stats().recovered_records, 3U);
}

// Goal: purged is purged, also where the file holds an older copy that only was evicted; a later
// put of the same sentence counts.
TEST(NvmeRecovery, PurgeOutlivesAPowerCutAnEvictionDoesNot) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  for (uint64_t number = 1; number <= 4; ++number) {
    ASSERT_TRUE(put_now(nvme_disk.store(), body(number)).ok());
  }
  nvme_disk.store().erase(body(1).record.key);
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());  // two copies in the file
  nvme_disk.store().erase(body(2).record.key);
  nvme_disk.store().erase(body(3).record.key);
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  ASSERT_TRUE(
      purge_now(nvme_disk.store(), {body(1).record.key, body(3).record.key, body(9).record.key})
          .ok());
  EXPECT_EQ(nvme_disk.store().find(body(1).record.key), nullptr);
  EXPECT_EQ(nvme_disk.store().stats().purges, 3U);
  nvme_disk.cut_power(1);

  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().find(body(1).record.key), nullptr);
  EXPECT_TRUE(holds(nvme_disk.store(), body(2))) << "evicted: may be back, and here it is";
  EXPECT_EQ(nvme_disk.store().find(body(3).record.key), nullptr);
  EXPECT_TRUE(holds(nvme_disk.store(), body(4)));
  ASSERT_TRUE(put_now(nvme_disk.store(), body(3)).ok());
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  nvme_disk.cut_power(2);

  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().find(body(1).record.key), nullptr);
  EXPECT_TRUE(holds(nvme_disk.store(), body(3)));
}

TEST(NvmeRecovery, PurgeOfAPutUnderWayIsAPurge) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  std::optional<Result<void>> ended;
  BodyPut put = body(1).put([&](Result<void> result) { ended = std::move(result); });
  ASSERT_EQ(nvme_disk.store().put(put).value(), StoreOutcome::kAccepted);
  ASSERT_TRUE(purge_now(nvme_disk.store(), {body(1).record.key}).ok());
  drain_until(nvme_disk.store(), [&] { return ended.has_value(); });
  EXPECT_EQ(ended->error().code, ErrorCode::kCancelled);
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  ASSERT_NE(nvme_disk.record_offset(body(1)), 0U) << "its bytes are in the file";
  nvme_disk.cut_power(1);
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().find(body(1).record.key), nullptr);
}

// Goal: power may go at any write of a purge: before it is acknowledged either is right, and the
// tables always hold.
TEST(NvmeRecovery, PowerCutInAPurgeLeavesTheTablesWhole) {
  for (uint32_t writes = 0; writes < 4; ++writes) {
    NvmeOnSimulatedDisk nvme_disk;
    nvme_disk.open();
    ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
    ASSERT_TRUE(put_now(nvme_disk.store(), body(2)).ok());
    ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
    nvme_disk.disk().tear_after(writes, 1024);
    const bool durable = purge_now(nvme_disk.store(), {body(1).record.key}).ok();
    nvme_disk.cut_power(writes);
    nvme_disk.open();
    EXPECT_FALSE(durable && nvme_disk.store().find(body(1).record.key) != nullptr) << writes;
    EXPECT_TRUE(holds(nvme_disk.store(), body(2))) << writes;
  }
}

TEST(NvmeRecovery, VectorsThatComeLaterOutliveARestart) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  SampleBody bare = SampleBody::make(1, {65'536, 40'000}, 0);
  ASSERT_TRUE(put_now(nvme_disk.store(), bare).ok());
  ASSERT_TRUE(put_now(nvme_disk.store(), body(2)).ok());
  bare.vectors = body(2).vectors;
  bare.record.vectors_bytes = static_cast<uint32_t>(bare.vectors->size());
  ASSERT_TRUE(put_vectors_now(nvme_disk.store(), bare).ok());
  EXPECT_TRUE(holds(nvme_disk.store(), bare));
  ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
  for (const bool orderly : {false, true}) {
    orderly ? nvme_disk.close() : nvme_disk.cut_power(1);
    nvme_disk.open();
    EXPECT_TRUE(holds(nvme_disk.store(), bare)) << orderly;
    EXPECT_TRUE(holds(nvme_disk.store(), body(2))) << orderly;
    EXPECT_EQ(nvme_disk.store().stats().record_count, 2U);
  }
  SampleBody unknown = SampleBody::make(7, {4096}, 100);
  EXPECT_EQ(put_vectors_now(nvme_disk.store(), unknown).error().code, ErrorCode::kNotFound);
}

TEST(NvmeRecovery, SegmentWithoutHeaderLivesByItsSeal) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
  nvme_disk.close();
  const uint64_t segment = nvme_disk.record_offset(body(1)) - 4096;
  nvme_disk.media()[segment + 60] ^= std::byte{1};
  nvme_disk.open();
  EXPECT_TRUE(holds(nvme_disk.store(), body(1)));
}

TEST(NvmeRecovery, SuperblockAndTablesOutliveDamageToHalfOfTheirCopies) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  const Digest salt = nvme_disk.store().space_salt(1000).value();
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
  nvme_disk.close();
  const std::vector<std::byte> before(nvme_disk.media().begin(), nvme_disk.media().end());
  for (uint32_t first = 0; first < 4; ++first) {
    for (uint32_t second = 0; second < 4; ++second) {
      nvme_disk.media()[nvme::superblock_offset(first) + 40] ^= std::byte{1};
      if (second != first) {
        nvme_disk.media()[nvme::superblock_offset(second) + 9] ^= std::byte{1};
      }
      // One of each twin: the newest version is still there.
      nvme_disk.media()[nvme::meta_offset(first % 2) + 4096 + 8] ^= std::byte{1};
      nvme_disk.media()[nvme::meta_offset(2 + second % 2) + 20] ^= std::byte{1};
      nvme_disk.open();
      EXPECT_EQ(nvme_disk.store().space_salt(1000).value(), salt);
      EXPECT_TRUE(holds(nvme_disk.store(), body(1)));
      nvme_disk.kill();
      std::copy(before.begin(), before.end(), nvme_disk.media().begin());
    }
  }
  for (const uint32_t copy : {0U, 1U, 3U}) {
    nvme_disk.media()[nvme::superblock_offset(copy) + 40] ^= std::byte{1};
  }
  const auto damaged = nvme_disk.try_open();
  ASSERT_FALSE(damaged.ok());
  EXPECT_EQ(damaged.error().code, ErrorCode::kCorrupt);
}

// Salts made anew are other salts: what was put under a lost one is not found, under any key.
TEST(NvmeRecovery, RecordsOfALostSaltAreNotFound) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  ASSERT_TRUE(put_now(nvme_disk.store(), body(1)).ok());
  nvme_disk.close();
  for (uint32_t slot = 0; slot < 4; ++slot) {
    nvme::MetaHeader header;
    std::memcpy(&header, nvme_disk.media().data() + nvme::meta_offset(slot), sizeof header);
    if (header.space_count > 0) {
      nvme_disk.media()[nvme::meta_offset(slot) + 1] ^= std::byte{1};
    }
  }
  nvme_disk.open();
  EXPECT_EQ(nvme_disk.store().find(body(1).record.key), nullptr);
  EXPECT_EQ(nvme_disk.store().stats().skipped_records, 1U);
}

TEST(NvmeRecovery, AllTablesLostIsRefused) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  nvme_disk.close();
  for (uint32_t slot = 0; slot < 4; ++slot) {
    nvme_disk.media()[nvme::meta_offset(slot) + 1] ^= std::byte{1};
  }
  const auto damaged = nvme_disk.try_open();
  ASSERT_FALSE(damaged.ok());
  EXPECT_EQ(damaged.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(damaged.error().message.find("remove the file"), std::string::npos);
}

// Goal: power may go at any write of a burst; what was flushed is there, the rest is there or not,
// and nothing is wrong. Also in the very first open, while the store is being made.
TEST(NvmeRecovery, PowerCutAtEachWriteKeepsWhatWasFlushed) {
  for (uint32_t writes = 0; writes < 30; ++writes) {
    SCOPED_TRACE(testing::Message() << "cut at write " << writes);
    NvmeOnSimulatedDisk nvme_disk;
    nvme_disk.open();
    for (uint64_t number = 1; number <= 9; ++number) {
      ASSERT_TRUE(put_now(nvme_disk.store(), body(number)).ok());
    }
    ASSERT_TRUE(flush_now(nvme_disk.store()).ok());
    nvme_disk.disk().tear_after(writes, writes * 1536 % 70'000);
    for (uint64_t number = 10; number <= 24; ++number) {
      (void)put_now(nvme_disk.store(), body(number));
    }
    nvme_disk.cut_power(/*seed=*/writes);

    nvme_disk.open();

    for (uint64_t number = 1; number <= 24; ++number) {
      const bool found = nvme_disk.store().find(body(number).record.key) != nullptr;
      EXPECT_TRUE(found || number > 9) << number;
      if (found) {
        EXPECT_TRUE(holds(nvme_disk.store(), body(number))) << number;
      }
    }
    EXPECT_TRUE(put_now(nvme_disk.store(), body(99)).ok());
    EXPECT_TRUE(holds(nvme_disk.store(), body(99)));
  }
}

TEST(NvmeRecovery, ProgressGoesToAHundred) {
  NvmeOnSimulatedDisk nvme_disk;
  nvme_disk.open();
  nvme_disk.close();
  std::vector<uint32_t> told;
  NvmeStore::Options options = nvme_disk.options();
  options.progress = [&](uint32_t percent) { told.push_back(percent); };
  auto opened =
      NvmeStore::open(std::make_unique<SimulatedDisk>(nvme_disk.shared_media(), 1), options);
  ASSERT_TRUE(opened.ok());
  ASSERT_FALSE(told.empty());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), 100U);
}

}  // namespace
}  // namespace skv
