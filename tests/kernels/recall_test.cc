#include "kernels/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <vector>

#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

LayerDescriptor layer_of(const Shape& shape) {
  LayerDescriptor layer;
  layer.kv_heads = 1;
  layer.queries_per_kv_head = 2;
  layer.k_dim = layer.v_dim = static_cast<uint16_t>(shape.k_dim);
  layer.softmax_scale = 0.2F;
  return layer;
}

class Recall : public testing::Test {
 protected:
  ReadSet choose(uint32_t coarse_blocks) {
    window_.coarse_blocks = coarse_blocks;
    ranked_ =
        ranker_.rank(context_.view(), layer_, queries_.data(), window_, window_.cut_options(0));
    return ranker_.cut(ranked_, window_.cut_options(0));
  }
  std::set<uint32_t> chosen(const ReadSet& read) const {
    std::set<uint32_t> blocks;
    for (const uint32_t block : read.blocks) {
      if (block >= ranked_.sink_end && block < ranked_.recent_first) blocks.insert(block);
    }
    return blocks;
  }

  Shape shape_{64, 8, 2};
  Context context_ = synthetic::random_context(shape_, 150, 3);  // some 900 blocks
  LayerDescriptor layer_ = layer_of(shape_);
  std::vector<float> queries_ = synthetic::random_queries(2, 64, 5);
  WindowShape window_{.budget_blocks = 300, .sink_blocks = 2, .recent_blocks = 3};
  HeadRanker ranker_;
  RankResult ranked_;
  RecallSampler recall_;
};

// Goal: the counts are the size of the full scan's choice and of what both chose, without sinks and
// recents, and what the caller has ranked is as it was.
TEST_F(Recall, CountsWhatBothChose) {
  uint64_t lost = 0;
  for (const uint32_t coarse_blocks : {520U, 600U, 800U}) {
    const std::set<uint32_t> all = chosen(choose(std::numeric_limits<uint32_t>::max()));
    ASSERT_TRUE(ranked_.full_scan);
    const ReadSet read = choose(coarse_blocks);
    ASSERT_FALSE(ranked_.full_scan);
    const std::vector<uint32_t> before(read.blocks.begin(), read.blocks.end());
    const std::set<uint32_t> some = chosen(read);
    std::vector<uint32_t> both;
    std::set_intersection(all.begin(), all.end(), some.begin(), some.end(),
                          std::back_inserter(both));
    const RecallCounts counts = recall_.compare(
        {context_.view(), layer_, queries_.data(), window_, window_.cut_options(0)}, ranked_, read);
    EXPECT_EQ(counts.rankings, 1U);
    EXPECT_EQ(counts.wanted, 300U);
    EXPECT_EQ(counts.wanted, all.size());
    EXPECT_EQ(counts.found, both.size());
    EXPECT_TRUE(std::equal(before.begin(), before.end(), read.blocks.begin(), read.blocks.end()));
    lost += counts.wanted - counts.found;
  }
  EXPECT_GT(lost, 0U) << "nothing was lost: the comparison was of equals";
}

// Goal: one in `every` on average, at distances that differ, of rankings that left something out;
// none where it is 0.
TEST_F(Recall, IsDueOnceInAWhile) {
  choose(600);
  ASSERT_FALSE(ranked_.full_scan);
  uint32_t due = 0;
  uint32_t last = 0;
  std::set<uint32_t> distances;
  for (uint32_t i = 1; i <= 100'000; ++i) {
    if (!recall_.due(100, ranked_)) continue;
    ++due;
    distances.insert(i - last);
    last = i;
  }
  EXPECT_NEAR(due, 1000, 100);
  EXPECT_GT(distances.size(), 100U);
  EXPECT_LT(*distances.rbegin(), 200U);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(recall_.due(1, ranked_));
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(recall_.due(0, ranked_));
  choose(std::numeric_limits<uint32_t>::max());
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(recall_.due(1, ranked_));
}

}  // namespace
}  // namespace skv
