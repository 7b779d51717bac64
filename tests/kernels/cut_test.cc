#include "kernels/cut.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace skv {
namespace {

// A ranking made by hand: sentences of given sizes, scores per block, all of it finely ranked.
struct Ranked {
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> block_sentences;
  std::vector<float> scores;
  std::vector<uint32_t> sentences;
  RankNormaliser normaliser{0.0F, 1.0F};
  uint32_t sinks = 0;
  uint32_t recents = 0;

  Ranked(const std::vector<uint32_t>& sizes, std::vector<float> block_scores)
      : scores(std::move(block_scores)) {
    for (uint32_t s = 0; s < sizes.size(); ++s) {
      sentences.push_back(s);
      for (uint32_t i = 0; i < sizes[s]; ++i) {
        blocks.push_back(static_cast<uint32_t>(blocks.size()));
        block_sentences.push_back(s);
      }
    }
    EXPECT_EQ(blocks.size(), scores.size());
  }
  RankResult result() const {
    RankResult result;
    result.blocks = blocks;
    result.scores = scores;
    result.block_sentences = block_sentences;
    result.sentences = sentences;
    result.normalisers = {&normaliser, 1};
    result.end_block = static_cast<uint32_t>(blocks.size());
    result.sink_end = std::min(sinks, result.end_block);
    result.recent_first = result.end_block - std::min(recents, result.end_block);
    return result;
  }
};

std::vector<uint32_t> blocks_of(const Ranked& ranked, CutUnit unit, uint32_t budget) {
  CutScratch scratch;
  const ReadSet set = cut(ranked.result(), {unit, budget}, scratch);
  return {set.blocks.begin(), set.blocks.end()};
}
using Blocks = std::vector<uint32_t>;

TEST(Cut, BestBlocksTiesByLowerIndex) {
  const Ranked ranked({4, 4}, {0.1F, 0.2F, 0.1F, 0.0F, 0.2F, 0.1F, 0.3F, 0.0F});
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 0), Blocks{});
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 1), (Blocks{6}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 2), (Blocks{1, 6}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 4), (Blocks{0, 1, 4, 6}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 8), (Blocks{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 1000), (Blocks{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(Cut, WholeSentencesByScorePerBlockPassingOverWhatDoesNotFit) {
  // Per block: 0.05, 0.06, 0.01, 0.04.
  const Ranked ranked({2, 4, 3, 2},
                      {0.05F, 0.05F, 0.0F, 0.24F, 0.0F, 0.0F, 0.01F, 0.01F, 0.01F, 0.08F, 0.0F});
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 1), Blocks{});
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 3), (Blocks{0, 1}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 4), (Blocks{2, 3, 4, 5}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 7), (Blocks{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 8), (Blocks{0, 1, 2, 3, 4, 5, 9, 10}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 99).size(), 11U);
}

TEST(Cut, SinksAndRecentsAreAlwaysThereAndCostNothing) {
  Ranked ranked({4, 4, 4}, std::vector<float>(12, 1.0F / 12.0F));
  ranked.sinks = 1;
  ranked.recents = 2;
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 0), (Blocks{0, 10, 11}));
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 2), (Blocks{0, 1, 2, 10, 11}));
  // Sentence 0 has 3 candidates left, sentence 2 has 2.
  EXPECT_EQ(blocks_of(ranked, CutUnit::kSentence, 5), (Blocks{0, 1, 2, 3, 8, 9, 10, 11}));
  CutScratch scratch;
  const ReadSet set = cut(ranked.result(), {CutUnit::kSentence, 5}, scratch);
  EXPECT_EQ(set.ranked_count, 5U);
  EXPECT_NEAR(set.unread_mass, 4.0F / 12.0F, 1e-6F);
  // They may overlap, and be more than there is.
  ranked.sinks = 9;
  ranked.recents = 100;
  EXPECT_EQ(blocks_of(ranked, CutUnit::kBlock, 5).size(), 12U);
}

TEST(Cut, UnreadMass) {
  Ranked ranked({4}, {0.4F, 0.3F, 0.2F, 0.1F});
  RankResult result = ranked.result();
  CutScratch scratch;
  EXPECT_EQ(cut(result, {CutUnit::kBlock, 4}, scratch).unread_mass, 0.0F);
  EXPECT_NEAR(cut(result, {CutUnit::kBlock, 1}, scratch).unread_mass, 0.6F, 1e-6F);
  result.skipped_mass = 0.25F;
  EXPECT_EQ(cut(result, {CutUnit::kBlock, 4}, scratch).unread_mass, 0.25F);
  result.skipped_mass = 0.9F;  // as it may be with the maximum over a group
  EXPECT_EQ(cut(result, {CutUnit::kBlock, 1}, scratch).unread_mass, 1.0F);
  const RankNormaliser nothing;
  result.normalisers = {&nothing, 1};
  result.skipped_mass = 0.0F;
  EXPECT_EQ(cut(result, {CutUnit::kBlock, 1}, scratch).unread_mass, 1.0F);
  EXPECT_EQ(cut(result, {CutUnit::kBlock, 4}, scratch).unread_mass, 0.0F);
}

TEST(Cut, NothingRanked) {
  const RankResult empty;
  CutScratch scratch;
  const ReadSet set = cut(empty, {CutUnit::kBlock, 5}, scratch);
  EXPECT_TRUE(set.blocks.empty());
  EXPECT_EQ(set.unread_mass, 0.0F);
}

// Goal: radix selection takes what a stable sort would.
RC_GTEST_PROP(SelectBest, AgreesWithASort, ()) {
  // Few distinct values and many, zeros and the ends of the range.
  const auto scores = *rc::gen::container<std::vector<float>>(
      rc::gen::oneOf(rc::gen::element(0.0F, 0.25F, 1.0F, 1e-38F, 1e-45F),
                     rc::gen::map(rc::gen::inRange(0, 1 << 30),
                                  [](int v) { return static_cast<float>(v) * 0x1p-30F; })));
  const auto weights =
      *rc::gen::container<std::vector<uint32_t>>(scores.size(), rc::gen::inRange(0U, 9U));
  const bool weighted = *rc::gen::arbitrary<bool>();
  const auto weight_min = *rc::gen::inRange(0U, static_cast<uint32_t>(6 * scores.size() + 2));
  std::vector<uint8_t> taken(scores.size(), 9);
  std::vector<uint32_t> histogram;
  const uint32_t sum =
      select_best(scores, weighted ? weights.data() : nullptr, weight_min, taken, histogram);

  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  std::vector<uint32_t> want(scores.size(), 0);
  uint32_t want_sum = 0;
  for (const size_t i : order) {
    if (want_sum >= weight_min) break;
    want[i] = 1;
    want_sum += weighted ? weights[i] : 1;
  }
  RC_ASSERT(sum == want_sum);
  for (size_t i = 0; i < scores.size(); ++i) {
    // What weighs nothing may be in or out.
    if (weighted && weights[i] == 0) continue;
    RC_ASSERT(uint32_t{taken[i]} == want[i]);
  }
}

// Goal: the fast passes choose what a full sort would, whatever the sizes and ties.
TEST(Cut, LargeContextsLikeASort) {
  uint64_t state = 1;
  const auto next = [&state] {
    return state = state * 6364136223846793005U + 1442695040888963407U;
  };
  for (const uint32_t count : {1000U, 4099U, 50000U}) {
    for (const uint32_t distinct : {3U, 500U, 1U << 24}) {
      std::vector<float> scores(count);
      for (float& score : scores) score = static_cast<float>((next() >> 33) % distinct) * 0x1p-26F;
      Ranked ranked({count}, scores);
      ranked.sinks = 5;
      ranked.recents = 21;
      for (const uint32_t budget : {1U, 7U, 64U, 256U, 900U}) {
        Blocks order(count - 26);
        std::iota(order.begin(), order.end(), 5U);
        std::stable_sort(order.begin(), order.end(),
                         [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
        order.resize(budget);
        for (uint32_t i = 0; i < 5; ++i) order.push_back(i);
        for (uint32_t i = count - 21; i < count; ++i) order.push_back(i);
        std::sort(order.begin(), order.end());
        ASSERT_EQ(blocks_of(ranked, CutUnit::kBlock, budget), order) << count << " " << budget;
        // Unread: 16 sums by index modulo 16, then pairs.
        float lanes[16] = {};
        for (uint32_t i = 5; i < count - 21; ++i) {
          if (!std::binary_search(order.begin(), order.end(), i)) lanes[i % 16] += scores[i];
        }
        for (int width = 8; width >= 1; width /= 2) {
          for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        }
        CutScratch scratch;
        EXPECT_EQ(cut(ranked.result(), {CutUnit::kBlock, budget}, scratch).unread_mass,
                  std::min(1.0F, lanes[0]));
      }
    }
  }
}

// Goal: by mass, the smallest best set that reaches it, within the budget, sinks and recents
// counted.
TEST(Cut, ByMassNoMoreThanNeeded) {
  Ranked ranked({4, 4}, {0.125F, 0.25F, 0.0625F, 0.0F, 0.25F, 0.125F, 0.1875F, 0.0F});
  const auto chosen = [&](CutUnit unit, uint32_t budget, float mass) {
    CutScratch scratch;
    const ReadSet set = cut(ranked.result(), {unit, budget, mass}, scratch);
    return Blocks(set.blocks.begin(), set.blocks.end());
  };
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 0.25F), (Blocks{1}));
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 0.26F), (Blocks{1, 4}));
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 0.6875F), (Blocks{1, 4, 6}));
  EXPECT_EQ(chosen(CutUnit::kBlock, 2, 0.9F), (Blocks{1, 4}));
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 1.0F), (Blocks{0, 1, 2, 4, 5, 6}));
  EXPECT_EQ(chosen(CutUnit::kSentence, 8, 0.5F), (Blocks{4, 5, 6, 7}));
  EXPECT_EQ(chosen(CutUnit::kSentence, 8, 0.6F), (Blocks{0, 1, 2, 3, 4, 5, 6, 7}));
  ranked.sinks = 2;
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 0.375F), (Blocks{0, 1}));
  EXPECT_EQ(chosen(CutUnit::kBlock, 8, 0.5F), (Blocks{0, 1, 4}));
}

}  // namespace
}  // namespace skv
