#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/conformance/ranking_backend.h"
#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

namespace skv {

// The suite of the ranking seam: include it in one test program per group of backends and
// INSTANTIATE_TEST_SUITE_P(.., RankingConformance, ..) with them.
class RankingConformance : public testing::TestWithParam<RankBackend> {
 protected:
  void SetUp() override {
    const std::string why = GetParam().prepare(GetParam().target);
    if (!why.empty()) GTEST_SKIP() << GetParam().name << ": " << why;
  }
  void TearDown() override { GetParam().restore(); }

  RankResult rank(const RankView& view, const RankQuery& query, const RankOptions& options) {
    return GetParam().rank(view, query, options, scratch_);
  }
  RankResult reference(const RankView& view, const RankQuery& query, const RankOptions& options) {
    return rank_reference(view, query, options, reference_scratch_);
  }
  ReadSet cut(const RankResult& ranked, const CutOptions& options) {
    return GetParam().cut(ranked, options, cut_scratch_);
  }

  RankScratch scratch_;
  RankScratch reference_scratch_;
  CutScratch cut_scratch_;
  CutScratch reference_cut_scratch_;
};

namespace ranking_conformance {

// A random case: any shape, any options, now and then vectors and queries that are not finite.
struct Case {
  synthetic::Shape shape;
  synthetic::Context context;
  std::vector<float> queries;
  RankQuery query;
  RankOptions options;
};

inline IndexKind random_kind(synthetic::Noise& noise, bool flat_kinds) {
  if (!flat_kinds || noise.below(2) == 0) {
    return noise.below(5) == 0 ? IndexKind::kMean : IndexKind::kMeanSpreadRuns;
  }
  const auto first = static_cast<uint32_t>(IndexKind::kFp16);
  return static_cast<IndexKind>(first +
                                noise.below(static_cast<uint32_t>(kIndexKindLast) - first + 1));
}

inline Case random_case(uint64_t seed, bool flat_kinds) {
  synthetic::Noise noise(seed * 2654435761U + 1);
  Case c;
  c.shape.k_dim = 8 * (1 + noise.below(32));
  c.shape.block_tokens = 4U << noise.below(3);
  do {
    c.shape.run_tokens = 1U << noise.below(5);
  } while (c.shape.block_tokens % c.shape.run_tokens != 0);
  c.shape.kind = random_kind(noise, flat_kinds);
  const uint32_t sentence_choices[] = {0, 1, 2, 7, 15, 16, 17, 33, 64, 65, 90, 130};
  c.context = synthetic::random_context(c.shape, sentence_choices[noise.below(12)], seed);
  const uint32_t query_count = 1 + noise.below(8);
  c.queries = synthetic::random_queries(query_count, c.shape.k_dim, seed + 1);
  // From a flat to a very sharp attention, and sometimes beyond all measure.
  const float factors[] = {0.0F, 0.1F, 1.0F, 1.0F, 5.0F, 40.0F, 1e6F, 1e30F};
  const float factor = factors[noise.below(8)];
  for (float& value : c.queries) value *= factor;
  if (noise.below(6) == 0) {
    const float bad[] = {
        std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), 1e-40F, std::numeric_limits<float>::max()};
    c.queries[noise.below(static_cast<uint32_t>(c.queries.size()))] = bad[noise.below(5)];
  }
  c.options.coarse_blocks = noise.below(3) == 0 ? noise.below(20) : noise.below(400);
  c.options.full_scan_blocks = noise.below(2) == 0 ? 0 : noise.below(600);
  c.options.sink_blocks = noise.below(2) * noise.below(8);
  c.options.recent_blocks = noise.below(2) * noise.below(20);
  c.options.reduction = noise.below(4) == 0 ? RankReduction::kMax : RankReduction::kMean;
  c.query = synthetic::query_of(c.queries, c.shape);
  return c;
}

// Writes `half` over one mean of a blob and appends it as a sentence of its own.
inline void append_spoilt(synthetic::Context& context, uint16_t half, uint32_t channel) {
  std::vector<std::byte> blob = context.blobs.back();
  std::memcpy(blob.data() + size_t{channel} * 2, &half, sizeof half);
  context.pages->append(context.block_counts.back(), blob);
  context.block_counts.push_back(context.block_counts.back());
  context.keys.push_back(context.keys.back());
  context.blobs.push_back(std::move(blob));
}

}  // namespace ranking_conformance

// Goal: every backend returns the reference's bits.
// Method: random shapes and options from fixed seeds, NaN, infinity and overflow among them.
TEST_P(RankingConformance, SameBitsAsTheReference) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const ranking_conformance::Case c =
        ranking_conformance::random_case(seed, GetParam().flat_kinds);
    const RankView view = c.context.view();
    const RankResult got = rank(view, c.query, c.options);
    const RankResult want = reference(view, c.query, c.options);
    ranking_conformance::expect_same(got, want);
    for (const uint32_t budget : {0U, 1U, 13U, 10000U}) {
      for (const CutUnit unit : {CutUnit::kBlock, CutUnit::kSentence}) {
        ranking_conformance::expect_same(cut(got, {unit, budget}),
                                         skv::cut(want, {unit, budget}, reference_cut_scratch_));
      }
    }
    if (HasFailure()) return;
  }
}

// Goal: every dimension and group size, where vector kernels have their seams.
TEST_P(RankingConformance, EveryDimensionAndGroup) {
  for (uint32_t k_dim = 8; k_dim <= 256; k_dim += 8) {
    synthetic::Shape shape;
    shape.k_dim = k_dim;
    const synthetic::Context context = synthetic::random_context(shape, 19, k_dim);
    RankOptions options;
    options.full_scan_blocks = 0;
    options.coarse_blocks = 40;
    for (uint32_t group = 1; group <= 8; ++group) {
      SCOPED_TRACE(testing::Message() << "k_dim " << k_dim << " group " << group);
      const std::vector<float> queries = synthetic::random_queries(group, k_dim, group);
      const RankQuery query = synthetic::query_of(queries, shape);
      ranking_conformance::expect_same(rank(context.view(), query, options),
                                       reference(context.view(), query, options));
      if (HasFailure()) return;
    }
  }
}

// Goal: the same for every flat kind, at the ends of tiles and pages too.
TEST_P(RankingConformance, EveryFlatKind) {
  if (!GetParam().flat_kinds) GTEST_SKIP() << GetParam().name << " refuses flat kinds";
  for (uint32_t kind = static_cast<uint32_t>(IndexKind::kFp16);
       kind <= static_cast<uint32_t>(kIndexKindLast); ++kind) {
    for (const uint32_t k_dim : {8U, 40U, 128U}) {
      for (const uint32_t sentences : {1U, 5U, 67U}) {
        const synthetic::Shape shape{k_dim, 8, 1U << (kind + sentences) % 4,
                                     static_cast<IndexKind>(kind)};
        const synthetic::Context context = synthetic::random_context(shape, sentences, k_dim);
        for (const uint32_t group : {1U, 2U, 3U, 4U, 7U, 8U, 13U}) {
          SCOPED_TRACE(testing::Message() << "kind " << kind << " k_dim " << k_dim << " sentences "
                                          << sentences << " group " << group);
          const std::vector<float> queries = synthetic::random_queries(group, k_dim, group);
          const RankQuery query = synthetic::query_of(queries, shape);
          ranking_conformance::expect_same(rank(context.view(), query, {}),
                                           reference(context.view(), query, {}));
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Goal: a vector that is not finite never wins, and takes nothing from those that are.
TEST_P(RankingConformance, VectorsThatAreNotFiniteScoreNothing) {
  for (const uint16_t bad : {uint16_t{0x7E00}, uint16_t{0x7C00}, uint16_t{0xFC00}}) {
    for (const IndexKind kind : {IndexKind::kMeanSpreadRuns, IndexKind::kMean}) {
      synthetic::Shape shape;
      shape.kind = kind;
      synthetic::Context context = synthetic::random_context(shape, 20, 5);
      const uint32_t good_blocks = context.pages->end_block();
      const std::vector<float> queries = synthetic::random_queries(2, shape.k_dim, 3);
      const RankQuery query = synthetic::query_of(queries, shape);
      for (const uint32_t coarse_blocks : {30U, 100000U}) {
        RankOptions options;
        options.full_scan_blocks = 0;
        options.coarse_blocks = coarse_blocks;
        synthetic::Context spoilt = synthetic::random_context(shape, 20, 5);
        ranking_conformance::append_spoilt(spoilt, bad, 17);
        const RankResult good = reference(context.view(), query, options);
        const RankResult got = rank(spoilt.view(), query, options);
        for (size_t i = 0; i < got.blocks.size(); ++i) {
          if (got.blocks[i] >= good_blocks) {
            EXPECT_EQ(got.scores[i], 0.0F);
          } else {
            EXPECT_EQ(got.scores[i], good.scores[i]);
          }
        }
        const ReadSet set = cut(got, {CutUnit::kBlock, 10});
        for (const uint32_t block : set.blocks) EXPECT_LT(block, good_blocks);
      }
    }
  }
}

// Goal: a query that is not finite scores 0 everywhere and the others go on; if none is left, ties
// by index decide and the whole mass counts as unread.
TEST_P(RankingConformance, QueriesThatAreNotFiniteScoreNothing) {
  const synthetic::Shape shape;
  const synthetic::Context context = synthetic::random_context(shape, 20, 5);
  std::vector<float> queries = synthetic::random_queries(2, shape.k_dim, 3);
  queries[3] = std::numeric_limits<float>::quiet_NaN();
  const RankResult one = rank(context.view(), synthetic::query_of(queries, shape), {});
  EXPECT_EQ(one.normalisers[0].sum, 0.0F);
  EXPECT_GT(one.normalisers[1].sum, 0.0F);
  double total = 0.0;
  for (const float score : one.scores) total += double{score};
  EXPECT_NEAR(total, 0.5, 1e-6);

  queries[shape.k_dim] = std::numeric_limits<float>::infinity();
  const RankResult none = rank(context.view(), synthetic::query_of(queries, shape), {});
  for (const float score : none.scores) EXPECT_EQ(score, 0.0F);
  const ReadSet set = cut(none, {CutUnit::kBlock, 3});
  EXPECT_EQ(ranking_conformance::copy(set.blocks), (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_EQ(set.unread_mass, 1.0F);
}

// Goal: equal scores go by index, whatever the order of work.
TEST_P(RankingConformance, TiesGoByIndex) {
  const synthetic::Shape shape;
  synthetic::Context context = synthetic::random_context(shape, 1, 1);
  const std::vector<float> keys(size_t{40} * shape.k_dim, 0.25F);
  for (int i = 0; i < 100; ++i) synthetic::append(context, 5, keys);
  const std::vector<float> queries = synthetic::random_queries(4, shape.k_dim, 2);
  RankOptions options;
  options.full_scan_blocks = 0;
  options.coarse_blocks = 60;
  options.sink_blocks = context.block_counts[0];
  const RankResult got = rank(context.view(), synthetic::query_of(queries, shape), options);
  ASSERT_EQ(got.sentences.size(), 13U);  // the sink's and 12 of 5 blocks
  for (uint32_t i = 0; i < 13; ++i) EXPECT_EQ(got.sentences[i], i);
  const uint32_t sinks = options.sink_blocks;
  const ReadSet set = cut(got, {CutUnit::kBlock, 7});
  ASSERT_EQ(set.blocks.size(), sinks + 7U);
  for (uint32_t i = 0; i < sinks + 7; ++i) EXPECT_EQ(set.blocks[i], i);
  const ReadSet whole = cut(got, {CutUnit::kSentence, 12});
  ASSERT_EQ(whole.blocks.size(), sinks + 10U);
  for (uint32_t i = 0; i < sinks + 10; ++i) EXPECT_EQ(whole.blocks[i], i);
}

// Goal: the same hits, misses and victims as the reference over a long random life.
TEST_P(RankingConformance, DifferenceAgreesOverALife) {
  std::mt19937_64 engine(11);
  const auto below = [&engine](uint64_t n) { return static_cast<uint32_t>(engine() % n); };
  ResidentSet got(48);
  ResidentSet want(48);
  uint64_t readers_done = 0;
  for (uint64_t version = 1; version <= 400; ++version) {
    std::vector<uint32_t> wanted;
    for (uint32_t block = below(20); wanted.size() < 16; block += 1 + below(8)) {
      wanted.push_back(block);
    }
    const Difference a = GetParam().difference(got, wanted, version, readers_done);
    const Difference b = want.difference(wanted, version, readers_done);
    ASSERT_EQ(ranking_conformance::copy(a.slots), ranking_conformance::copy(b.slots));
    ASSERT_EQ(ranking_conformance::copy(a.misses), ranking_conformance::copy(b.misses));
    ASSERT_EQ(ranking_conformance::copy(a.victims), ranking_conformance::copy(b.victims));
    ASSERT_EQ(a.hit_count, b.hit_count);
    std::vector<uint32_t> slots = ranking_conformance::copy(b.slots);
    const std::vector<uint32_t> victims = ranking_conformance::copy(b.victims);
    const std::vector<uint32_t> misses = ranking_conformance::copy(b.misses);
    for (size_t i = 0; i < victims.size(); ++i) {
      for (ResidentSet* set : {&got, &want}) {
        set->assign(victims[i], wanted[misses[i]]);
        set->arrived(victims[i]);
      }
      slots[misses[i]] = victims[i];
    }
    got.publish(version, slots);
    want.publish(version, slots);
    if (below(3) != 0) readers_done = version - below(3) % version;
  }
}

}  // namespace skv
