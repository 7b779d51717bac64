#include "kernels/rank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cut.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

RankOptions full_scan() {
  RankOptions options;
  options.full_scan_blocks = std::numeric_limits<uint32_t>::max();
  return options;
}

// Goal: the definition in code estimates what the record's text says.
// Method: decode every run in double precision and compare shares, over shapes.
TEST(Rank, AgreesWithTheDecodedRecords) {
  for (const uint32_t k_dim : {8U, 64U, 128U}) {
    for (const uint32_t block_tokens : {4U, 8U, 16U}) {
      for (const uint32_t run_tokens : {1U, 2U, 4U}) {
        const Shape shape{k_dim, block_tokens, run_tokens};
        const Context context = synthetic::random_context(shape, 9, k_dim + block_tokens);
        const std::vector<float> queries = synthetic::random_queries(3, k_dim, 7);
        const RankQuery query = synthetic::query_of(queries, shape);
        RankScratch scratch;
        const RankResult result = rank_reference(context.view(), query, full_scan(), scratch);
        const synthetic::OracleScores oracle =
            synthetic::estimated_attention(context, queries, double{query.softmax_scale});
        ASSERT_EQ(result.blocks.size(), oracle.blocks.size());
        double total = 0.0;
        for (size_t i = 0; i < oracle.blocks.size(); ++i) {
          EXPECT_EQ(result.blocks[i], i);
          EXPECT_NEAR(result.scores[i], oracle.blocks[i], 1e-5 * oracle.blocks[i] + 1e-9);
          total += double{result.scores[i]};
        }
        EXPECT_NEAR(total, 1.0, 1e-5);
        EXPECT_TRUE(result.full_scan);
        EXPECT_EQ(result.skipped_mass, 0.0F);
      }
    }
  }
}

}  // namespace
}  // namespace skv
