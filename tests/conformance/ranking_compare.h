#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cut.h"
#include "kernels/rank.h"

// Compares results of two ranking backends bit by bit.
namespace skv::ranking_conformance {

template <typename T>
std::vector<T> copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}
inline std::vector<uint32_t> bits(std::span<const float> values) {
  std::vector<uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}

inline void expect_same(const RankResult& got, const RankResult& want) {
  EXPECT_EQ(copy(got.blocks), copy(want.blocks));
  EXPECT_EQ(bits(got.scores), bits(want.scores));
  EXPECT_EQ(copy(got.block_sentences), copy(want.block_sentences));
  EXPECT_EQ(copy(got.sentences), copy(want.sentences));
  ASSERT_EQ(got.normalisers.size(), want.normalisers.size());
  for (size_t q = 0; q < got.normalisers.size(); ++q) {
    EXPECT_EQ(std::bit_cast<uint32_t>(got.normalisers[q].log2_max),
              std::bit_cast<uint32_t>(want.normalisers[q].log2_max));
    EXPECT_EQ(std::bit_cast<uint32_t>(got.normalisers[q].sum),
              std::bit_cast<uint32_t>(want.normalisers[q].sum));
  }
  EXPECT_EQ(std::bit_cast<uint32_t>(got.skipped_mass), std::bit_cast<uint32_t>(want.skipped_mass));
  EXPECT_EQ(got.full_scan, want.full_scan);
  EXPECT_EQ(got.end_block, want.end_block);
  EXPECT_EQ(got.sink_end, want.sink_end);
  EXPECT_EQ(got.recent_first, want.recent_first);
}

inline void expect_same(const ReadSet& got, const ReadSet& want) {
  EXPECT_EQ(copy(got.blocks), copy(want.blocks));
  EXPECT_EQ(copy(got.sentences), copy(want.sentences));
  EXPECT_EQ(bits(got.scores), bits(want.scores));
  EXPECT_EQ(got.ranked_count, want.ranked_count);
  EXPECT_EQ(std::bit_cast<uint32_t>(got.unread_mass), std::bit_cast<uint32_t>(want.unread_mass));
}

}  // namespace skv::ranking_conformance
