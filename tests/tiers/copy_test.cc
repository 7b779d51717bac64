#include "tiers/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tiers/move_copier.h"

namespace skv {
namespace {

std::vector<std::byte> noise(size_t bytes) {
  std::mt19937 random(7);
  std::vector<std::byte> data(bytes);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  return data;
}

// Goal: every byte of the range and no other, at any alignment of the two sides and any length.
TEST(CopyAroundCaches, CopiesExactlyTheRange) {
  const std::vector<std::byte> from = noise(5000);
  for (const size_t bytes : {0, 1, 15, 16, 63, 64, 65, 127, 255, 256, 257, 1000, 4096}) {
    for (const size_t to_at : {0, 1, 16, 33, 64, 100}) {
      for (const size_t from_at : {0, 1, 48}) {
        std::vector<std::byte> to(5000, std::byte{0x5A});
        copy_around_caches(to.data() + to_at, from.data() + from_at, bytes);
        stores_done();
        ASSERT_TRUE(std::equal(from.begin() + static_cast<ptrdiff_t>(from_at),
                               from.begin() + static_cast<ptrdiff_t>(from_at + bytes),
                               to.begin() + static_cast<ptrdiff_t>(to_at)))
            << bytes << " bytes to " << to_at << " from " << from_at;
        ASSERT_EQ(
            std::count(to.begin(), to.begin() + static_cast<ptrdiff_t>(to_at), std::byte{0x5A}),
            static_cast<ptrdiff_t>(to_at));
        ASSERT_TRUE(std::all_of(to.begin() + static_cast<ptrdiff_t>(to_at + bytes), to.end(),
                                [](std::byte byte) { return byte == std::byte{0x5A}; }));
      }
    }
  }
}

// Goal: every move of every batch is there when run() returns, whoever copied it.
// Method: batches below and above what wakes helpers, many in a row, so that a helper that comes
// late finds the next batch; each writes its own pattern over the whole slab.
TEST(MoveCopier, EveryMoveIsThereWhenItReturns) {
  constexpr uint64_t kBytes = 4ULL << 20;
  constexpr uint32_t kBlock = 4096;
  std::vector<std::byte> from(kBytes);
  std::vector<std::byte> to(kBytes);
  for (const uint32_t threads : {1U, 2U, 4U}) {
    MoveCopier gather(threads);
    for (uint32_t round = 1; round <= 60; ++round) {
      const uint64_t bytes = round % 3 == 0 ? kBytes : uint64_t{kBlock} * round;
      std::vector<SlotPool::Move> moves;
      for (uint64_t at = 0; at < bytes; at += kBlock) {
        moves.push_back({at, bytes - kBlock - at, kBlock});
        std::fill_n(from.begin() + static_cast<ptrdiff_t>(at), kBlock,
                    static_cast<std::byte>(at / kBlock + round));
      }
      gather.run(moves, from.data(), to.data());
      for (const SlotPool::Move& move : moves) {
        ASSERT_TRUE(std::equal(from.begin() + static_cast<ptrdiff_t>(move.from),
                               from.begin() + static_cast<ptrdiff_t>(move.from + kBlock),
                               to.begin() + static_cast<ptrdiff_t>(move.to)))
            << threads << " threads, round " << round << ", move to " << move.to;
      }
    }
  }
}

}  // namespace
}  // namespace skv
