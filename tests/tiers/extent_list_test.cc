#include "tiers/extent_list.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace skv {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSlab = 64 * 1024;
constexpr ExtentList::Geometry kGeometry{.length_bytes = 8 * kSlab, .slab_bytes = kSlab};

TEST(ExtentList, TakesTheSmallestHoleThatChargesNothing) {
  ExtentList list(kGeometry);
  EXPECT_EQ(list.allocate(4 * kPage, 8)->offset, 0U);
  EXPECT_EQ(list.allocate(2 * kPage, 8)->offset, 4 * kPage);
  EXPECT_EQ(list.allocate(1 * kPage, 8)->offset, 6 * kPage);
  EXPECT_EQ(list.charged_slabs(), 1U);
  EXPECT_EQ(list.release(4 * kPage, 2 * kPage).count, 0U);

  const auto placed = list.allocate(2 * kPage, 8);

  ASSERT_TRUE(placed.has_value());
  EXPECT_EQ(placed->offset, 4 * kPage);
  EXPECT_EQ(placed->slabs_charged, 0U);
}

TEST(ExtentList, ChargesAtMostWhatTheCallerAllows) {
  ExtentList list(kGeometry);
  EXPECT_FALSE(list.allocate(kSlab + kPage, 1).has_value());

  const auto placed = list.allocate(kSlab + kPage, 2);

  ASSERT_TRUE(placed.has_value());
  EXPECT_EQ(placed->slabs_charged, 2U);
  EXPECT_EQ(list.allocate(15 * kPage, 0)->slabs_charged, 0U);
  EXPECT_FALSE(list.allocate(kPage, 0).has_value());
}

TEST(ExtentList, ReportsEachSlabThatNothingUsesAnyMore) {
  ExtentList list(kGeometry);
  const auto small = list.allocate(kPage, 8);
  const auto wide = list.allocate(3 * kSlab, 8);
  ASSERT_EQ(wide->offset, kPage);

  const ExtentList::SlabRange first = list.release(wide->offset, 3 * kSlab);
  EXPECT_EQ(first.first, 1U);  // slab 0 still holds `small`
  EXPECT_EQ(first.count, 3U);
  const ExtentList::SlabRange last = list.release(small->offset, kPage);
  EXPECT_EQ(last.first, 0U);
  EXPECT_EQ(last.count, 1U);
  EXPECT_EQ(list.free_extents(), 1U);
  EXPECT_EQ(list.free_bytes(), kGeometry.length_bytes);
}

// Goal: never two extents on one page, charges always equal the slabs that hold something.
// Method: random calls from a seed beside a byte map of pages.
TEST(ExtentList, RandomCallsAgreeWithAPageMap) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    ExtentList list(kGeometry);
    std::vector<int> page_owner(kGeometry.length_bytes / kPage, 0);
    struct Live {
      uint64_t offset, bytes;
      int id;
    };
    std::vector<Live> live;
    const auto charged = [&] {
      uint32_t count = 0;
      for (size_t slab = 0; slab < kGeometry.length_bytes / kSlab; ++slab) {
        bool used = false;
        for (size_t page = 0; page < kSlab / kPage; ++page) {
          used = used || page_owner[slab * (kSlab / kPage) + page] != 0;
        }
        count += used ? 1 : 0;
      }
      return count;
    };
    for (int step = 1; step <= 400; ++step) {
      if (live.empty() || random() % 5 < 3) {
        const uint64_t bytes = (1 + random() % 24) * kPage;
        const uint32_t before = charged();
        const uint32_t slabs_max = random() % 4;
        const auto placed = list.allocate(bytes, slabs_max);
        if (!placed) {
          continue;
        }
        for (uint64_t page = placed->offset / kPage; page < (placed->offset + bytes) / kPage;
             ++page) {
          ASSERT_EQ(page_owner[page], 0);
          page_owner[page] = step;
        }
        live.push_back({placed->offset, bytes, step});
        ASSERT_LE(placed->slabs_charged, slabs_max);
        ASSERT_EQ(before + placed->slabs_charged, charged());
      } else {
        const size_t victim = random() % live.size();
        const Live gone = live[victim];
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
        const uint32_t before = charged();
        for (uint64_t page = gone.offset / kPage; page < (gone.offset + gone.bytes) / kPage;
             ++page) {
          page_owner[page] = 0;
        }
        const auto emptied = list.release(gone.offset, gone.bytes);
        ASSERT_EQ(before - emptied.count, charged());
      }
      ASSERT_EQ(list.charged_slabs(), charged());
    }
    for (const Live& rest : live) {
      list.release(rest.offset, rest.bytes);
    }
    EXPECT_EQ(list.free_extents(), 1U);
    EXPECT_EQ(list.charged_slabs(), 0U);
  }
}

}  // namespace
}  // namespace skv
