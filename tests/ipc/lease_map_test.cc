#include "ipc/lease_map.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

namespace skv {
namespace {

constexpr uint32_t kSentences = 4;
constexpr uint32_t kChunks = 3;

// Both sides over the same two memories, each with mappings of its own.
struct Sides {
  explicit Sides(uint32_t sentences = kSentences, uint32_t chunks = kChunks)
      : writer(LeaseMapWriter::create(sentences, chunks).value()),
        places(writer->take_places()),
        words(writer->take_words()) {}
  Result<LeaseMapReader> reader(uint32_t chunks = kChunks) const {
    using Access = MappedMemory::Access;
    return LeaseMapReader::open(
        MappedMemory::map(places.get(), writer->bytes(), Access::kReadOnly).value(),
        MappedMemory::map(words.get(), writer->bytes(), Access::kReadWrite).value(), chunks);
  }
  std::unique_ptr<LeaseMapWriter> writer;
  UniqueFd places;
  UniqueFd words;
};

TEST(LeaseMap, LeasesWhatIsShownAndNothingElse) {
  Sides sides;
  const LeaseMapReader reader = sides.reader().value();
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
    sides.writer->show(1, chunk, (10 + chunk) * 4096);
    sides.writer->show(2, chunk, (20 + chunk) * 4096);
  }
  sides.writer->hide(2, 2);

  std::vector<uint64_t> offsets{7};
  EXPECT_TRUE(reader.take({1, 1, 1, 2}, offsets));
  EXPECT_EQ(offsets, (std::vector<uint64_t>{7, 11 * 4096, 12 * 4096}));
  EXPECT_FALSE(sides.writer->held(1, 0));
  EXPECT_TRUE(sides.writer->held(1, 1) && sides.writer->held(1, 2));

  // One chunk is missing: none of the range is leased, and what was leased before still is.
  EXPECT_FALSE(reader.take({1, 2, 0, 3}, offsets));
  EXPECT_EQ(offsets.size(), 3U);
  EXPECT_FALSE(sides.writer->held(1, 0) || sides.writer->held(2, 0) || sides.writer->held(2, 2));
  EXPECT_TRUE(sides.writer->held(1, 1));

  // A second lease on the same chunks; both have to end.
  EXPECT_TRUE(reader.take({1, 1, 1, 2}, offsets));
  reader.give_back({1, 1, 1, 2});
  EXPECT_TRUE(sides.writer->held(1, 1));
  reader.give_back({1, 1, 1, 2});
  EXPECT_FALSE(sides.writer->held(1, 1));
  EXPECT_EQ(sides.writer->leases(), 2U);
}

TEST(LeaseMap, RangesBeyondTheMapAreNotThere) {
  Sides sides;
  const LeaseMapReader reader = sides.reader().value();
  std::vector<uint64_t> offsets;
  for (const LeaseMapReader::Range& range : {LeaseMapReader::Range{kSentences, 1, 0, 1},
                                             {0, kSentences + 1, 0, 1},
                                             {UINT32_MAX, 1, 0, 1},
                                             {1, UINT32_MAX, 0, 1},
                                             {0, 1, kChunks, 1},
                                             {0, 1, 0, kChunks + 1},
                                             {0, 1, UINT32_MAX, 2}}) {
    EXPECT_FALSE(reader.take(range, offsets)) << range.first_sentence << " " << range.first_chunk;
  }
  EXPECT_TRUE(offsets.empty());
}

TEST(LeaseMap, ALeaseMarksItsChunksAsTouchedUntilThatIsTaken) {
  Sides sides;
  const LeaseMapReader reader = sides.reader().value();
  sides.writer->show(0, 1, 4096);
  EXPECT_FALSE(sides.writer->take_touched(0, 1));
  std::vector<uint64_t> offsets;
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(reader.take({0, 1, 1, 1}, offsets));
    reader.give_back({0, 1, 1, 1});
    EXPECT_FALSE(sides.writer->held(0, 1));  // the mark is no lease
    EXPECT_TRUE(sides.writer->take_touched(0, 1));
    EXPECT_FALSE(sides.writer->take_touched(0, 1));
  }
}

TEST(LeaseMap, ThePlacesCannotBeWrittenByTheClient) {
  Sides sides;
  EXPECT_FALSE(
      MappedMemory::map(sides.places.get(), sides.writer->bytes(), MappedMemory::Access::kReadWrite)
          .ok());
}

TEST(LeaseMap, AMemoryThatIsNoneIsRefused) {
  Sides sides;
  EXPECT_FALSE(sides.reader(kChunks + 1).ok());
  const Sides larger(64 * kSentences, 64);
  using Access = MappedMemory::Access;
  const auto open = [&](const UniqueFd& places, const UniqueFd& words, uint64_t words_bytes) {
    return LeaseMapReader::open(
               MappedMemory::map(places.get(), larger.writer->bytes(), Access::kReadOnly).value(),
               MappedMemory::map(words.get(), words_bytes, Access::kReadWrite).value(), 64)
        .ok();
  };
  EXPECT_TRUE(open(larger.places, larger.words, larger.writer->bytes()));
  EXPECT_FALSE(open(larger.places, sides.words, sides.writer->bytes()));   // too few words
  EXPECT_FALSE(open(larger.words, larger.words, larger.writer->bytes()));  // no header
}

// Goal: a chunk that is hidden and not held afterwards is read by nobody: its memory can be given
// to another while readers go on.
// Method: one thread takes chunks away, writes other bytes into their memory and shows them
// elsewhere, in an order from a seed, while readers lease ranges and look at every word of them
// until they give them back. Each side has mappings of its own. Few chunks, small frames and many
// rounds: a reader that looks before it counts is found in most runs, a hide that is not
// sequentially consistent in some.
TEST(LeaseMap, WhatIsTakenAwayIsReadByNobody) {
  constexpr uint32_t kHot = 2;    // chunks, of one sentence
  constexpr uint32_t kWords = 4;  // of a frame
  constexpr uint32_t kFrames = 2 * kHot;
  constexpr uint64_t kRounds = 1'000'000;
  using Frame = std::array<std::atomic<uint64_t>, kWords>;
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Sides sides(1, kHot);
  std::vector<Frame> frames(kFrames);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> leased{0};

  const auto fill = [&](uint64_t frame, uint64_t value) {
    for (std::atomic<uint64_t>& word : frames[frame]) word.store(value, std::memory_order_relaxed);
  };
  const auto read = [&](uint32_t salt) {
    const LeaseMapReader reader = sides.reader(kHot).value();
    std::minstd_rand random(static_cast<uint32_t>(seed) + salt);
    std::vector<uint64_t> offsets;
    while (!stop.load(std::memory_order_relaxed)) {
      LeaseMapReader::Range range{0, 1, static_cast<uint32_t>(random() % kHot), 1};
      if (range.first_chunk == 0 && random() % 4 == 0) range.chunk_count = kHot;
      offsets.clear();
      if (!reader.take(range, offsets)) continue;
      leased.fetch_add(1, std::memory_order_relaxed);
      for (uint32_t pass = 0; pass < 3; ++pass) {
        for (size_t i = 0; i < offsets.size(); ++i) {
          for (const std::atomic<uint64_t>& word : frames[offsets[i] / 4096]) {
            if (word.load(std::memory_order_relaxed) != range.first_chunk + i) wrong.fetch_add(1);
          }
        }
      }
      reader.give_back(range);
    }
  };
  std::vector<std::thread> readers;
  for (uint32_t i = 0; i < 2; ++i) readers.emplace_back(read, i);

  std::minstd_rand random(static_cast<uint32_t>(seed));
  std::vector<uint64_t> free_frames(kFrames);
  for (uint64_t frame = 0; frame < kFrames; ++frame) free_frames[frame] = frame;
  std::array<uint64_t, kHot> frame_of{kFrames, kFrames};
  uint64_t taken = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while ((taken < kRounds || leased.load() < kRounds / 10) &&
         std::chrono::steady_clock::now() < deadline) {
    const auto chunk = static_cast<uint32_t>(random() % kHot);
    uint64_t& frame = frame_of[chunk];
    if (frame == kFrames) {  // arrives, at a place that another chunk had
      std::swap(free_frames[random() % free_frames.size()], free_frames.back());
      frame = free_frames.back();
      free_frames.pop_back();
      fill(frame, chunk);
      sides.writer->show(0, chunk, frame * 4096);
      continue;
    }
    sides.writer->hide(0, chunk);
    if (sides.writer->held(0, chunk)) {
      sides.writer->show(0, chunk, frame * 4096);
      continue;
    }
    fill(frame, ~uint64_t{0});
    free_frames.push_back(frame);
    frame = kFrames;
    ++taken;
  }
  stop.store(true);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_GT(taken, 0U);
  EXPECT_GT(leased.load(), 0U);
  for (uint32_t chunk = 0; chunk < kHot; ++chunk) EXPECT_FALSE(sides.writer->held(0, chunk));
}

}  // namespace
}  // namespace skv
