#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cut.h"
#include "kernels/rank.h"
#include "kernels/sketch.h"
#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

// RankOptions::best_blocks: the best from sketches, beside a scan of everything.
namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

// Keys that are hard on a bound of 8 bits.
enum class Keys : uint8_t {
  kNormal,
  kEqual,       // all the same
  kDuplicates,  // of a few
  kHugeOne,     // one vector in ten is 10^4 times as long
  kOneChannel,  // a channel that dwarfs the others
  kTiny,        // subnormal halves
  kNeighbours,  // one vector, and what differs from it in the last bit of a channel
  kRising,      // one vector, longer and longer: each block is better than all before, or worse
  kLast,
};

std::vector<float> keys_of(
    Keys how, uint32_t tokens, uint32_t k_dim, synthetic::Noise& noise, float rising = 0.0F) {
  std::vector<float> keys(size_t{tokens} * k_dim);
  const uint32_t distinct = 1 + noise.below(5);
  std::vector<float> base(size_t{distinct} * k_dim);
  for (float& value : base) value = noise.normal();
  for (uint32_t token = 0; token < tokens; ++token) {
    const float length = how == Keys::kHugeOne && noise.below(10) == 0 ? 1e4F : 1.0F;
    const uint32_t of = noise.below(distinct);
    for (uint32_t d = 0; d < k_dim; ++d) {
      float& key = keys[size_t{token} * k_dim + d];
      key = noise.normal() * length;
      if (how == Keys::kEqual) key = 0.25F;
      if (how == Keys::kDuplicates) key = base[size_t{of} * k_dim + d];
      if (how == Keys::kOneChannel && d == k_dim / 2) key *= 3000.0F;
      if (how == Keys::kTiny) key *= 1e-6F;
      if (how == Keys::kNeighbours) key = base[d];
      if (how == Keys::kRising) key = base[d] * (0.1F + rising) + 0.01F * key;
    }
    if (how == Keys::kNeighbours) keys[size_t{token} * k_dim + noise.below(k_dim)] *= 1.001F;
  }
  return keys;
}

Context context_of(const Shape& shape, Keys how, uint32_t sentences, uint64_t seed) {
  Context context = synthetic::random_context(shape, 1, seed);
  synthetic::Noise noise(seed);
  for (uint32_t i = 0; i < sentences; ++i) {
    const uint32_t blocks = 64 / shape.block_tokens - noise.below(32 / shape.block_tokens);
    if (how == Keys::kRising) noise = synthetic::Noise(seed);  // the same vector in every sentence
    const float rising = static_cast<float>(i) / static_cast<float>(sentences);
    synthetic::append(context, blocks,
                      keys_of(how, blocks * shape.block_tokens, shape.k_dim, noise, rising));
  }
  return context;
}

std::vector<uint32_t> blocks_of(const ReadSet& set) {
  return ranking_conformance::copy(set.blocks);
}

// What a cut makes of the best alone is what it makes of everything. Returns how many rows were
// ranked without a full scan.
uint32_t expect_the_full_scans_sets(const RankView& view,
                                    const std::vector<float>& queries,
                                    const RankOptions& options,
                                    float softmax_scale) {
  RankScratch scratch;
  RankScratch whole_scratch;
  RankScratch plain_scratch;
  CutScratch cut_scratch;
  CutScratch whole_cut_scratch;
  const auto rows = static_cast<uint32_t>(queries.size() / view.k_dim);
  const RankQuery query{queries.data(), 1, softmax_scale, rows};
  RankOptions all = options;
  all.best_blocks = 0;
  const std::span<const RankResult> best = rank_rows(view, query, options, scratch);
  const std::span<const RankResult> whole = rank_rows(view, query, all, whole_scratch);
  const std::span<const RankResult> plain =
      rank_rows_reference(view, query, options, plain_scratch);
  uint32_t alone = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    ranking_conformance::expect_same(best[row], plain[row]);
    const ReadSet got = cut(best[row], {CutUnit::kBlock, options.best_blocks}, cut_scratch);
    const ReadSet want = cut(whole[row], {CutUnit::kBlock, options.best_blocks}, whole_cut_scratch);
    EXPECT_EQ(blocks_of(got), blocks_of(want)) << "row " << row;
    EXPECT_EQ(ranking_conformance::copy(got.sentences), ranking_conformance::copy(want.sentences));
    EXPECT_EQ(got.ranked_count, want.ranked_count);
    EXPECT_EQ(got.unread_mass, best[row].full_scan ? want.unread_mass : 1.0F);
    if (best[row].full_scan) continue;
    ++alone;
    // The masses of what was ranked are the full scan's, bit by bit if a run is a block: scores
    // differ by one factor, the mass of the rest. Beside another largest logit they may round
    // otherwise.
    const RankNormaliser& mine = best[row].normalisers[0];
    const RankNormaliser& full = whole[row].normalisers[0];
    if (view.run_tokens == view.block_tokens) {
      EXPECT_EQ(mine.log2_max, full.log2_max);
    }
    const double factor = static_cast<double>(full.sum) / static_cast<double>(mine.sum) *
                          std::exp2(static_cast<double>(full.log2_max - mine.log2_max));
    EXPECT_GE(factor, 1.0 - 1e-4);
    for (size_t i = 0; i < best[row].blocks.size(); ++i) {
      const auto score = static_cast<double>(whole[row].scores[best[row].blocks[i]]);
      EXPECT_NEAR(static_cast<double>(best[row].scores[i]), score * factor,
                  (mine.log2_max == full.log2_max ? 1e-6 : 1e-4) * score * factor);
    }
  }
  return alone;
}

// Goal: the set is the full scan's whatever the vectors, and plain and vectorised loops agree.
RC_GTEST_PROP(Best, SetsAreThoseOfAFullScan, ()) {
  const auto seed = *rc::gen::inRange<uint64_t>(0, 1U << 30);
  const auto how = static_cast<Keys>(*rc::gen::inRange(0, static_cast<int>(Keys::kLast)));
  Shape shape;
  shape.k_dim = 8 * *rc::gen::inRange(1U, 33U);
  shape.block_tokens = 4U << *rc::gen::inRange(0, 4);
  shape.run_tokens = std::max(1U, shape.block_tokens >> *rc::gen::inRange(0, 6));
  shape.kind = *rc::gen::element(IndexKind::kFp16, IndexKind::kBf16, IndexKind::kKeys);
  const Context context = context_of(shape, how, *rc::gen::inRange(1U, 150U), seed);
  RankOptions options;
  options.best_blocks = *rc::gen::inRange(1U, 30U);
  options.sink_blocks = *rc::gen::inRange(0U, 5U);
  options.recent_blocks = *rc::gen::inRange(0U, 20U);
  std::vector<float> queries =
      synthetic::random_queries(*rc::gen::inRange(1U, 12U), shape.k_dim, seed + 1);
  // From flat to beyond what an exponent holds, where zeros tie.
  const float factor = *rc::gen::element(0.0F, 1e-3F, 0.3F, 1.0F, 4.0F, 50.0F, 1e6F, 1e25F);
  for (float& value : queries) value *= factor;
  if (*rc::gen::inRange(0, 5) == 0) {
    queries[seed % queries.size()] = *rc::gen::element(
        std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e-40F);
  }
  expect_the_full_scans_sets(context.view(), queries, options, 0.1F);
  RC_ASSERT(!testing::Test::HasFailure());
}

// Goal: the above is not a comparison of full scans with full scans.
TEST(Best, OrdinaryVectorsNeedNoFullScan) {
  for (const IndexKind kind : {IndexKind::kFp16, IndexKind::kBf16, IndexKind::kKeys}) {
    for (const uint32_t run_tokens : {8U, 4U, 1U}) {
      const Shape shape{128, 8, run_tokens, kind};
      const Context context = context_of(shape, Keys::kNormal, 300, 3);
      RankOptions options;
      options.best_blocks = 20;
      options.sink_blocks = 1;
      options.recent_blocks = 4;
      const std::vector<float> queries = synthetic::random_queries(8, 128, 4);
      EXPECT_GE(expect_the_full_scans_sets(context.view(), queries, options, 0.0884F), 7U)
          << static_cast<int>(kind) << " " << run_tokens;
    }
  }
}

// Goal: a vector that is not finite never wins, and does not send the others to a full scan.
TEST(Best, VectorsThatAreNotFiniteScoreNothing) {
  const Shape shape{64, 8, 8, IndexKind::kFp16};
  Context context = context_of(shape, Keys::kNormal, 100, 3);
  std::vector<float> keys(size_t{64} * 64, 1.0F);
  keys[7] = std::numeric_limits<float>::infinity();
  keys[size_t{9} * 64] = std::numeric_limits<float>::quiet_NaN();
  synthetic::append(context, 8, keys);
  RankOptions options;
  options.best_blocks = 10;
  EXPECT_EQ(expect_the_full_scans_sets(context.view(), synthetic::random_queries(4, 64, 4), options,
                                       0.125F),
            4U);
}

// Goal: bounds are such, of the logit as it is computed, and are not far off.
TEST(Best, BoundsHold) {
  for (const Keys how : {Keys::kNormal, Keys::kHugeOne, Keys::kOneChannel, Keys::kTiny}) {
    for (const bool bfloat : {false, true}) {
      synthetic::Noise noise(5);
      for (uint32_t k_dim = 8; k_dim <= 1024; k_dim += 8 + k_dim / 8 * 8) {
        const std::vector<float> keys = keys_of(how, 16, k_dim, noise);
        const std::vector<float> query = synthetic::random_queries(1, k_dim, k_dim);
        const SketchLayout at{k_dim, 16};
        std::vector<std::byte> sketch(SketchLayout::bytes(k_dim, 16));
        std::vector<int8_t> steps(k_dim);
        SketchQuery of;
        ASSERT_TRUE(sketch_query(query.data(), k_dim, steps.data(), of));
        std::vector<float> logits;
        for (uint32_t run = 0; run < 16; ++run) {
          std::vector<uint16_t> halves(k_dim);
          float dot = 0.0F;
          for (uint32_t d = 0; d < k_dim; ++d) {
            const float key = keys[size_t{run} * k_dim + d];
            halves[d] = bfloat ? float_to_bfloat(key) : float_to_half(key);
            dot += query[d] * (bfloat ? bfloat_to_float(halves[d]) : half_to_float(halves[d]));
          }
          logits.push_back(dot);
          append_sketch(sketch.data(), at, run, reinterpret_cast<const std::byte*>(halves.data()),
                        bfloat);
        }
        float bounds[16];
        SketchJob job;
        job.sketch = sketch.data();
        job.at = at;
        job.run_count = 16;
        job.steps = steps.data();
        job.queries = &of;
        job.query_count = 1;
        job.bounds = bounds;
        job.stride = 16;
        simd_sketch_ops().bounds(job);
        for (uint32_t run = 0; run < 16; ++run) {
          const float bound = bounds[run];
          const float least = least_logit(sketch.data(), at, run, of, bound);
          EXPECT_GE(bound, logits[run]);
          EXPECT_LE(least, logits[run]);
          if (how != Keys::kNormal) continue;
          EXPECT_LE(bound - least, 0.1F * of.length * std::sqrt(static_cast<float>(k_dim)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace skv
