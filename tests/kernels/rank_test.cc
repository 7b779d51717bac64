#include "kernels/rank.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

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

// What the steps of a query may move a logit: half a step in every channel, times the residual.
// The largest over all runs and queries.
double most_lost_to_steps(const Context& context,
                          const std::vector<float>& queries,
                          double softmax_scale) {
  const Shape& shape = context.shape;
  double most = 0.0;
  for (uint32_t s = 0; s < context.sentence_count(); ++s) {
    const std::vector<double> scales = synthetic::decoded_scales(shape, context.blobs[s]);
    const uint32_t runs = context.block_counts[s] * shape.block_tokens / shape.run_tokens;
    double residuals = 0.0;  // sum of magnitudes, of the worst run
    for (uint32_t run = 0; run < runs; ++run) {
      double sum = 0.0;
      for (uint32_t d = 0; d < shape.k_dim; ++d) {
        sum += std::abs(
            synthetic::decoded_residual(shape, context.block_counts[s], context.blobs[s], run, d));
      }
      residuals = std::max(residuals, sum);
    }
    for (size_t q = 0; q < queries.size(); q += shape.k_dim) {
      double largest = 0.0;
      for (uint32_t d = 0; d < shape.k_dim; ++d) {
        largest = std::max(largest, std::fabs(double{queries[q + d]}) * softmax_scale * scales[d]);
      }
      most = std::max(most, largest / 254.0 * residuals);
    }
  }
  return most;
}

// Goal: the definition in code estimates what the record's text says.
// Method: decode every run in double precision and compare shares, over shapes. No logit is off by
// more than the steps of the query allow, so no share by more than a factor of exp(2 * that).
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
        const double factor =
            std::exp(2.0 * most_lost_to_steps(context, queries, double{query.softmax_scale}));
        double total = 0.0;
        for (size_t i = 0; i < oracle.blocks.size(); ++i) {
          EXPECT_EQ(result.blocks[i], i);
          EXPECT_LE(double{result.scores[i]}, oracle.blocks[i] * (factor + 1e-5) + 1e-9);
          EXPECT_GE(double{result.scores[i]}, oracle.blocks[i] / (factor + 1e-5) - 1e-9);
          total += double{result.scores[i]};
        }
        EXPECT_NEAR(total, 1.0, 1e-5);
        EXPECT_TRUE(result.full_scan);
        EXPECT_EQ(result.skipped_mass, 0.0F);
      }
    }
  }
}

// Goal: what a query loses to its steps is small beside what its keys lost to theirs.
// Method: one run per block, so that a score is one logit: its distance from the decoded record's
// is the query's loss, that of the decoded from the true mean of the keys the residuals'. With
// channels alike, and with some 8 times as wide, whose scales set the step.
TEST(Rank, StepsOfAQueryLoseLittleBesideTheResiduals) {
  for (const float wide : {1.0F, 8.0F}) {
    const Shape shape{128, 4, 4};
    Context context;
    context.shape = shape;
    context.pages = synthetic::empty_pages(shape);
    synthetic::Noise noise(3);
    for (uint32_t s = 0; s < 40; ++s) {
      std::vector<float> keys(size_t{40} * shape.k_dim);
      for (size_t i = 0; i < keys.size(); ++i) {
        keys[i] = noise.normal() * (i % shape.k_dim % 50 == 7 ? wide : 1.0F);
      }
      synthetic::append(context, 10, std::move(keys));
    }
    double by_steps = 0.0;
    double by_residuals = 0.0;
    RankScratch scratch;
    for (uint32_t round = 0; round < 8; ++round) {
      const std::vector<float> queries = synthetic::random_queries(1, shape.k_dim, round);
      const RankQuery query = synthetic::query_of(queries, shape);
      const RankResult result = rank(context.view(), query, full_scan(), scratch);
      std::vector<double> off;
      double mean_off = 0.0;
      for (uint32_t block = 0; block < context.pages->end_block(); ++block) {
        const std::vector<double> run =
            synthetic::decoded_run(shape, 10, context.blobs[block / 10], block % 10);
        double decoded = 0.0;
        double lost = 0.0;
        for (uint32_t d = 0; d < shape.k_dim; ++d) {
          const double scaled = double{queries[d]} * double{query.softmax_scale};
          double key = 0.0;
          for (uint32_t t = 0; t < 4; ++t) {
            key += double{context.keys[block / 10][(block % 10 * 4 + t) * shape.k_dim + d]} / 4.0;
          }
          decoded += scaled * run[d];
          lost += scaled * (run[d] - key);
        }
        by_residuals += lost * lost;
        off.push_back(std::log(double{result.scores[block]}) - decoded);  // and one constant
        mean_off += off.back() / context.pages->end_block();
      }
      for (const double value : off) by_steps += (value - mean_off) * (value - mean_off);
    }
    const double part = std::sqrt(by_steps / by_residuals);
    std::printf("a query's steps lose %.3f of what its keys' residuals do (rms), widest x %.0f\n",
                part, static_cast<double>(wide));
    EXPECT_GT(part, 0.0);
    EXPECT_LT(part, wide > 1.0F ? 0.35 : 0.15);
  }
}

// Goal: with one token per run, every score is the true attention mass within what the rounding of
// the residuals allows: if no logit is off by more than e, no share is off by more than a factor
// of exp(2 e), and e is at most half a step per channel.
RC_GTEST_PROP(Rank, ScoresAreTrueAttentionUpToRounding, ()) {
  Shape shape;
  shape.k_dim = 8 * *rc::gen::inRange(1U, 17U);
  shape.block_tokens = *rc::gen::element(4U, 8U, 16U);
  shape.run_tokens = 1;
  const auto seed = *rc::gen::arbitrary<uint64_t>();
  const Context context = synthetic::random_context(shape, *rc::gen::inRange(1U, 12U), seed);
  const auto group = *rc::gen::inRange(1U, 9U);
  const std::vector<float> queries = synthetic::random_queries(group, shape.k_dim, seed + 1);
  const RankQuery query = synthetic::query_of(queries, shape);
  double off = 0.0;
  double off_max = 0.0;
  for (uint32_t s = 0; s < context.sentence_count(); ++s) {
    const std::vector<std::byte>& record = context.blobs[s];
    uint16_t m = 0;
    std::memcpy(&m, &record[size_t{2} * shape.k_dim], 2);
    for (uint32_t t = 0; t < context.block_counts[s] * shape.block_tokens; ++t) {
      const std::vector<double> run =
          synthetic::decoded_run(shape, context.block_counts[s], record, t);
      for (uint32_t q = 0; q < group; ++q) {
        double error = 0.0;
        double bound = 1e-4;
        for (uint32_t d = 0; d < shape.k_dim; ++d) {
          const double scaled = double{queries[q * shape.k_dim + d]} * double{query.softmax_scale};
          error += scaled * (run[d] - double{context.keys[s][size_t{t} * shape.k_dim + d]});
          const double step = double{
              half_to_float(m) *
              log_code_factor(static_cast<uint8_t>(record[size_t{3} * shape.k_dim + 4 + d]))};
          bound += std::fabs(scaled) * 0.501 * step;
        }
        off = std::max(off, std::fabs(error));
        off_max = std::max(off_max, bound);
      }
    }
  }
  RC_ASSERT(off <= off_max);
  const synthetic::OracleScores oracle =
      synthetic::true_attention(context, queries, double{query.softmax_scale});
  RankScratch scratch;
  const RankResult result = rank(context.view(), query, full_scan(), scratch);
  RC_ASSERT(result.scores.size() == oracle.blocks.size());
  for (size_t i = 0; i < oracle.blocks.size(); ++i) {
    const double factor = std::exp(2.0 * off) * 1.0001;
    RC_ASSERT(double{result.scores[i]} <= oracle.blocks[i] * factor + 1e-12);
    RC_ASSERT(double{result.scores[i]} >= oracle.blocks[i] / factor - 1e-12);
  }
}

// Goal: the coarse stage chooses and weighs by q * mean + 1/2 sum of q^2 spread^2, per token.
// Method: the same in double precision from the records; the order of what was chosen, and the mass
// of what was skipped.
TEST(Rank, CoarseStageByTheFormula) {
  for (const uint32_t group : {1U, 4U}) {
    const Shape shape{48, 8, 2};
    const Context context = synthetic::random_context(shape, 150, 21);
    const std::vector<float> queries = synthetic::random_queries(group, 48, 5);
    const RankQuery query = synthetic::query_of(queries, shape);
    RankOptions options;
    options.full_scan_blocks = 0;
    options.coarse_blocks = 200;
    options.sink_blocks = 1;
    options.recent_blocks = 3;
    RankScratch scratch;
    const RankResult result = rank(context.view(), query, options, scratch);
    EXPECT_FALSE(result.full_scan);

    const uint32_t count = context.sentence_count();
    std::vector<double> shares(count, 0.0);  // per token, up to one factor per query
    std::vector<std::vector<double>> masses(group, std::vector<double>(count));
    for (uint32_t q = 0; q < group; ++q) {
      double total = 0.0;
      for (uint32_t s = 0; s < count; ++s) {
        const std::vector<std::byte>& record = context.blobs[s];
        double logit = 0.0;
        for (uint32_t d = 0; d < 48; ++d) {
          uint16_t mean = 0;
          uint16_t m = 0;
          std::memcpy(&mean, &record[size_t{2} * d], 2);
          std::memcpy(&m, &record[98], 2);
          const auto code = static_cast<int>(record[100 + d]);
          const double spread =
              code == 0 ? 0.0 : double{half_to_float(m)} * std::exp2((code - 255) / 16.0);
          const double scaled = double{queries[q * 48 + d]} * double{query.softmax_scale};
          logit += scaled * double{half_to_float(mean)} + 0.5 * scaled * scaled * spread * spread;
        }
        masses[q][s] = std::exp(logit);
        total += masses[q][s] * context.block_counts[s] * 8;
      }
      for (uint32_t s = 0; s < count; ++s) shares[s] += masses[q][s] / total;
    }
    std::vector<uint8_t> chosen(count, 0);
    uint32_t blocks = 0;
    for (const uint32_t s : result.sentences) {
      chosen[s] = 1;
      if (s != 0 && s != count - 1) blocks += context.block_counts[s];
    }
    EXPECT_EQ(chosen[0], 1);
    EXPECT_EQ(chosen[count - 1], 1);
    EXPECT_GE(blocks, 200U);
    EXPECT_LT(blocks, 208U);
    double worst_chosen = 1.0;
    double best_skipped = 0.0;
    for (uint32_t s = 1; s + 1 < count; ++s) {
      if (chosen[s] != 0) worst_chosen = std::min(worst_chosen, shares[s]);
      if (chosen[s] == 0) best_skipped = std::max(best_skipped, shares[s]);
    }
    EXPECT_GE(worst_chosen, best_skipped * (1.0 - 2e-3));

    double skipped = 0.0;
    for (uint32_t q = 0; q < group; ++q) {
      const RankNormaliser& n = result.normalisers[q];
      double mass = 0.0;
      for (uint32_t s = 0; s < count; ++s) {
        if (chosen[s] == 0) mass += masses[q][s] * context.block_counts[s] * 8;
      }
      skipped += mass / (double{n.sum} * std::exp2(double{n.log2_max})) / group;
    }
    EXPECT_GT(skipped, 0.0);
    EXPECT_NEAR(result.skipped_mass, skipped, 1e-3 * skipped);
    const double total = std::accumulate(result.scores.begin(), result.scores.end(), 0.0) + skipped;
    EXPECT_NEAR(total, 1.0, 1e-3);
  }
}

// Goal: one wild estimate of the coarse stage does not wipe out what the fine stage knows.
// Method: a sentence with one channel of enormous spread, which a query hits: its coarse mass is
// 2^100 times too large, its runs say otherwise.
TEST(Rank, AnOverestimateIsCorrectedByTheFineStage) {
  const Shape shape{16, 8, 2};
  Context context = synthetic::random_context(shape, 70, 2);
  std::vector<float> keys(size_t{40} * 16, 0.0F);
  for (uint32_t t = 0; t < 40; ++t) keys[t * 16] = t % 2 == 0 ? 60.0F : -60.0F;  // run means: 0
  synthetic::append(context, 5, keys);
  std::vector<float> queries = synthetic::random_queries(1, 16, 3);
  queries[0] = 1.5F;
  RankOptions options;
  options.full_scan_blocks = 0;
  options.coarse_blocks = 100;
  RankScratch scratch;
  const RankResult result =
      rank(context.view(), synthetic::query_of(queries, shape), options, scratch);
  EXPECT_EQ(result.sentences.back(), 70U);
  EXPECT_LT(result.scores.back(), 0.01F);
  const double total = std::accumulate(result.scores.begin(), result.scores.end(), 0.0);
  EXPECT_NEAR(total + double{result.skipped_mass}, 1.0, 1e-4);
  EXPECT_GT(total, 0.1);
}

// Goal: mean or maximum over the group, each after its own softmax.
TEST(Rank, ReductionsOverTheGroup) {
  const Shape shape;
  const Context context = synthetic::random_context(shape, 12, 8);
  const std::vector<float> queries = synthetic::random_queries(3, shape.k_dim, 4);
  RankScratch scratch;
  std::vector<std::vector<float>> single;
  for (size_t q = 0; q < 3; ++q) {
    RankQuery one = synthetic::query_of(queries, shape);
    one.queries += q * shape.k_dim;
    one.query_count = 1;
    const RankResult result = rank(context.view(), one, {}, scratch);
    single.emplace_back(result.scores.begin(), result.scores.end());
  }
  const RankQuery all = synthetic::query_of(queries, shape);
  const RankResult mean = rank(context.view(), all, {}, scratch);
  for (size_t i = 0; i < mean.scores.size(); ++i) {
    EXPECT_NEAR(mean.scores[i], (single[0][i] + single[1][i] + single[2][i]) / 3.0F, 1e-6F);
  }
  RankOptions options;
  options.reduction = RankReduction::kMax;
  const RankResult max = rank(context.view(), all, options, scratch);
  for (size_t i = 0; i < max.scores.size(); ++i) {
    EXPECT_EQ(max.scores[i], std::max({single[0][i], single[1][i], single[2][i]}));
  }
}

// Share of the true attention mass that a set of blocks holds.
double recall(const synthetic::OracleScores& oracle, std::span<const uint32_t> blocks) {
  double sum = 0.0;
  for (const uint32_t block : blocks) sum += oracle.blocks[block];
  return sum;
}

// Goal: the default index finds most of what the true attention reads, and beats the mean alone.
// Method: synthetic keys with topics and neighbours, 1/8 of the blocks; against the best set there
// is. The shares printed are of this data and say nothing about a model.
TEST(Rank, RecallAgainstTrueAttention) {
  double best_sum = 0.0;
  double fine_sum = 0.0;
  double coarse_sum = 0.0;
  double mean_sum = 0.0;
  const int rounds = 6;
  for (int round = 0; round < rounds; ++round) {
    Shape shape{64, 8, 2};
    const auto seed = static_cast<uint64_t>(100 + round);
    const Context context = synthetic::random_context(shape, 120, seed);
    shape.kind = IndexKind::kMean;
    const Context means = synthetic::random_context(shape, 120, seed);
    std::vector<float> queries = synthetic::random_queries(4, 64, seed);
    for (float& value : queries) value *= 2.5F;  // a sharp attention, so that there is much to miss
    const RankQuery query = synthetic::query_of(queries, shape);
    const synthetic::OracleScores oracle =
        synthetic::true_attention(context, queries, double{query.softmax_scale});
    const uint32_t budget = context.pages->end_block() / 8;

    std::vector<double> sorted = oracle.blocks;
    std::sort(sorted.rbegin(), sorted.rend());
    best_sum += std::accumulate(sorted.begin(), sorted.begin() + budget, 0.0);
    RankScratch scratch;
    CutScratch cut_scratch;
    const CutOptions cut_options{CutUnit::kBlock, budget};
    const auto share = [&](const Context& of, const RankOptions& options) {
      const RankResult ranked = rank(of.view(), query, options, scratch);
      return recall(oracle, cut(ranked, cut_options, cut_scratch).blocks);
    };
    RankOptions coarse;
    coarse.full_scan_blocks = 0;
    coarse.coarse_blocks = 4 * budget;
    fine_sum += share(context, full_scan());
    coarse_sum += share(context, coarse);
    mean_sum += share(means, full_scan());
  }
  std::printf(
      "recall of true attention mass at 12.5 %%: best %.3f, default index %.3f, "
      "with coarse stage %.3f, mean alone %.3f\n",
      best_sum / rounds, fine_sum / rounds, coarse_sum / rounds, mean_sum / rounds);
  EXPECT_GE(fine_sum, 0.95 * best_sum);
  EXPECT_GE(coarse_sum, 0.90 * best_sum);
  EXPECT_GT(fine_sum, mean_sum);
}

TEST(Rank, EmptyContext) {
  const std::unique_ptr<VectorPages> pages = synthetic::empty_pages({});
  const std::vector<float> queries = synthetic::random_queries(2, 64, 1);
  RankScratch scratch;
  const RankResult result = rank(pages->view(0, 0), synthetic::query_of(queries, {}), {}, scratch);
  EXPECT_TRUE(result.blocks.empty());
  EXPECT_EQ(result.normalisers[1].sum, 0.0F);
  CutScratch cut_scratch;
  EXPECT_TRUE(cut(result, {CutUnit::kBlock, 10}, cut_scratch).blocks.empty());
}

}  // namespace
}  // namespace skv
