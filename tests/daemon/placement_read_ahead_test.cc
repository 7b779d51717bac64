#include <gtest/gtest.h>

#include "daemon/placement.h"
#include "tests/daemon/placement_world.h"

namespace skv {
namespace {

using test::World;

constexpr SessionId kA{1};

// 16 sentences of which the host holds the last few.
struct ColdWorld {
  explicit ColdWorld(uint64_t host_bytes) : world({.host_bytes = host_bytes}) {
    const Context context = world.chain(kA, 100, 16);
    for (uint32_t index = 0; index < 16; ++index) world.put(context, index, 1);
    (void)world.wait_for<Result<uint64_t>>(
        [&](auto done) { world.placement->flush(World::kSpace, done); });
    for (uint32_t index = 0; index < 16; ++index) {
      uids.push_back(context.find(*world.directory, index)->uid);
    }
    world.settle();
  }
  bool resident(uint32_t index, uint32_t chunk) const {
    return world.placement->host_chunks(uids[index])[chunk].offset != kNoExtent;
  }
  World world;
  std::vector<SentenceUid> uids;
};

// Goal: whatever is queued to be read ahead, a demand read starts at once and overtakes it.
TEST(PlacementReadAhead, DemandIsNeverBehindIt) {
  ColdWorld cold(1U << 20);
  Placement& placement = *cold.world.placement;
  std::vector<std::pair<uint32_t, uint32_t>> absent;
  for (uint32_t index = 0; index < 16; ++index) {
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      if (!cold.resident(index, chunk)) absent.emplace_back(index, chunk);
    }
  }
  ASSERT_GE(absent.size(), 8U);
  for (const auto& [index, chunk] : absent) placement.read_ahead(cold.uids[index], chunk);
  const uint32_t ahead = placement.usage().reads_in_flight;
  EXPECT_LE(ahead, PlacementOptions{}.ahead_reads_max);
  const auto [index, chunk] = absent.back();
  bool came = false;
  placement.acquire({.session = kA,
                     .uid = cold.uids[index],
                     .chunk = chunk,
                     .urgent = true,
                     .deadline_ns = cold.world.now_ns + 1'000'000'000,
                     .done = [&](Result<ChunkLease> lease) {
                       ASSERT_TRUE(lease.ok());
                       came = true;
                       placement.release(lease.value());
                     }});
  EXPECT_EQ(placement.usage().reads_in_flight, ahead + 1) << "it does not wait for a place";
  cold.world.fake->drain_some(ahead + 1);
  EXPECT_TRUE(came);
  cold.world.settle();
  EXPECT_EQ(placement.usage().reads_in_flight, 0U);
}

// Goal: it takes free room and what nobody read, nothing that was leased or read.
TEST(PlacementReadAhead, NeverTakesWhatWasReadOrIsLeased) {
  ColdWorld cold(1U << 20);
  Placement& placement = *cold.world.placement;
  std::vector<std::pair<uint32_t, uint32_t>> read;
  for (uint32_t index = 0; index < 16; ++index) {
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      if (cold.resident(index, chunk)) read.emplace_back(index, chunk);
    }
    placement.touch(std::span(&cold.uids[index], 1));
  }
  ASSERT_FALSE(read.empty());
  const uint64_t demotions = placement.counters().demotions;
  for (uint32_t index = 0; index < 16; ++index) placement.read_ahead(cold.uids[index], 0);
  cold.world.settle();
  EXPECT_EQ(placement.counters().demotions, demotions);
  for (const auto& [index, chunk] : read) EXPECT_TRUE(cold.resident(index, chunk));
  EXPECT_EQ(placement.usage().waiting, 0U) << "what found no room is dropped, not kept waiting";
}

// Goal: it helps. A read set that drifts by one sentence per step, from a cold start, with as many
// reads per step as the disk does: with read-ahead of what is next below the cut fewer chunks are
// missing when they are asked for.
TEST(PlacementReadAhead, ADriftingReadSetFindsItsNextChunks) {
  std::map<bool, uint32_t> missing;
  for (const bool ahead : {false, true}) {
    ColdWorld cold(4U << 20);
    World& world = cold.world;
    world.stop();
    world.start();
    const Context context = world.chain(kA, 100, 16);
    cold.uids.clear();
    for (uint32_t index = 0; index < 16; ++index) {
      cold.uids.push_back(context.find(*world.directory, index)->uid);
    }
    for (uint32_t step = 0; step + 6 <= 16; ++step) {
      for (uint32_t index = step; index < step + 4; ++index) {
        for (uint32_t chunk = 0; chunk < 2; ++chunk) {
          if (cold.resident(index, chunk)) continue;
          ++missing[ahead];
          world.placement->need_chunks(cold.uids[index], std::span(&chunk, 1), /*urgent=*/true);
        }
      }
      for (uint32_t index = step + 4; ahead && index < step + 6; ++index) {
        for (uint32_t chunk = 0; chunk < 2; ++chunk) {
          world.placement->read_ahead(cold.uids[index], chunk);
        }
      }
      world.fake->drain_some(step == 0 ? 10 : 3);
      world.placement->poll(world.now_ns += 1'000'000);
    }
    world.settle();
  }
  EXPECT_GT(missing[false], 20U);
  EXPECT_LE(missing[true], 8U + 2U) << "the first step's, and hardly more";
}

}  // namespace
}  // namespace skv
