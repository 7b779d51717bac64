#include "kernels/kept_reads.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace skv {
namespace {

constexpr uint32_t kDim = 6;  // not a multiple of the lanes

class KeptReadsTest : public ::testing::Test {
 protected:
  KeptReadsTest() { keep(1, queries_, 40); }

  void keep(uint32_t head, const std::vector<float>& queries, uint32_t end_block) {
    kept_.keep(head, queries, kDim, end_block, {blocks_, sentences_, scores_, 2, 0.25F});
  }
  const ReadSet* find(uint32_t head, const std::vector<float>& queries, uint32_t end_block) const {
    return kept_.find(head, queries, kDim, end_block);
  }

  std::vector<uint32_t> blocks_{0, 7, 9};
  std::vector<uint32_t> sentences_{0, 1, 2};
  std::vector<float> scores_{0.5F, 0.125F, 0.125F};
  std::vector<float> queries_{1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 3, 0};
  KeptReads kept_{0.8F, 3};
};

TEST_F(KeptReadsTest, ANearQueryReadsTheSetAgain) {
  blocks_.assign(3, 77);  // it has its own copy
  std::vector<float> near = queries_;
  for (float& value : near) value *= 3.0F;  // the length does not matter
  near[0] += 1.0F;
  const ReadSet* read = find(1, near, 40);
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(std::vector<uint32_t>(read->blocks.begin(), read->blocks.end()),
            (std::vector<uint32_t>{0, 7, 9}));
  EXPECT_EQ(read->sentences[2], 2U);
  EXPECT_EQ(read->scores[0], 0.5F);
  EXPECT_EQ(read->ranked_count, 2U);
  EXPECT_EQ(read->unread_mass, 0.25F);
}

TEST_F(KeptReadsTest, OneFarQueryOfTheGroupIsEnough) {
  std::vector<float> far = queries_;
  far[6] = 2.24F;  // of the second query: the cosine is 0.8 at 2.25
  EXPECT_NE(find(1, far, 40), nullptr);
  far[6] = 2.26F;
  EXPECT_EQ(find(1, far, 40), nullptr);
}

TEST_F(KeptReadsTest, OthersAreRanked) {
  EXPECT_EQ(find(0, queries_, 40), nullptr);  // never ranked
  EXPECT_EQ(find(1, queries_, 41), nullptr);  // it has grown
  EXPECT_EQ(find(1, {1, 2, 3, 4, 5, 6}, 40), nullptr);
  EXPECT_EQ(KeptReads().find(1, queries_, kDim, 40), nullptr);
  KeptReads off(0.0F, 3);
  off.keep(1, queries_, kDim, 40, {blocks_, sentences_, scores_, 2, 0.25F});
  EXPECT_EQ(off.find(1, queries_, kDim, 40), nullptr);
}

TEST_F(KeptReadsTest, WhatHasNoDirectionIsFar) {
  for (const float value :
       {0.0F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> odd = queries_;
    for (size_t i = 6; i < 12; ++i) odd[i] = value;
    EXPECT_EQ(find(1, odd, 40), nullptr) << value;
    keep(2, odd, 40);
    EXPECT_EQ(find(2, odd, 40), nullptr) << value;
    EXPECT_EQ(find(2, queries_, 40), nullptr) << value;
  }
}

// Goal: with 1 only the same directions are near; they are, though lengths are rounded.
TEST_F(KeptReadsTest, TheSameQueryIsAlwaysNear) {
  KeptReads exact(1.0F, 1);
  for (uint32_t seed = 1; seed < 200; ++seed) {
    std::vector<float> queries(2 * kDim);
    for (size_t i = 0; i < queries.size(); ++i) {
      queries[i] = std::sin(static_cast<float>(seed * 31 + i * 7)) * static_cast<float>(seed);
    }
    exact.keep(0, queries, kDim, 1, {blocks_, sentences_, scores_, 2, 0.25F});
    EXPECT_NE(exact.find(0, queries, kDim, 1), nullptr) << seed;
  }
}

}  // namespace
}  // namespace skv
