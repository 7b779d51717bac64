#include "tiers/host_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace skv {
namespace {

constexpr uint64_t kSlab = 64 * 1024;
constexpr SpaceId kSpace{1};
constexpr SpaceId kOther{2};

std::unique_ptr<HostStore> make(uint64_t slabs) {
  auto made = HostStore::create({.budget_bytes = slabs * kSlab, .slab_bytes = kSlab});
  EXPECT_TRUE(made.ok());
  auto store = std::move(made).value();
  EXPECT_TRUE(store->arena(kSpace).ok());
  EXPECT_TRUE(store->arena(kOther).ok());
  return store;
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

TEST(HostStore, RefusesOptionsThatCannotWork) {
  EXPECT_FALSE(HostStore::create({.budget_bytes = kSlab, .slab_bytes = 3 * 4096}).ok());
  EXPECT_FALSE(HostStore::create({.budget_bytes = kSlab, .slab_bytes = 2048}).ok());
  EXPECT_FALSE(HostStore::create({.budget_bytes = kSlab - 1, .slab_bytes = kSlab}).ok());
}

TEST(HostStore, IsFoundOnlyAfterPublish) {
  auto store = make(4);
  const auto extent = store->reserve(kSpace, SentenceUid{7}, 0, 5000);
  ASSERT_TRUE(extent.has_value());
  EXPECT_EQ(extent->bytes, 8192U);
  EXPECT_EQ(store->find(SentenceUid{7}, 0), std::nullopt);
  EXPECT_EQ(store->extent(SentenceUid{7}, 0), extent);

  store->publish(SentenceUid{7}, 0);

  EXPECT_EQ(store->find(SentenceUid{7}, 0), extent);
  EXPECT_EQ(store->find(SentenceUid{7}, 1), std::nullopt);
  EXPECT_TRUE(store->erase(SentenceUid{7}, 0));
  EXPECT_FALSE(store->erase(SentenceUid{7}, 0));
  EXPECT_EQ(store->find(SentenceUid{7}, 0), std::nullopt);
}

// The budget is one number over all spaces, in slabs; what is given back can be used by another
// space, and all counts return to zero.
TEST(HostStore, ChargesSlabsOfAllSpacesToOneBudget) {
  auto store = make(4);
  ASSERT_TRUE(store->reserve(kSpace, SentenceUid{1}, 0, 4096));
  EXPECT_EQ(store->stats().used_bytes, 4096U);
  EXPECT_EQ(store->stats().charged_bytes, kSlab);
  ASSERT_TRUE(store->reserve(kSpace, SentenceUid{1}, 1, kSlab - 4096));
  EXPECT_EQ(store->stats().charged_bytes, kSlab);
  ASSERT_TRUE(store->reserve(kOther, SentenceUid{2}, 0, 3 * kSlab));
  EXPECT_EQ(store->stats().charged_bytes, 4 * kSlab);

  EXPECT_FALSE(store->reserve(kSpace, SentenceUid{3}, 0, 4096));
  EXPECT_FALSE(store->reserve(kOther, SentenceUid{3}, 0, 4096));
  EXPECT_FALSE(store->reserve(kOther, SentenceUid{3}, 0, 64 * kSlab));
  EXPECT_EQ(store->stats().refused, 3U);

  EXPECT_TRUE(store->erase(SentenceUid{2}, 0));
  EXPECT_EQ(store->stats().charged_bytes, kSlab);
  EXPECT_TRUE(store->reserve(kSpace, SentenceUid{3}, 0, 3 * kSlab));
  EXPECT_TRUE(store->erase(SentenceUid{3}, 0));
  EXPECT_TRUE(store->erase(SentenceUid{1}, 0));
  EXPECT_TRUE(store->erase(SentenceUid{1}, 1));
  const HostStore::Stats stats = store->stats();
  EXPECT_EQ(stats.used_bytes, 0U);
  EXPECT_EQ(stats.charged_bytes, 0U);
  EXPECT_EQ(stats.peak_charged_bytes, 4 * kSlab);
  EXPECT_EQ(stats.extents, 0U);
  EXPECT_EQ(store->space_used_bytes(kSpace), 0U);
}

// Goal: memory that was given back is given back: zeros in every mapping, no pages behind it.
// The pages are counted first: reading a hole of a memfd gives it a page again.
TEST(HostStore, PunchedSlabReadsAsZeros) {
  constexpr uint64_t kWhole = 2U << 20;
  auto store = HostStore::create({.budget_bytes = 4 * kWhole, .slab_bytes = kWhole});
  ASSERT_TRUE(store.ok());
  HostStore& host = *store.value();
  const auto arena = host.arena(kSpace);
  ASSERT_TRUE(arena.ok());
  const auto kept = host.reserve(kSpace, SentenceUid{1}, 0, kWhole);
  const auto gone = host.reserve(kSpace, SentenceUid{2}, 0, kWhole);
  std::memset(host.bytes(kSpace, *kept).data(), 0x11, kWhole);
  std::memset(host.bytes(kSpace, *gone).data(), 0x22, kWhole);
  struct stat before {};
  ASSERT_EQ(fstat(arena.value().fd, &before), 0);

  EXPECT_TRUE(host.erase(SentenceUid{2}, 0));

  struct stat after {};
  ASSERT_EQ(fstat(arena.value().fd, &after), 0);
  EXPECT_EQ((before.st_blocks - after.st_blocks) * 512, static_cast<blkcnt_t>(kWhole));
  EXPECT_TRUE(all_zero(host.bytes(kSpace, *gone)));
  EXPECT_FALSE(all_zero(host.bytes(kSpace, *kept)));
}

uint64_t pages_of(const HostStore::Arena& arena) {
  struct stat status {};
  EXPECT_EQ(fstat(arena.fd, &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// Goal: what will be written next has its pages before, what emptied last keeps them, and neither
// takes more than warm_bytes nor anything from the budget.
// Method: the blocks that the system counts behind the memfd.
TEST(HostStore, WarmSlabsHavePagesAndGoWhenTheBudgetNeedsThem) {
  auto made =
      HostStore::create({.budget_bytes = 8 * kSlab, .slab_bytes = kSlab, .warm_bytes = 3 * kSlab});
  ASSERT_TRUE(made.ok());
  HostStore& store = *made.value();
  const HostStore::Arena mine = store.arena(kSpace).value();
  store.settle();
  EXPECT_EQ(store.stats().kept_bytes, 3 * kSlab);
  EXPECT_EQ(store.stats().charged_bytes, 0U);
  EXPECT_EQ(pages_of(mine), 3 * kSlab) << "filled ahead";

  // Two slabs come into use, two more are filled; what empties stays warm up to the limit.
  const auto extent = store.reserve(kSpace, SentenceUid{1}, 0, 2 * kSlab);
  store.settle();
  EXPECT_EQ(extent->offset, 0U);
  EXPECT_EQ(store.stats().kept_bytes, 3 * kSlab);
  EXPECT_EQ(pages_of(mine), 5 * kSlab);
  std::memset(store.bytes(kSpace, *extent).data(), 0x44, 2 * kSlab);
  EXPECT_TRUE(store.erase(SentenceUid{1}, 0));
  EXPECT_EQ(store.stats().charged_bytes, 0U);
  EXPECT_EQ(pages_of(mine), 3 * kSlab) << "no more than warm_bytes stay";

  // Another space needs the whole budget: nothing is kept from it.
  const HostStore::Arena theirs = store.arena(kOther).value();
  const auto whole = store.reserve(kOther, SentenceUid{2}, 0, 8 * kSlab);
  ASSERT_TRUE(whole.has_value());
  store.settle();
  EXPECT_EQ(store.stats().kept_bytes, 0U);
  EXPECT_EQ(pages_of(mine), 0U);
  std::memset(store.bytes(kOther, *whole).data(), 0x55, 8 * kSlab);

  // And of what it gives back some is kept for it, and used before anything else.
  EXPECT_TRUE(store.erase(SentenceUid{2}, 0));
  EXPECT_EQ(store.stats().kept_bytes, 3 * kSlab);
  EXPECT_EQ(pages_of(theirs), 3 * kSlab);
  const auto again = store.reserve(kOther, SentenceUid{3}, 0, 2 * kSlab);
  ASSERT_TRUE(again.has_value());
  store.settle();
  EXPECT_EQ(store.bytes(kOther, *again)[0], std::byte{0x55});
  EXPECT_EQ(pages_of(theirs), 5 * kSlab) << "two in use, three filled";
}

// Goal: a space can never read what another wrote: its arena is other memory.
TEST(HostStore, ArenasOfSpacesAreApart) {
  auto store = make(4);
  const auto mine = store->reserve(kSpace, SentenceUid{1}, 0, kSlab);
  std::memset(store->bytes(kSpace, *mine).data(), 0x33, kSlab);
  EXPECT_TRUE(store->erase(SentenceUid{1}, 0));

  const auto theirs = store->reserve(kOther, SentenceUid{2}, 0, 4 * kSlab);

  ASSERT_TRUE(theirs.has_value());
  EXPECT_TRUE(all_zero(store->bytes(kOther, *theirs)));
  EXPECT_NE(store->arena(kSpace).value().memory.data(), store->arena(kOther).value().memory.data());
}

TEST(HostStore, ClientsDescriptorIsReadOnlyAndSealed) {
  auto store = make(2);
  const HostStore::Arena arena = store->arena(kSpace).value();
  const auto extent = store->reserve(kSpace, SentenceUid{1}, 0, 4096);
  std::memset(store->bytes(kSpace, *extent).data(), 0x5A, 4096);

  void* const mapped = mmap(nullptr, 2 * kSlab, PROT_READ, MAP_SHARED, arena.read_only_fd, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(static_cast<const char*>(mapped)[extent->offset], 0x5A);
  EXPECT_EQ(mprotect(mapped, 2 * kSlab, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, arena.read_only_fd, 0),
            MAP_FAILED);
  munmap(mapped, 2 * kSlab);

  struct stat status {};
  ASSERT_EQ(fstat(arena.read_only_fd, &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), 2 * kSlab);
  const int seals = fcntl(arena.fd, F_GET_SEALS);
  constexpr int kWanted = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
  EXPECT_EQ(seals & kWanted, kWanted);
  EXPECT_EQ(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0) << "could not be punched";
  EXPECT_EQ(ftruncate(arena.fd, 4096), -1);
}

TEST(HostStore, SameCallsGiveTheSamePlaces) {
  auto a = make(8);
  auto b = make(8);
  for (uint64_t i = 1; i <= 40; ++i) {
    const uint64_t bytes = 4096 * (1 + i * 7 % 9);
    EXPECT_EQ(a->reserve(kSpace, SentenceUid{i}, 0, bytes),
              b->reserve(kSpace, SentenceUid{i}, 0, bytes));
    if (i % 3 == 0) {
      EXPECT_EQ(a->erase(SentenceUid{i / 2}, 0), b->erase(SentenceUid{i / 2}, 0));
    }
  }
}

TEST(HostStoreDeathTest, ReservingTwiceIsABug) {
  auto store = make(2);
  ASSERT_TRUE(store->reserve(kSpace, SentenceUid{1}, 0, 4096));
  EXPECT_DEATH((void)store->reserve(kSpace, SentenceUid{1}, 0, 4096), "check failed");
}

}  // namespace
}  // namespace skv
