#include "tiers/checksum.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "ipc/shared_memory.h"
#include "tiers/copy.h"

namespace skv {
namespace {

std::vector<std::byte> pattern(size_t bytes) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    data[i] = static_cast<std::byte>((i * 131) >> 3);
  }
  return data;
}

// The published test vector of XXH3-128 for no bytes: the format must not change with the library.
TEST(Checksum, IsXxh3_128) {
  const ChunkSum empty = checksum({});
  EXPECT_EQ(empty.high, 0x99aa06d3014798d8U);
  EXPECT_EQ(empty.low, 0x6001c324468d497fU);
}

// Runs a test body on every instruction set that this CPU has and that was compiled.
template <typename Body>
void on_each_target(const Body& body) {
  const int64_t targets = hwy::SupportedTargets();
  for (int64_t left = targets; left != 0; left &= left - 1) {
    hwy::SetSupportedTargetsForTest(left & -left);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(left & -left));
    body();
    if (testing::Test::HasFatalFailure()) break;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// Goal: a stream's sum is the published function's, by any instruction set, and by the lengths on
// every path: short ones, whole and half stripes and blocks of stripes, one byte more.
void check_lengths() {
  const std::vector<std::byte> data = pattern(100'003);
  std::vector<size_t> lengths = {1000, 1023, 1024, 1025, 2047, 2048, 2049, 65'536, data.size()};
  for (size_t bytes = 0; bytes <= 400; ++bytes) lengths.push_back(bytes);
  for (const size_t length : lengths) {
    const std::span<const std::byte> whole = std::span(data).first(length);
    for (const size_t step :
         {size_t{1}, size_t{63}, size_t{64}, size_t{192}, size_t{4096}, length}) {
      ChecksumStream stream;
      for (size_t at = 0; at < length; at += step) {
        stream.update(whole.subspan(at, std::min(step, length - at)));
        if (length > 400) continue;
        // Asking changes nothing.
        ASSERT_EQ(stream.sum(), checksum(whole.first(std::min(at + step, length))));
      }
      ASSERT_EQ(stream.sum(), checksum(whole)) << length << " bytes, " << step << " at a time";
    }
  }
}

TEST(ChecksumStream, AnyLengthInAnyPiecesIsTheSumOfTheWhole) { on_each_target(check_lengths); }

// Goal: a copy puts every byte where it belongs and no other, with the sum of what was written, at
// any alignment of both sides.
void check_copies() {
  const std::vector<std::byte> data = pattern(9000);
  for (const size_t step : {size_t{1}, size_t{100}, size_t{128}, size_t{2048}, size_t{6000}}) {
    for (const size_t to_at : {0, 1, 32, 64}) {
      for (const size_t from_at : {0, 1, 64}) {
        for (const size_t ask_ahead : {size_t{0}, size_t{1} << 40}) {  // far beyond the memory
          constexpr size_t kBytes = 6003;
          struct alignas(64) Line {
            std::byte bytes[64];
          };
          std::vector<Line> memory(120);
          auto* const to = reinterpret_cast<std::byte*>(memory.data());
          std::memset(to, 0x5A, memory.size() * sizeof(Line));
          ChecksumStream stream;
          for (size_t at = 0; at < kBytes; at += step) {
            stream.copy(to + to_at + at, data.data() + from_at + at, std::min(step, kBytes - at),
                        ask_ahead);
          }
          stores_done();
          ASSERT_EQ(std::memcmp(to + to_at, data.data() + from_at, kBytes), 0);
          ASSERT_EQ(stream.sum(), checksum({to + to_at, kBytes}));
          ASSERT_EQ(std::count(to, to + to_at, std::byte{0x5A}), static_cast<ptrdiff_t>(to_at));
          ASSERT_TRUE(std::all_of(to + to_at + kBytes, to + memory.size() * sizeof(Line),
                                  [](std::byte byte) { return byte == std::byte{0x5A}; }));
        }
      }
    }
  }
}

TEST(ChecksumStream, CopiesExactlyTheRangeWithItsSum) { on_each_target(check_copies); }

// Goal: what a peer changes while a copy runs cannot make the sum differ from what was written.
// Method: a thread that keeps changing the source, in a mapping of its own.
TEST(ChecksumStream, SumIsOfWhatWasWrittenWhileTheSourceChanges) {
  constexpr size_t kBytes = 64 << 10;
  const Result<UniqueFd> memory = create_shared_memory("test", kBytes);
  ASSERT_TRUE(memory.ok());
  const auto map = [&](MappedMemory::Access access) {
    return std::move(MappedMemory::map(memory.value().get(), kBytes, access)).value();
  };
  const MappedMemory from = map(MappedMemory::Access::kReadOnly);
  const MappedMemory peers = map(MappedMemory::Access::kReadWrite);
  std::vector<std::byte> to(kBytes);
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> rounds{0};
  std::thread peer([&] {
    for (uint32_t round = 1; !stop.load(); ++round) {
      for (size_t at = 0; at < kBytes; at += 8) {
        const uint64_t word = round * at;
        std::memcpy(peers.data() + at, &word, sizeof word);
      }
      rounds.store(round);
    }
  });
  for (uint32_t copies = 0; copies < 200 || rounds.load() < 20; ++copies) {
    ChecksumStream stream;
    for (size_t at = 0; at < kBytes; at += 1040) {  // whole stripes and parts
      stream.copy(to.data() + at, from.data() + at, std::min<size_t>(1040, kBytes - at), 2048);
    }
    stores_done();
    if (stream.sum() == checksum(to)) continue;
    ADD_FAILURE() << "copy " << copies;
    break;
  }
  stop.store(true);
  peer.join();
}

TEST(Checksum, EveryFlippedByteShows) {
  std::vector<std::byte> data = pattern(700);
  const ChunkSum good = checksum(data);
  for (std::byte& byte : data) {
    byte ^= std::byte{0x40};
    EXPECT_NE(checksum(data), good);
    byte ^= std::byte{0x40};
  }
  EXPECT_EQ(checksum(data), good);
}

}  // namespace
}  // namespace skv
