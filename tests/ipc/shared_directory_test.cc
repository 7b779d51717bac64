#include "ipc/shared_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

namespace skv {
namespace {

Digest key_of(uint64_t number) {
  Digest digest;
  const uint64_t mixed = (number + 1) * 0x9E3779B97F4A7C15ULL;
  std::memcpy(digest.bytes.data(), &mixed, sizeof mixed);
  return digest;
}
uint64_t tag_of(uint64_t number) { return shared_directory_tag(key_of(number)); }

SharedDirectoryReader reader_of(const SharedDirectoryWriter& writer) {
  auto mapped =
      MappedMemory::map(writer.read_only_fd(), writer.bytes(), MappedMemory::Access::kReadOnly);
  return SharedDirectoryReader::open(std::move(mapped).value()).value();
}

// Goal: the newest memory shows what was set, and nothing else, through growth, removal and reuse.
// Method: random settings against a map; readers of older memories know that they are.
TEST(SharedDirectory, ShowsWhatWasSet) {
  auto writer = SharedDirectoryWriter::create(1U << 20).value();
  std::map<uint64_t, uint64_t> known;
  std::vector<SharedDirectoryReader> readers;
  readers.push_back(reader_of(*writer));
  std::mt19937_64 random(3);
  uint64_t range = 500;
  for (int step = 0; step < 60'000; ++step) {
    if (step % 10'000 == 9'999) range *= 2;
    const uint64_t number = random() % range;
    BoundaryEdges edges;
    if (random() % 100 < 60) edges.stored = 1 + random() % BoundaryEdges::kMask;
    if (random() % 100 < 30) edges.pending = 1 + random() % BoundaryEdges::kMask;
    edges.owner = static_cast<uint32_t>(random() % 100);
    writer->set(key_of(number), edges);
    known.erase(number);
    if (edges.any()) known[number] = edges.pack();
    if (!readers.back().current()) readers.push_back(reader_of(*writer));
    if (step % 500 != 0) continue;
    for (uint64_t each = 0; each < range; ++each) {
      const auto found = known.find(each);
      ASSERT_EQ(readers.back().find(tag_of(each)), found == known.end() ? 0 : found->second)
          << "step " << step;
    }
  }
  EXPECT_EQ(writer->live(), known.size());
  EXPECT_FALSE(writer->incomplete());
  EXPECT_GE(readers.size(), 4U);
  for (size_t old = 0; old + 1 < readers.size(); ++old) EXPECT_FALSE(readers[old].current());
}

TEST(SharedDirectory, EmptiedPlacesAreUsedAgain) {
  auto writer = SharedDirectoryWriter::create(1U << 20).value();
  const SharedDirectoryReader reader = reader_of(*writer);
  for (uint64_t number = 0; number < 200'000; ++number) {
    writer->set(key_of(number), {.stored = 1});
    if (number >= 200) writer->set(key_of(number - 200), {});
  }
  EXPECT_EQ(writer->live(), 200U);
  EXPECT_FALSE(writer->incomplete());
  EXPECT_EQ(writer->bytes(), kSharedDirectorySlotsOffset + 1024 * sizeof(SharedDirectorySlot));
}

TEST(SharedDirectory, AtItsLimitTheRestIsLeftOut) {
  auto writer = SharedDirectoryWriter::create(1024).value();
  for (uint64_t number = 0; number < 5000; ++number) writer->set(key_of(number), {.stored = 1});
  const SharedDirectoryReader reader = reader_of(*writer);
  EXPECT_TRUE(reader.incomplete());
  EXPECT_LE(writer->live(), 1024U);
  uint64_t seen = 0;
  for (uint64_t number = 0; number < 5000; ++number) seen += reader.find(tag_of(number)) != 0;
  EXPECT_EQ(seen, writer->live());
  EXPECT_GT(seen, 900U);
}

// Goal: keys aimed at one place cost a bounded search and no other boundary.
TEST(SharedDirectory, AimedKeysAreBounded) {
  auto writer = SharedDirectoryWriter::create(4096).value();
  for (uint64_t number = 0; number < 1000; ++number) {
    Digest digest;
    const uint64_t tag = 7 + (number + 1) * (1ULL << 32);  // one home in any of these sizes
    std::memcpy(digest.bytes.data(), &tag, sizeof tag);
    writer->set(digest, {.stored = 1});
  }
  EXPECT_LE(writer->live(), kSharedDirectoryProbesMax);
  writer->set(key_of(1), {.stored = 5});
  EXPECT_NE(reader_of(*writer).find(tag_of(1)), 0U);
}

TEST(SharedDirectory, ClientsCannotWriteIt) {
  auto writer = SharedDirectoryWriter::create(1024).value();
  EXPECT_FALSE(
      MappedMemory::map(writer->read_only_fd(), writer->bytes(), MappedMemory::Access::kReadWrite)
          .ok());
  EXPECT_EQ(::fcntl(writer->read_only_fd(), F_GETFL) & O_ACCMODE, O_RDONLY);
  const int seals = ::fcntl(writer->read_only_fd(), F_GET_SEALS);
  EXPECT_EQ(seals & (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL),
            F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
}

TEST(SharedDirectory, OtherMemoryIsRefused) {
  const auto open = [](uint64_t bytes, const SharedDirectoryHeader* header) {
    UniqueFd fd = create_shared_memory("test", bytes).value();
    MappedMemory memory =
        MappedMemory::map(fd.get(), bytes, MappedMemory::Access::kReadWrite).value();
    if (header != nullptr) std::memcpy(memory.data(), static_cast<const void*>(header), 32);
    return SharedDirectoryReader::open(std::move(memory));
  };
  constexpr uint64_t kBytes = kSharedDirectorySlotsOffset + 1024 * sizeof(SharedDirectorySlot);
  SharedDirectoryHeader good{};
  good.magic = kSharedDirectoryMagic;
  good.version = kSharedDirectoryVersion;
  good.slot_bytes = sizeof(SharedDirectorySlot);
  good.slot_count = 1024;
  EXPECT_TRUE(open(kBytes, &good).ok());
  EXPECT_FALSE(open(kBytes, nullptr).ok());
  EXPECT_FALSE(open(4096, &good).ok());
  for (const uint64_t slots :
       {uint64_t{0}, uint64_t{1000}, uint64_t{2048}, ~uint64_t{0}, uint64_t{1} << 63}) {
    good.slot_count = slots;
    EXPECT_FALSE(open(kBytes, &good).ok()) << slots;
  }
}

// Goal: whoever reads while the daemon writes sees each boundary as it was at some moment, never
// the edges of one as another's.
// Method: the state of a boundary is a function of its tag; places change hands all the time.
TEST(SharedDirectory, AReaderNeverTakesOneBoundaryForAnother) {
  auto writer = SharedDirectoryWriter::create(1024).value();
  const SharedDirectoryReader reader = reader_of(*writer);
  const auto edges_of = [](uint64_t number) {
    return BoundaryEdges{.stored = 1 + static_cast<uint32_t>(number % BoundaryEdges::kMask),
                         .host = 0,
                         .pending = 0,
                         .owner = static_cast<uint32_t>(number)};
  };
  constexpr uint64_t kNumbers = 700;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> seen{0};
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      while (!stop.load(std::memory_order_relaxed)) {
        const uint64_t number = random() % kNumbers;
        const uint64_t state = reader.find(tag_of(number));
        if (state == 0) continue;
        seen.fetch_add(1, std::memory_order_relaxed);
        EXPECT_EQ(state, edges_of(number).pack());
      }
    });
  }
  // So few at a time that this memory is never replaced.
  for (uint64_t step = 0; step < 400'000 || (seen.load() < 1000 && step < 40'000'000); ++step) {
    writer->set(key_of(step % kNumbers), edges_of(step % kNumbers));
    writer->set(key_of((step + kNumbers - 300) % kNumbers), {});
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(reader.current());
  EXPECT_GE(seen.load(), 1000U);
}

}  // namespace
}  // namespace skv
