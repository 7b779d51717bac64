#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ipc/shared_memory.h"
#include "tiers/slot_pool.h"

namespace skv {

// What every SlotPool has to do. A pool without slabs has to refuse them by name.
struct SlotPoolKind {
  std::string name;
  std::function<std::unique_ptr<SlotPool>(uint64_t budget_bytes)> make;
};

class SlotPoolConformance : public ::testing::TestWithParam<SlotPoolKind> {
 protected:
  static constexpr uint64_t kArenaBytes = 1u << 20;
  static constexpr uint64_t kBudget = 8u << 20;
  static constexpr SpaceId kSpace{7};

  void SetUp() override {
    pool_ = GetParam().make(kBudget);
    arena_ = create_shared_memory("test-arena", kArenaBytes).value();
    arena_map_ =
        MappedMemory::map(arena_.get(), kArenaBytes, MappedMemory::Access::kReadWrite).value();
    for (uint64_t i = 0; i < kArenaBytes; ++i) arena_map_.data()[i] = byte_at(i);
    ASSERT_TRUE(pool_->map_arena(kSpace, arena_.get(), kArenaBytes).ok());
  }

  // A byte that tells its place: neighbours and pages differ.
  static std::byte byte_at(uint64_t offset) {
    return static_cast<std::byte>((offset * 31 + (offset >> 12) * 17) & 0xFF);
  }

  // Until `ticket` is answered; nullopt: not within ten seconds.
  std::optional<SlotPool::Completion> wait_for(PoolTicket ticket) {
    for (int rounds = 0; rounds < 1000; ++rounds) {
      SlotPool::Poll polled = pool_->poll();
      if (polled.lost) lost_ = polled.lost;
      for (SlotPool::Completion& each : polled.completions) {
        EXPECT_FALSE(seen_.contains(raw(each.ticket))) << "answered twice";
        seen_.emplace(raw(each.ticket), std::move(each));
      }
      if (const auto found = seen_.find(raw(ticket)); found != seen_.end()) {
        return std::move(found->second);
      }
      if (pool_->wake_descriptor() >= 0) {
        pollfd readable{pool_->wake_descriptor(), POLLIN, 0};
        ::poll(&readable, 1, 10);
      }
    }
    return std::nullopt;
  }

  SlotPool::Slab create(uint64_t ticket, uint64_t bytes) {
    const Result<void> asked = pool_->create_slab(PoolTicket{ticket}, bytes);
    EXPECT_TRUE(asked.ok());
    std::optional<SlotPool::Completion> made = wait_for(PoolTicket{ticket});
    EXPECT_TRUE(made && made->status.ok() && made->slab);
    if (!made || !made->slab) return {};
    return std::move(*made->slab);
  }

  static MappedMemory map(const SlotPool::Slab& slab) {
    return MappedMemory::map(slab.descriptor.get(), slab.bytes, MappedMemory::Access::kReadWrite)
        .value();
  }

  ErrorCode move(uint64_t ticket, SlabId slab, std::vector<SlotPool::Move> moves) {
    if (pool_->submit(PoolTicket{ticket}, kSpace, slab, moves) != moves.size()) {
      return ErrorCode::kBusy;
    }
    const std::optional<SlotPool::Completion> done = wait_for(PoolTicket{ticket});
    if (!done) return ErrorCode::kTimeout;
    return done->status.ok() ? ErrorCode::kOk : done->status.error().code;
  }

  std::unique_ptr<SlotPool> pool_;
  UniqueFd arena_;
  MappedMemory arena_map_;
  std::map<uint64_t, SlotPool::Completion> seen_;
  std::optional<std::string> lost_;
};

#define SKV_NEEDS_SLABS()                                                      \
  if (!pool_->has_slabs()) {                                                   \
    const Result<void> refused = pool_->create_slab(PoolTicket{1}, 4096);      \
    ASSERT_FALSE(refused.ok());                                                \
    EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);                  \
    EXPECT_NE(refused.error().message.find(pool_->kind()), std::string::npos); \
    return;                                                                    \
  }                                                                            \
  static_assert(true)

// Goal: what is moved arrives, exactly there and nowhere else.
// Method: scattered moves of odd sizes, then every byte of the slab against the arena's pattern.
TEST_P(SlotPoolConformance, MovesArriveAndNothingElseChanges) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab slab = create(1, 256 * 1024);
  const MappedMemory mapping = map(slab);
  const std::vector<SlotPool::Move> moves{
      {0, 4096, 4096}, {kArenaBytes - 100, 0, 100}, {12345, 100000, 777}, {65536, 8192, 65536}};
  ASSERT_EQ(move(2, slab.id, moves), ErrorCode::kOk);

  std::vector<std::byte> expected(slab.bytes);
  for (const SlotPool::Move& each : moves) {
    for (uint32_t i = 0; i < each.bytes; ++i) expected[each.to + i] = byte_at(each.from + i);
  }
  EXPECT_EQ(std::memcmp(mapping.data(), expected.data(), expected.size()), 0);
}

TEST_P(SlotPoolConformance, ARangeOutsideMovesNothing) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab slab = create(1, 8192);
  const MappedMemory mapping = map(slab);
  const uint64_t huge = ~uint64_t{0};
  const std::vector<SlotPool::Move> bad{
      {kArenaBytes - 10, 0, 11}, {0, 8192 - 10, 11}, {huge, 0, 1},        {0, huge, 1},
      {huge - 4, 0, 8},          {0, huge - 4, 8},   {kArenaBytes, 0, 1}, {0, 0, 0xFFFFFFFF}};
  uint64_t ticket = 2;
  for (const SlotPool::Move& each : bad) {
    EXPECT_EQ(move(ticket++, slab.id, {{0, 0, 64}, each}), ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(move(ticket++, SlabId{999}, {{0, 0, 1}}), ErrorCode::kInvalidArgument);
  for (uint64_t i = 0; i < 8192; ++i) ASSERT_EQ(mapping.data()[i], std::byte{0}) << i;
  EXPECT_EQ(move(ticket, slab.id, {{0, 0, 1}}), ErrorCode::kOk) << "the pool goes on";
  EXPECT_FALSE(lost_);
}

TEST_P(SlotPoolConformance, ASpaceThatWasUnmappedIsNoSource) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab slab = create(1, 8192);
  ASSERT_EQ(move(2, slab.id, {{0, 0, 64}}), ErrorCode::kOk);
  pool_->unmap_arena(kSpace);
  EXPECT_EQ(move(3, slab.id, {{0, 0, 64}}), ErrorCode::kInvalidArgument);
}

TEST_P(SlotPoolConformance, TheBudgetCountsAllSlabsAndDestroyGivesBack) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab first = create(1, kBudget / 2);
  const SlotPool::Slab second = create(2, kBudget / 2);
  EXPECT_EQ(pool_->used_bytes(), kBudget);
  const Result<void> refused = pool_->create_slab(PoolTicket{3}, 1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(refused.error().message.find(std::to_string(kBudget)), std::string::npos);

  pool_->destroy_slab(first.id);
  EXPECT_EQ(pool_->used_bytes(), kBudget / 2);
  const SlotPool::Slab third = create(4, kBudget / 2);
  EXPECT_NE(raw(third.id), raw(first.id)) << "ids are not used again";
  EXPECT_EQ(move(5, first.id, {{0, 0, 1}}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(move(6, third.id, {{0, 0, 1}}), ErrorCode::kOk);
}

TEST_P(SlotPoolConformance, ANewSlabIsZeroAndItsMappingOutlivesIt) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab slab = create(1, 16384);
  const MappedMemory mapping = map(slab);
  for (uint64_t i = 0; i < slab.bytes; ++i) ASSERT_EQ(mapping.data()[i], std::byte{0});
  ASSERT_EQ(move(2, slab.id, {{0, 0, 4096}}), ErrorCode::kOk);
  pool_->destroy_slab(slab.id);
  EXPECT_EQ(mapping.data()[1], byte_at(1));
}

// Goal: a batch area that is full says so, and what it took arrives in full.
// Method: many more moves than fit at once, submitted as fast as the pool takes them.
TEST_P(SlotPoolConformance, FullTakesLessAndLosesNothing) {
  SKV_NEEDS_SLABS();
  const SlotPool::Slab slab = create(1, kArenaBytes);
  const MappedMemory mapping = map(slab);
  std::vector<SlotPool::Move> moves;
  for (uint64_t i = 0; i < kArenaBytes / 8; ++i)
    moves.push_back({i * 8, kArenaBytes - 8 - i * 8, 8});
  uint64_t ticket = 2;
  size_t taken = 0;
  std::vector<PoolTicket> tickets;
  for (int rounds = 0; taken < moves.size() && rounds < 100000; ++rounds) {
    const size_t now = pool_->submit(PoolTicket{ticket}, kSpace, slab.id,
                                     std::span<const SlotPool::Move>(moves).subspan(taken));
    if (now > 0) tickets.push_back(PoolTicket{ticket++});
    taken += now;
    if (now > 0) continue;
    ASSERT_FALSE(tickets.empty()) << "full and nothing in flight";
    const std::optional<SlotPool::Completion> done = wait_for(tickets.front());
    ASSERT_TRUE(done && done->status.ok());
    tickets.erase(tickets.begin());
  }
  ASSERT_EQ(taken, moves.size());
  for (const PoolTicket each : tickets) {
    const std::optional<SlotPool::Completion> done = wait_for(each);
    ASSERT_TRUE(done && done->status.ok());
  }
  for (const SlotPool::Move& each : moves) {
    ASSERT_EQ(std::memcmp(mapping.data() + each.to, arena_map_.data() + each.from, 8), 0);
  }
}

}  // namespace skv
