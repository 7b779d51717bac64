#include "daemon/lease_maps.h"

#include <gtest/gtest.h>

#include "tests/daemon/placement_world.h"

namespace skv {
namespace {

using test::has_pattern;
using test::World;

constexpr SessionId kA{1};
constexpr SessionId kB{2};
constexpr LeaseMapId kMap{1};
constexpr uint32_t kChunks = 2;  // of a sentence of World's model

using Range = LeaseMapReader::Range;
Range whole(uint32_t sentence, uint32_t count = 1) { return {sentence, count, 0, kChunks}; }

// Whether the bytes at the offsets that a lease gave are those of the sentence.
bool reads_the_same(const World& world,
                    const Context& context,
                    uint32_t sentence,
                    const std::vector<uint64_t>& offsets) {
  const BodyLayout& layout = context.model()->layout();
  const Context::ClosedSentence& closed = context.sentence(sentence);
  for (uint32_t chunk = 0; chunk < offsets.size(); ++chunk) {
    const uint64_t bytes = layout.chunk_bytes(chunk, closed.span.block_count);
    if (!has_pattern(world.memory(offsets[chunk], bytes), closed.key, chunk)) return false;
  }
  return true;
}

bool take(const LeaseMapReader& reader, uint32_t sentence, std::vector<uint64_t>* offsets) {
  std::vector<uint64_t> found;
  const bool taken = reader.take(whole(sentence), found);
  if (offsets != nullptr) *offsets = found;
  return taken;
}
bool there(const LeaseMapReader& reader, uint32_t sentence) {
  if (!take(reader, sentence, nullptr)) return false;
  reader.give_back(whole(sentence));
  return true;
}

// Puts sentences of other documents, one after another, until `count` were put.
void press(World& world, uint32_t seed, uint32_t count) {
  const Context other = world.chain(kB, seed, count);
  for (uint32_t index = 0; index < count; ++index) {
    ASSERT_EQ(world.put(other, index, 1)[0].outcome, PutOutcome::kReserved) << index;
  }
}

// How many sentences of 128 KiB can be put at one go: all of `count` only if nothing has to stay.
uint32_t room_for(World& world, uint32_t seed, uint32_t count) {
  const Context other = world.chain(kB, seed, count);
  const auto results = world.reserve(other, 0, count);
  world.settle();
  world.now_ns += 20'000'000;
  world.placement->poll(world.now_ns);
  uint32_t reserved = 0;
  for (const auto& result : **results) {
    if (result.outcome != PutOutcome::kReserved) continue;
    ++reserved;
    EXPECT_EQ(world.placement->put_cancel(kB, result.uid), PutOutcome::kCancelled);
  }
  return reserved;
}

TEST(LeaseMaps, WhatIsReadInPlaceStaysUnderPressure) {
  World world({.host_bytes = 1U << 20});  // 8 sentences of 128 KiB
  const Context context = world.chain(kA, 100, 3);
  world.put(context, 0, 3);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  std::vector<uint64_t> offsets;
  ASSERT_TRUE(take(reader, 1, &offsets));
  ASSERT_TRUE(reads_the_same(world, context, 1, offsets));

  press(world, 9000, 24);
  EXPECT_GT(world.placement->counters().demotions, 0U);
  EXPECT_TRUE(reads_the_same(world, context, 1, offsets));
  EXPECT_TRUE(there(reader, 1));   // by a second lease, too
  EXPECT_FALSE(there(reader, 0));  // gone, and not shown
  EXPECT_EQ(room_for(world, 20'000, 8), 7U);
  EXPECT_TRUE(reads_the_same(world, context, 1, offsets));
  reader.give_back(whole(1));
  EXPECT_EQ(room_for(world, 20'000, 8), 8U);
  EXPECT_FALSE(there(reader, 1));
  EXPECT_EQ(world.placement->usage().chunk_leases, 0U);
}

TEST(LeaseMaps, AFullHostThatIsReadIsAnOutcome) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 8);
  world.put(context, 0, 8);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  std::vector<uint64_t> offsets;
  ASSERT_TRUE(reader.take(whole(0, 8), offsets));

  const Context other = world.chain(kB, 9000, 4);
  const auto refused = world.reserve(other, 0, 2);
  world.settle();
  EXPECT_FALSE(refused->has_value());  // readers may end
  world.now_ns += 2'000'000;
  world.placement->poll(world.now_ns);
  ASSERT_TRUE(refused->has_value());
  EXPECT_EQ((**refused)[0].outcome, PutOutcome::kFull);

  // They end without a word; who waits meanwhile finds out by the clock.
  const auto waiting = world.reserve(other, 0, 2, /*wait_ns=*/1'000'000'000);
  world.settle();
  ASSERT_FALSE(waiting->has_value());
  reader.give_back(whole(0, 8));
  for (int turn = 0; turn < 64 && !waiting->has_value(); ++turn) {
    world.now_ns += 5'000'000;
    world.settle_once();
  }
  ASSERT_TRUE(waiting->has_value());
  EXPECT_EQ((**waiting)[1].outcome, PutOutcome::kReserved);
}

TEST(LeaseMaps, ReadingInPlaceKeepsAChunkYoung) {
  World world({.host_bytes = 2U << 20});  // 16 sentences of 128 KiB
  const Context context = world.chain(kA, 100, 6);
  world.put(context, 0, 6);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  uint32_t kept = 0;
  for (uint32_t round = 0; round < 12; ++round) {
    kept += there(reader, 3) ? 1 : 0;
    press(world, 10'000 * (round + 1), 3);
  }
  EXPECT_EQ(kept, 12U);  // through more than twice the budget of other puts
  EXPECT_FALSE(there(reader, 2) || there(reader, 4));
}

TEST(LeaseMaps, ALeafThatIsReadInPlaceIsNotTheFirstToBeEvicted) {
  World world({.host_bytes = 1U << 20, .nvme_bytes = 0});
  const Context read = world.chain(kA, 100, 1);
  const Context unread = world.chain(kA, 5000, 1);
  world.put(read, 0, 1);
  world.put(unread, 0, 1);
  const LeaseMapReader reader = world.lease_map(kMap, read).value();
  uint32_t kept = 0;
  for (uint32_t round = 0; round < 10; ++round) {
    kept += there(reader, 0) ? 1 : 0;
    press(world, 10'000 * (round + 1), 2);
  }
  EXPECT_EQ(kept, 10U);
  EXPECT_EQ(unread.match(*world.directory).hit_tokens, 0U);
}

TEST(LeaseMaps, DropKeepsWhatIsReadInPlace) {
  World world({});
  const Context context = world.chain(kA, 100, 3);
  world.put(context, 0, 3);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  ASSERT_TRUE(take(reader, 1, nullptr));
  std::vector<Digest> keys;
  for (const auto& sentence : context.sentences()) keys.push_back(sentence.key);
  const auto drop = [&] {
    return world
        .wait_for<Result<Placement::DropOutcome>>(
            [&](auto done) { world.placement->drop(keys, std::move(done)); })
        .value();
  };
  EXPECT_EQ(drop().dropped, 1U);  // the last one
  reader.give_back(whole(1));
  EXPECT_EQ(drop().dropped, 2U);
}

// Goal: a sentence that leaves the directory although it is read (its record was found corrupt)
// keeps its memory until the reader is done, is leased by nobody else, and leaves no account open;
// put again, it is shown again while the old one is still read.
TEST(LeaseMaps, ARemovedSentenceKeepsItsMemoryUntilItsReadersAreDone) {
  World world({});
  const Context context = world.chain(kA, 100, 2);
  const auto put = world.put(context, 0, 2);
  ASSERT_TRUE(world
                  .wait_for<Result<uint64_t>>(
                      [&](auto done) { world.placement->flush(World::kSpace, std::move(done)); })
                  .ok());
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  std::vector<uint64_t> offsets;
  ASSERT_TRUE(reader.take({0, 1, 0, 1}, offsets));  // its first chunk only

  // Its second chunk goes, comes back corrupt, and the sentence goes with it.
  ASSERT_TRUE(there(reader, 1));
  for (uint32_t seed = 9000; world.placement->host_chunks(put[0].uid)[1].offset != kNoExtent;
       seed += 2000) {
    press(world, seed, 20);
  }
  world.fake->corrupt.insert(context.sentence(0).key);
  const std::vector<uint32_t> wanted{1};
  world.placement->need_chunks(put[0].uid, wanted, true);
  world.settle();
  ASSERT_EQ(world.directory->find(context.sentence(0).key), nullptr);
  const auto same = [&] {
    const uint64_t bytes = context.model()->layout().chunk_bytes(0, 4);
    return has_pattern(world.memory(offsets[0], bytes), context.sentence(0).key, 0);
  };
  EXPECT_TRUE(same());
  EXPECT_FALSE(there(reader, 0));
  EXPECT_FALSE(reader.take({0, 1, 0, 1}, offsets));

  world.fake->corrupt.clear();
  ASSERT_EQ(world.put(context, 0, 1)[0].outcome, PutOutcome::kReserved);
  world.settle();
  EXPECT_TRUE(there(reader, 0));
  EXPECT_TRUE(same());
  const uint64_t used = world.host->stats().used_bytes;
  reader.give_back({0, 1, 0, 1});
  world.now_ns += 100'000'000;
  world.settle();
  EXPECT_LT(world.host->stats().used_bytes, used);  // the old chunk's memory
  EXPECT_TRUE(there(reader, 0));
  EXPECT_TRUE(world.lease_maps->close(kA, kMap));
  EXPECT_EQ(world.lease_maps->usage().bytes, 0U);
}

TEST(LeaseMaps, TheMapFollowsItsContextAndWhoeverPutsIt) {
  World world({});
  const Context context = world.chain(kA, 100, 4);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  EXPECT_FALSE(there(reader, 0));
  const Context other = world.chain(kB, 100, 4);
  world.put(other, 0, 2);
  world.settle();
  EXPECT_TRUE(there(reader, 0) && there(reader, 1));
  EXPECT_FALSE(there(reader, 2));
  world.put(context, 2, 2);
  world.settle();
  EXPECT_TRUE(there(reader, 2) && there(reader, 3));
  // Two maps of one sentence: each holds it, and one end is not the other's.
  const LeaseMapReader second = world.lease_map(LeaseMapId{2}, other).value();
  ASSERT_TRUE(take(reader, 0, nullptr) && take(second, 0, nullptr));
  const SentenceUid uid = context.find(*world.directory, 0)->uid;
  EXPECT_TRUE(world.lease_maps->close(kA, kMap));
  EXPECT_TRUE(world.lease_maps->reads(uid, 0));
  second.give_back(whole(0));
  EXPECT_FALSE(world.lease_maps->reads(uid, 0));
}

TEST(LeaseMaps, ALongContextIsShownOverSeveralTurns) {
  World world({.chunks_per_turn = 4});  // 2 sentences
  const Context context = world.chain(kA, 100, 5);
  world.put(context, 0, 5);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  for (uint32_t shown = 2; shown < 5; shown += 2) {
    EXPECT_TRUE(there(reader, shown - 1));
    EXPECT_FALSE(there(reader, shown));
    world.lease_maps->run_pending();
  }
  EXPECT_TRUE(there(reader, 4));
}

TEST(LeaseMaps, LimitsAreNamedAndHold) {
  World world({.host_bytes = 4U << 20, .in_place_bytes = 400U << 10});  // 3 sentences of 128 KiB
  const Context context = world.chain(kA, 100, 4);
  const Context more = world.chain(kA, 5000, 4);
  world.put(context, 0, 4);
  world.put(more, 0, 4);
  const LeaseMapReader first = world.lease_map(kMap, context).value();
  EXPECT_TRUE(there(first, 2));
  EXPECT_FALSE(there(first, 3));
  const LeaseMapReader second = world.lease_map(LeaseMapId{2}, more).value();
  EXPECT_FALSE(there(second, 0));
  EXPECT_EQ(world.lease_maps->usage(kA).bytes, 3 * (128U << 10));
  // What one map gives back, the other may show.
  EXPECT_FALSE(world.lease_maps->close(kB, kMap));  // not its own
  EXPECT_TRUE(world.lease_maps->close(kA, kMap));
  world.settle();
  EXPECT_TRUE(there(second, 2));

  ASSERT_TRUE(world.lease_map(LeaseMapId{3}, more).ok());
  ASSERT_TRUE(world.lease_map(LeaseMapId{4}, more).ok());
  const auto refused = world.lease_map(LeaseMapId{5}, more);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("3 of 3"), std::string::npos) << refused.error().message;
  world.lease_maps->session_closed(kA);
  EXPECT_EQ(world.lease_maps->usage().maps, 0U);
  EXPECT_EQ(world.lease_maps->usage().bytes, 0U);
}

// Goal: rubbish in the words keeps at most what is shown to that client, and only until its session
// ends.
TEST(LeaseMaps, RubbishInTheWordsHoldsNoMoreThanWhatIsShown) {
  World world({.host_bytes = 1U << 20, .in_place_bytes = 300U << 10});
  const Context context = world.chain(kA, 100, 4);
  world.put(context, 0, 4);
  const LeaseMapReader reader = world.lease_map(kMap, context).value();
  MappedMemory& words = world.words[kMap];
  std::fill(words.data(), words.data() + words.bytes(), std::byte{0xFF});

  press(world, 9000, 40);  // room is made of all the others
  uint32_t in_host = 0;
  for (uint32_t index = 0; index < 4; ++index) {
    in_host += world.placement->host_chunks(context.find(*world.directory, index)->uid)[0].offset !=
                       kNoExtent
                   ? 1
                   : 0;
  }
  EXPECT_EQ(in_host, 2U);  // 256 KiB of 300 KiB
  EXPECT_EQ(room_for(world, 30'000, 8), 6U);
  world.lease_maps->session_closed(kA);
  EXPECT_EQ(room_for(world, 30'000, 8), 8U);
}

}  // namespace
}  // namespace skv
