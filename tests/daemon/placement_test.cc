#include "daemon/placement.h"

#include <gtest/gtest.h>

#include "tests/daemon/placement_world.h"

namespace skv {
namespace {

using test::fill_pattern;
using test::has_pattern;
using test::World;

constexpr SessionId kA{1};
constexpr SessionId kB{2};

std::vector<PutOutcome> outcomes(const World::Reservations& results) {
  std::vector<PutOutcome> all;
  for (const auto& result : results) all.push_back(result.outcome);
  return all;
}

// Promotes and checks one chunk; the world works until the answer is there.
Result<ChunkLease> acquire(World& world, SentenceUid uid, uint32_t chunk, SessionId session = kA) {
  std::optional<Result<ChunkLease>> answer;
  world.placement->acquire({.session = session,
                            .uid = uid,
                            .chunk = chunk,
                            .urgent = true,
                            .deadline_ns = world.now_ns + 1'000'000,
                            .done = [&](Result<ChunkLease> lease) { answer = std::move(lease); }});
  for (int turn = 0; turn < 64 && !answer; ++turn) world.settle_once();
  if (!answer) {
    world.now_ns += 2'000'000;
    world.placement->poll(world.now_ns);
  }
  return *answer;
}

void expect_bytes(World& world, const Digest& key, const ChunkLease& lease) {
  EXPECT_TRUE(has_pattern(world.memory(lease.host_offset, lease.bytes), key, lease.chunk));
}

TEST(Placement, PutIsStoredWithItsBytes) {
  World world({});
  const Context context = world.chain(kA, 100, 3);
  const auto results = world.put(context, 0, 3);
  EXPECT_EQ(outcomes(results), std::vector<PutOutcome>(3, PutOutcome::kReserved));
  for (uint32_t index = 0; index < 3; ++index) {
    const Result<ChunkLease> lease = acquire(world, results[index].uid, 1);
    ASSERT_TRUE(lease.ok());
    expect_bytes(world, context.sentence(index).key, lease.value());
    EXPECT_EQ(lease.value().origin, Origin::kHost);
    world.placement->release(lease.value());
  }
  EXPECT_EQ(context.match(*world.directory).hit_tokens, 96U);
  EXPECT_TRUE(world.placement->charge(kA).zero());
  EXPECT_EQ(world.placement->counters().host_hits, 3U);
}

TEST(Placement, SecondPutExistsOrIsPending) {
  World world({});
  const Context first = world.chain(kA, 100, 2);
  const Context second = world.chain(kB, 100, 2);
  const auto mine = world.reserve(first, 0, 2);
  const auto theirs = world.reserve(second, 0, 2);
  ASSERT_TRUE(theirs->has_value());
  EXPECT_EQ(outcomes(**theirs), std::vector<PutOutcome>(2, PutOutcome::kPending));
  // The same message again answers the same.
  const auto again = world.reserve(first, 0, 2);
  EXPECT_EQ(outcomes(**again), std::vector<PutOutcome>(2, PutOutcome::kReserved));
  EXPECT_EQ((**again)[0].uid, (**mine)[0].uid);

  EXPECT_EQ(world.commit(kA, (**mine)[0].uid), PutOutcome::kIncomplete);
  EXPECT_EQ(world.commit(kB, (**mine)[0].uid), PutOutcome::kNotReserved);
  world.write_body((**mine)[0].uid);
  EXPECT_EQ(world.commit(kA, (**mine)[0].uid), PutOutcome::kCommitted);
  const auto later = world.reserve(second, 0, 2);
  EXPECT_EQ(outcomes(**later),
            (std::vector<PutOutcome>{PutOutcome::kExists, PutOutcome::kPending}));
  const Directory::Cover cover = second.match(*world.directory);
  EXPECT_EQ(cover.hit_tokens, 32U);
  EXPECT_EQ(cover.pending_tokens, 64U);
  // One's own reservation is not something to wait for.
  EXPECT_EQ(first.match(*world.directory).pending_tokens, 32U);
}

TEST(Placement, CancelAndSessionEndGiveEverythingBack) {
  World world({});
  const Context context = world.chain(kA, 100, 4);
  const auto results = world.reserve(context, 0, 4);
  EXPECT_GT(world.placement->usage().host_bytes, 0U);
  EXPECT_EQ(world.placement->put_cancel(kA, (**results)[0].uid), PutOutcome::kCancelled);
  EXPECT_EQ(world.placement->put_cancel(kA, (**results)[0].uid), PutOutcome::kNotReserved);
  // A copy task still writes this one: its extents stay until the lease comes back.
  std::vector<ChunkLease> leases;
  const SentenceUid uid = (**results)[1].uid;
  ASSERT_TRUE(world.placement->lease(kA, uid, 0, 1, leases));
  EXPECT_FALSE(world.placement->lease(kB, uid, 0, 1, leases));
  EXPECT_FALSE(world.placement->lease(kA, uid, 0, 1000, leases));
  EXPECT_EQ(leases.size(), 1U) << "at once or not at all";
  world.placement->end_session(kA);
  EXPECT_EQ(world.placement->charge(kA).chunk_leases, 1U);
  EXPECT_EQ(world.placement->usage().host_bytes, leases[0].bytes);
  EXPECT_EQ(world.directory->sentence_count(), 0U);
  EXPECT_EQ(world.directory->boundary_count(), 0U);
  world.placement->release(leases);
  EXPECT_EQ(world.placement->usage().host_bytes, 0U);
  EXPECT_TRUE(world.placement->charge(kA).zero());
}

TEST(Placement, DemotesWhenTheHostIsFullAndPromotesOnDemand) {
  World world({.host_bytes = 2U << 20});  // 8 sentences of 256 KiB at most
  const Context context = world.chain(kA, 100, 24);
  for (uint32_t index = 0; index < 24; ++index) {
    const auto results = world.put(context, index, 1);
    ASSERT_EQ(results[0].outcome, PutOutcome::kReserved) << index;
  }
  EXPECT_EQ(context.match(*world.directory).hit_tokens, 24 * 32U);
  EXPECT_GT(world.placement->counters().demotions, 0U);
  EXPECT_EQ(world.placement->counters().evictions_host, 0U);
  EXPECT_EQ(world.placement->counters().evictions_nvme, 0U);
  const auto tiers = world.placement->tier_tokens(context.match(*world.directory).path);
  EXPECT_EQ(tiers.host + tiers.nvme, 24 * 32U);
  EXPECT_GT(tiers.nvme, 0U);

  for (uint32_t index = 0; index < 24; ++index) {
    const Sentence* sentence = context.find(*world.directory, index);
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      const Result<ChunkLease> lease = acquire(world, sentence->uid, chunk);
      ASSERT_TRUE(lease.ok()) << index << ": " << lease.error().message;
      expect_bytes(world, sentence->key, lease.value());
      world.placement->release(lease.value());
    }
  }
  EXPECT_GT(world.placement->counters().promotions, 0U);
  EXPECT_GT(world.placement->counters().nvme_hits, 0U);
}

TEST(Placement, LeasedChunksStayAndAFullHostIsAnOutcome) {
  World world({.host_bytes = 1U << 20});  // 8 sentences of 128 KiB
  const Context context = world.chain(kA, 100, 8);
  const auto results = world.put(context, 0, 8);
  std::vector<ChunkLease> leases;
  for (const auto& result : results) {
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      ASSERT_TRUE(world.placement->lease(kA, result.uid, chunk, 1, leases));
    }
  }
  const Context other = world.chain(kB, 9000, 2);
  // Leases may come back, so it waits for its deadline; then it is full.
  const auto refused = world.reserve(other, 0, 2);
  world.settle();
  EXPECT_FALSE(refused->has_value());
  world.now_ns += 2'000'000;
  world.placement->poll(world.now_ns);
  EXPECT_EQ(outcomes(**refused), std::vector<PutOutcome>(2, PutOutcome::kFull));
  EXPECT_TRUE(world.placement->charge(kB).zero());
  for (const ChunkLease& lease : leases) {
    const Sentence* sentence = world.directory->find(lease.uid);
    ASSERT_NE(sentence, nullptr);
    expect_bytes(world, sentence->key, lease);
    world.placement->release(lease);
  }
  EXPECT_EQ(outcomes(world.put(other, 0, 2)), std::vector<PutOutcome>(2, PutOutcome::kReserved));
}

TEST(Placement, OwnReservationsThatFillTheHostAreRefusedAtOnce) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 12);
  const auto results = world.reserve(context, 0, 12, /*wait_ns=*/~uint64_t{0} / 2);
  ASSERT_TRUE(results->has_value());
  for (uint32_t index = 0; index < 12; ++index) {
    EXPECT_EQ((**results)[index].outcome, index < 8 ? PutOutcome::kReserved : PutOutcome::kFull);
  }
  EXPECT_EQ(world.placement->charge(kA).open_puts, 8U);
}

TEST(Placement, WithoutNvmeLeavesAreEvictedFromTheHost) {
  World world({.host_bytes = 1U << 20, .nvme_bytes = 0});
  const Context old = world.chain(kA, 100, 6);
  world.put(old, 0, 6);
  const Context fresh = world.chain(kA, 9000, 4);
  EXPECT_EQ(outcomes(world.put(fresh, 0, 4)), std::vector<PutOutcome>(4, PutOutcome::kReserved));
  EXPECT_EQ(fresh.match(*world.directory).hit_tokens, 4 * 32U);
  EXPECT_EQ(old.match(*world.directory).hit_tokens, 4 * 32U);  // its two leaves went
  EXPECT_EQ(world.placement->counters().evictions_host, 2U);
}

TEST(Placement, SentenceLeasesKeepAChainFromEviction) {
  World world({.host_bytes = 1U << 20, .nvme_bytes = 0});
  const Context old = world.chain(kA, 100, 8);
  const auto results = world.put(old, 0, 8);
  ASSERT_TRUE(world.placement->lease_sentence(kA, results[7].uid));
  const Context fresh = world.chain(kB, 9000, 1);
  EXPECT_EQ(outcomes(world.put(fresh, 0, 1)), std::vector<PutOutcome>{PutOutcome::kFull});
  world.placement->end_session(kA);
  EXPECT_EQ(outcomes(world.put(fresh, 0, 1)), std::vector<PutOutcome>{PutOutcome::kReserved});
  EXPECT_EQ(old.match(*world.directory).hit_tokens, 7 * 32U);
}

TEST(Placement, AFullNvmeStoreEvictsLeavesOfTheOldestChain) {
  // NVMe: 10 records of 128 KiB and a page for the header and one for the vectors.
  World world({.host_bytes = 512U << 10, .nvme_bytes = 10 * ((128U << 10) + 8192)});
  const Context old = world.chain(kA, 100, 10);
  for (uint32_t index = 0; index < 10; ++index) world.put(old, index, 1);
  const Context fresh = world.chain(kA, 9000, 8);
  for (uint32_t index = 0; index < 8; ++index) {
    ASSERT_EQ(world.put(fresh, index, 1)[0].outcome, PutOutcome::kReserved);
  }
  EXPECT_EQ(fresh.match(*world.directory).hit_tokens, 8 * 32U);
  const uint32_t left = old.match(*world.directory).hit_tokens / 32;
  EXPECT_LT(left, 10U);
  EXPECT_EQ(left, old.stored_prefix(*world.directory, true));
  for (uint32_t index = left; index < 10; ++index) {
    EXPECT_EQ(old.find(*world.directory, index), nullptr);
  }
  EXPECT_EQ(world.placement->counters().evictions_nvme + world.placement->counters().evictions_host,
            10 - left);
}

TEST(Placement, EvictsFromNvmeBeforeAWriteFindsItFull) {
  constexpr uint64_t kRecord = (128U << 10) + 8192;
  // Room for 10 records, of which the store wants 3 free; 4 sentences on the host.
  World world(
      {.host_bytes = 512U << 10, .nvme_bytes = 10 * kRecord, .nvme_spare_bytes = 3 * kRecord});
  std::vector<Context> chains;
  for (uint32_t chain = 0; chain < 8; ++chain) {
    chains.push_back(world.chain(kA, 100 + 9000 * chain, 3));
    for (uint32_t index = 0; index < 3; ++index) {
      ASSERT_EQ(world.put(chains.back(), index, 1)[0].outcome, PutOutcome::kReserved);
      EXPECT_LE(world.fake->used_bytes(), 7 * kRecord) << "chain " << chain << ", " << index;
    }
  }
  EXPECT_EQ(world.fake->full_answers, 0U);
  EXPECT_GT(world.placement->counters().evictions_nvme, 0U);
  // The oldest chains went, each from its leaf.
  EXPECT_EQ(chains.back().match(*world.directory).hit_tokens, 3 * 32U);
  uint32_t before = 0;
  for (const Context& chain : chains) {
    const uint32_t left = chain.match(*world.directory).hit_tokens / 32;
    EXPECT_EQ(left, chain.stored_prefix(*world.directory, true));
    EXPECT_GE(left, before) << "an older one has more";
    before = left;
  }
}

TEST(Placement, WhatIsLeasedOnNvmeIsNotEvictedAhead) {
  constexpr uint64_t kRecord = (128U << 10) + 8192;
  World world(
      {.host_bytes = 512U << 10, .nvme_bytes = 10 * kRecord, .nvme_spare_bytes = 4 * kRecord});
  const Context context = world.chain(kA, 100, 10);
  for (uint32_t index = 0; index < 10; ++index) {
    const auto results = world.put(context, index, 1);
    ASSERT_EQ(results[0].outcome, PutOutcome::kReserved) << index;
    ASSERT_TRUE(world.placement->lease_sentence(kA, results[0].uid));
  }
  EXPECT_EQ(context.match(*world.directory).hit_tokens, 10 * 32U);
  EXPECT_GT(world.fake->erase_ahead_bytes(), 0U) << "it asked, and nothing could go";
  EXPECT_EQ(world.placement->counters().evictions_nvme, 0U);
}

TEST(Placement, WithdrawsWhatTheDataThreadKnowsBeforeItIsFreed) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 8);
  const auto results = world.put(context, 0, 8);
  for (const auto& result : results) {
    ASSERT_EQ(world.placement->host_chunks(result.uid).size(), 2U);
    world.add_feed(result.uid);
  }
  const Context other = world.chain(kB, 9000, 1);
  const auto answer = world.reserve(other, 0, 1);
  world.nvme->drain();  // the demotion's writes are done, now the chunks are asked back
  ASSERT_FALSE(world.data.withdrawals.empty());
  EXPECT_FALSE(answer->has_value());
  const auto [uid, chunk] = world.data.withdrawals.front();
  EXPECT_EQ(world.placement->host_chunks(uid)[chunk].offset, kNoExtent);
  // It is wanted again before the answer: announced again, where it was, and another one goes.
  const std::vector<uint32_t> wanted{chunk};
  const uint64_t arrivals = world.data.arrivals;
  world.placement->need_chunks(uid, wanted, true);
  world.data.withdrawals.pop_front();
  world.placement->withdraw_done(uid, chunk);
  EXPECT_EQ(world.data.arrivals, arrivals + 1);
  EXPECT_NE(world.placement->host_chunks(uid)[chunk].offset, kNoExtent);
  world.settle();
  EXPECT_EQ(outcomes(**answer), std::vector<PutOutcome>{PutOutcome::kReserved});
}

TEST(Placement, AWithdrawalThatIsNotAnsweredHoldsNobodyUp) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 8);
  const auto results = world.put(context, 0, 8);
  world.placement->flush(World::kSpace, [](Result<uint64_t>) {});
  world.settle();
  for (uint32_t index = 0; index < 2; ++index) world.add_feed(results[index].uid);
  const Context other = world.chain(kB, 9000, 1);
  const auto answer = world.reserve(other, 0, 1, /*wait_ns=*/100'000'000);
  EXPECT_EQ(world.data.withdrawals.size(), 2U);  // the oldest go first, and they are fed
  world.nvme->drain();
  world.placement->poll(world.now_ns += 10'000'000);
  EXPECT_FALSE(answer->has_value());
  for (int turn = 0; turn < 4; ++turn) {
    world.nvme->drain();
    world.placement->poll(world.now_ns += 20'000'000);
  }
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ(outcomes(**answer), std::vector<PutOutcome>{PutOutcome::kReserved});
  world.answer_withdrawals();
  world.settle();
}

TEST(Placement, NeedChunksAreReadOnceUrgentFirstAndAlwaysAnswered) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 16);
  for (uint32_t index = 0; index < 16; ++index) world.put(context, index, 1);
  world.settle();
  std::vector<SentenceUid> cold;
  for (uint32_t index = 0; index < 16; ++index) {
    const Sentence* sentence = context.find(*world.directory, index);
    const auto chunks = world.placement->host_chunks(sentence->uid);
    if (chunks[0].offset == kNoExtent && chunks[1].offset == kNoExtent) {
      cold.push_back(sentence->uid);
    }
  }
  ASSERT_GE(cold.size(), 2U);
  const uint64_t promotions = world.placement->counters().promotions;
  const std::vector<uint32_t> both{0, 1};
  world.add_feed(cold[0]);
  world.placement->need_chunks(cold[0], both, false);
  world.placement->need_chunks(cold[0], both, true);
  world.placement->need_chunks(cold[0], both, false);
  world.settle();
  EXPECT_EQ(world.placement->counters().promotions, promotions + 2);
  EXPECT_TRUE(world.data.readable.contains({cold[0], 0}));
  // A corrupt record is a miss, and so is all that hangs on it.
  const Digest key = world.directory->find(cold[1])->key;
  const uint32_t position = world.directory->find(cold[1])->first_position;
  world.fake->corrupt.insert(key);
  world.placement->need_chunks(cold[1], both, true);
  world.settle();
  EXPECT_EQ(world.data.failures.size(), 2U);
  EXPECT_EQ(world.directory->find(cold[1]), nullptr);
  EXPECT_EQ(context.match(*world.directory).hit_tokens, position);
  EXPECT_EQ(world.directory->sentence_count(), position / 32);
  EXPECT_GE(world.placement->counters().evictions_corrupt, 1U);
  world.placement->need_chunks(cold[1], both, true);
  EXPECT_EQ(world.data.failures.size(), 4U);
  EXPECT_EQ(world.data.failures.back().second, ErrorCode::kNotFound);
}

TEST(Placement, VectorsLeaveMemoryAndComeBack) {
  World world({.vectors_bytes = 0});
  const Context context = world.chain(kA, 100, 4);
  const auto results = world.put(context, 0, 4);
  EXPECT_EQ(world.placement->usage().vectors_bytes, 4 * 256U);
  std::optional<Result<uint64_t>> flushed;
  world.placement->flush(World::kSpace, [&](Result<uint64_t> count) { flushed = count; });
  world.settle();
  ASSERT_TRUE(flushed.has_value());
  EXPECT_EQ(flushed->value(), 4U);
  EXPECT_EQ(world.placement->usage().vectors_bytes, 0U);  // on NVMe, nobody uses them

  VectorsBlob held;
  int answers = 0;
  for (int twice = 0; twice < 2; ++twice) {
    world.placement->get_vectors(kA, results[2].uid, [&](Result<VectorsBlob> blob) {
      ASSERT_TRUE(blob.ok());
      held = blob.value();
      ++answers;
    });
  }
  world.settle();
  EXPECT_EQ(answers, 2);
  EXPECT_EQ(world.placement->counters().vectors_read, 1U);
  EXPECT_EQ(*held, *World::vectors_of(context.sentence(2).key));
  EXPECT_EQ(world.placement->usage().vectors_bytes, 256U);  // `held` keeps it
  held.reset();
  world.settle();
  EXPECT_EQ(world.placement->usage().vectors_bytes, 0U);
}

TEST(Placement, ARestartBringsBackWhatWasFlushed) {
  World world({});
  const Context context = world.chain(kA, 100, 6, 5);
  world.put(context, 0, 6);
  bool flushed = false;
  world.placement->flush(World::kSpace, [&](Result<uint64_t> count) {
    EXPECT_EQ(count.value(), 6U);
    flushed = true;
  });
  world.settle();
  ASSERT_TRUE(flushed);
  // One in the middle is lost: what hangs on it is not reachable any more.
  const Digest lost = context.sentence(3).key;
  world.stop();
  world.medium->bodies.erase(lost);
  world.start();
  EXPECT_EQ(world.placement->counters().recovered, 3U);
  EXPECT_EQ(world.placement->counters().recovered_unreachable, 2U);
  EXPECT_EQ(world.medium->bodies.size(), 3U);
  EXPECT_EQ(context.match(*world.directory).hit_tokens, 3 * 40U);
  EXPECT_EQ(context.stored_prefix(*world.directory, true), 3U);
  const Result<ChunkLease> lease = acquire(world, context.find(*world.directory, 2)->uid, 1);
  ASSERT_TRUE(lease.ok());
  expect_bytes(world, context.sentence(2).key, lease.value());
  EXPECT_EQ(lease.value().origin, Origin::kNvme);
  world.placement->release(lease.value());
}

TEST(Placement, CommitBeforeItsPathWaitsForIt) {
  World world({});
  const Context first = world.chain(kA, 100, 2);
  const auto mine = world.reserve(first, 0, 2);
  const Context second = world.chain(kB, 100, 4);
  const auto theirs = world.put(second, 0, 4);
  EXPECT_EQ(outcomes(theirs),
            (std::vector<PutOutcome>{PutOutcome::kPending, PutOutcome::kPending,
                                     PutOutcome::kReserved, PutOutcome::kReserved}));
  EXPECT_EQ(second.match(*world.directory).hit_tokens, 0U);
  EXPECT_EQ(world.placement->charge(kB).open_puts, 2U);
  for (const auto& result : **mine) {
    world.write_body(result.uid);
    EXPECT_EQ(world.commit(kA, result.uid), PutOutcome::kCommitted);
  }
  EXPECT_EQ(second.match(*world.directory).hit_tokens, 4 * 32U);
  EXPECT_TRUE(world.placement->charge(kB).zero());
}

TEST(Placement, WaitingSentencesGoWithTheirSessionOrUnderPressure) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 8);
  const auto orphans = world.put(context, 4, 4);  // nothing leads there
  EXPECT_EQ(world.directory->sentence_count(), 4U);
  const Context other = world.chain(kB, 9000, 6);
  EXPECT_EQ(outcomes(world.put(other, 0, 6)), std::vector<PutOutcome>(6, PutOutcome::kReserved));
  EXPECT_EQ(world.directory->sentence_count(), 6U + 2U);
  world.placement->end_session(kA);
  EXPECT_EQ(world.directory->sentence_count(), 6U);
  EXPECT_TRUE(world.placement->charge(kA).zero());
}

TEST(Placement, DropGoesFromTheLeafAndKeepsWhatIsNeeded) {
  World world({});
  const Context context = world.chain(kA, 100, 6);
  const auto results = world.put(context, 0, 6);
  std::vector<Digest> keys;
  for (const auto& sentence : context.sentences()) keys.push_back(sentence.key);
  ASSERT_TRUE(world.placement->lease_sentence(kA, results[2].uid));
  const auto drop = [&] {
    return world
        .wait_for<Result<Placement::DropOutcome>>(
            [&](auto done) { world.placement->drop(keys, std::move(done)); })
        .value();
  };
  Placement::DropOutcome outcome = drop();
  EXPECT_EQ(outcome.dropped, 3U);
  EXPECT_EQ(outcome.kept, 3U);
  world.placement->release_sentence(kA, results[2].uid);
  outcome = drop();
  EXPECT_EQ(outcome.dropped, 3U);
  EXPECT_EQ(world.directory->sentence_count(), 0U);
  EXPECT_EQ(world.placement->usage().host_bytes, 0U);
}

TEST(Placement, FailedWritesAndReadsAreReported) {
  World world({.host_bytes = 1U << 20});
  const Context context = world.chain(kA, 100, 4);
  const auto results = world.put(context, 0, 4);
  world.fake->failing_writes = 1;
  std::optional<Result<uint64_t>> flushed;
  world.placement->flush(World::kSpace, [&](Result<uint64_t> count) { flushed = count; });
  world.settle();
  ASSERT_TRUE(flushed.has_value());
  ASSERT_FALSE(flushed->ok());
  EXPECT_EQ(flushed->error().code, ErrorCode::kIo);
  flushed.reset();
  world.placement->flush(World::kSpace, [&](Result<uint64_t> count) { flushed = count; });
  world.settle();
  EXPECT_EQ(flushed->value(), 4U);

  const Context other = world.chain(kB, 9000, 8);
  world.put(other, 0, 8);  // pushes the first four down
  world.fake->failing_reads = 1;
  const Result<ChunkLease> lease = acquire(world, results[0].uid, 0);
  ASSERT_FALSE(lease.ok());
  EXPECT_EQ(lease.error().code, ErrorCode::kIo);
  EXPECT_NE(world.directory->find(results[0].uid), nullptr);
  EXPECT_TRUE(world.placement->charge(kA).zero());
}

TEST(Placement, QuotaOfASpaceMakesItsOwnRoom) {
  World world({});
  world.stop();
  world.quota.host_bytes = 512U << 10;  // 4 sentences
  world.start();
  const Context context = world.chain(kA, 100, 12);
  for (uint32_t index = 0; index < 12; ++index) {
    ASSERT_EQ(world.put(context, index, 1)[0].outcome, PutOutcome::kReserved) << index;
    EXPECT_LE(world.host->space_used_bytes(World::kSpace), 512U << 10);
  }
  EXPECT_EQ(context.match(*world.directory).hit_tokens, 12 * 32U);
}

TEST(Placement, FlushWithoutNvmeIsRefusedByName) {
  World world({.nvme_bytes = 0});
  std::optional<Result<uint64_t>> flushed;
  world.placement->flush(World::kSpace, [&](Result<uint64_t> count) { flushed = count; });
  ASSERT_TRUE(flushed.has_value());
  EXPECT_EQ(flushed->error().code, ErrorCode::kUnsupported);
}

// Goal: vectors that come when a sentence is on NVMe already are there after a restart.
TEST(Placement, VectorsOfAStoredSentenceReachTheDisk) {
  World world({});
  const Context context = world.chain(kA, 100, 3);
  std::vector<SentenceUid> uids;
  const auto flush = [&] {
    return world
        .wait_for<Result<uint64_t>>([&](auto done) { world.placement->flush(World::kSpace, done); })
        .value();
  };
  {
    auto answer = world.reserve(context, 0, 3);
    world.settle();
    for (const auto& result : **answer) {
      world.write_body(result.uid);
      ASSERT_EQ(world.placement->put_commit(kA, result.uid, nullptr), PutOutcome::kCommitted);
      uids.push_back(result.uid);
    }
  }
  EXPECT_EQ(flush(), 3U);
  for (const SentenceUid uid : uids) {
    const Digest key = world.directory->find(uid)->key;
    ASSERT_EQ(world.medium->bodies.at(key).vectors, nullptr);
    ASSERT_TRUE(world.placement->set_vectors(uid, IndexDescriptor{}, World::vectors_of(key)).ok());
  }
  EXPECT_EQ(flush(), 3U) << "and it waits for the vectors";
  EXPECT_EQ(world.placement->counters().vectors_written, 3U);
  for (const SentenceUid uid : uids) {
    const Digest key = world.directory->find(uid)->key;
    EXPECT_EQ(*world.medium->bodies.at(key).vectors, *World::vectors_of(key));
  }
}

}  // namespace
}  // namespace skv
