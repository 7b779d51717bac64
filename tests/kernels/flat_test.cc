#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/flat_pages.h"
#include "kernels/rank.h"
#include "kernels/vectors.h"
#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

constexpr IndexKind kFlatKinds[] = {IndexKind::kFp16, IndexKind::kBf16,   IndexKind::kInt8,
                                    IndexKind::kInt4, IndexKind::kMinMax, IndexKind::kBox,
                                    IndexKind::kBall, IndexKind::kKeys};
double half_at(std::span<const std::byte> from, size_t index) {
  return double{half_to_float(static_cast<uint16_t>(
      static_cast<uint32_t>(from[2 * index]) | static_cast<uint32_t>(from[2 * index + 1]) << 8))};
}

// Logit (not scaled) of one run as the text of ipc/layout/vectors.h has it, and nothing else.
double logit_of(IndexKind kind, uint32_t k_dim, std::span<const std::byte> run, const float* q) {
  double dot = 0.0;
  double other = 0.0;
  for (uint32_t d = 0; d < k_dim; ++d) {
    const auto query = double{q[d]};
    switch (kind) {
      case IndexKind::kBf16: {
        const auto bits =
            static_cast<uint32_t>(run[2 * d]) << 16 | static_cast<uint32_t>(run[2 * d + 1]) << 24;
        dot += query * double{std::bit_cast<float>(bits)};
        break;
      }
      case IndexKind::kInt8:
        dot += query * half_at(run, 0) * static_cast<int8_t>(run[2 + d]);
        break;
      case IndexKind::kInt4: {
        const int nibble = static_cast<int>(run[2 + d / 2]) >> (d % 2 * 4) & 15;
        dot += query * half_at(run, 0) * (nibble < 8 ? nibble : nibble - 16);
        break;
      }
      case IndexKind::kMinMax:
        dot += std::max(query * half_at(run, d), query * half_at(run, k_dim + d));
        break;
      case IndexKind::kBox:
        dot += query * half_at(run, d);
        other +=
            std::fabs(query) * half_at(run, k_dim) * static_cast<uint8_t>(run[2 * k_dim + 2 + d]);
        break;
      case IndexKind::kBall:
        dot += query * half_at(run, d);
        other += query * query;
        break;
      default:
        dot += query * half_at(run, d);
    }
  }
  if (kind == IndexKind::kBall) return dot + std::sqrt(other) * half_at(run, k_dim);
  return dot + other;
}

// A query as kInt8 and kInt4 take it: its largest channel is 127 steps.
std::vector<float> in_steps(std::vector<float> query) {
  float largest = 0.0F;
  for (const float value : query) largest = std::max(largest, std::fabs(value));
  for (float& value : query) value = std::nearbyint(value * 127.0F / largest) * largest / 127.0F;
  return query;
}

// A query as kBf16 takes it: in base 2, its channels are rounded.
std::vector<float> in_bfloats(std::vector<float> query, double softmax_scale) {
  const auto factor = static_cast<float>(softmax_scale * 1.4426950408889634);
  for (float& value : query) value = bfloat_to_float(float_to_bfloat(value * factor)) / factor;
  return query;
}

synthetic::OracleScores estimated(const Context& context, std::vector<float> queries) {
  const Shape& shape = context.shape;
  const double scale = 1.0 / std::sqrt(double{static_cast<float>(shape.k_dim)});
  if (shape.kind == IndexKind::kBf16) queries = in_bfloats(queries, scale);
  const bool steps_only = shape.kind == IndexKind::kInt8 || shape.kind == IndexKind::kInt4;
  for (size_t q = 0; steps_only && q < queries.size(); q += shape.k_dim) {
    const auto begin = queries.begin() + static_cast<std::ptrdiff_t>(q);
    const std::vector<float> steps = in_steps({begin, begin + shape.k_dim});
    std::copy(steps.begin(), steps.end(), begin);
  }
  const uint32_t run_bytes = flat_run_bytes(shape.kind, shape.k_dim);
  const uint32_t per_block = shape.block_tokens / shape.run_tokens;
  std::vector<std::vector<double>> masses(queries.size() / shape.k_dim);
  for (size_t q = 0; q < masses.size(); ++q) {
    for (uint32_t s = 0; s < context.sentence_count(); ++s) {
      for (uint32_t block = 0; block < context.block_counts[s]; ++block) {
        double mass = 0.0;
        for (uint32_t i = 0; i < per_block; ++i) {
          const auto run = std::span(context.blobs[s])
                               .subspan(size_t{block * per_block + i} * run_bytes, run_bytes);
          mass += shape.run_tokens * std::exp(scale * logit_of(shape.kind, shape.k_dim, run,
                                                               &queries[q * shape.k_dim]));
        }
        masses[q].push_back(mass);
      }
    }
  }
  return synthetic::shares_of(masses);
}

// Goal: every kind estimates what its bytes say.
// Method: an oracle in double precision over the stored blobs, queries in steps for kInt8 and
// kInt4, in bf16 for kBf16.
TEST(Flat, ScoresAreTheEstimateOfTheStoredBytes) {
  for (const IndexKind kind : kFlatKinds) {
    for (const uint32_t run_tokens : {1U, 2U, 8U}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(kind) << " run " << run_tokens);
      const Shape shape{72, 8, run_tokens, kind};
      const Context context = synthetic::random_context(shape, 70, 4);
      const std::vector<float> queries = synthetic::random_queries(3, shape.k_dim, 9);
      RankScratch scratch;
      const RankResult got = rank(context.view(), synthetic::query_of(queries, shape), {}, scratch);
      const synthetic::OracleScores want = estimated(context, queries);
      ASSERT_EQ(got.scores.size(), want.blocks.size());
      double total = 0.0;
      for (size_t i = 0; i < want.blocks.size(); ++i) {
        ASSERT_NEAR(got.scores[i], want.blocks[i], 2e-6 + 5e-3 * want.blocks[i]) << i;
        total += double{got.scores[i]};
      }
      EXPECT_NEAR(total, 1.0, 1e-4);
      EXPECT_TRUE(got.full_scan);
      EXPECT_EQ(got.skipped_mass, 0.0F);
    }
  }
}

// Goal: fp16, bf16 and int8 of single tokens are attention itself, nearly.
TEST(Flat, SingleTokensAreAttention) {
  const double bands[] = {2e-3, 2e-2, 6e-2};
  const IndexKind kinds[] = {IndexKind::kFp16, IndexKind::kBf16, IndexKind::kInt8};
  for (size_t i = 0; i < 3; ++i) {
    const Shape shape{64, 8, 1, kinds[i]};
    const Context context = synthetic::random_context(shape, 30, 2);
    const std::vector<float> queries = synthetic::random_queries(2, shape.k_dim, 9);
    RankScratch scratch;
    const RankResult got = rank(context.view(), synthetic::query_of(queries, shape), {}, scratch);
    const synthetic::OracleScores want = synthetic::true_attention(context, queries, 0.125);
    double error = 0.0;
    for (size_t b = 0; b < want.blocks.size(); ++b) {
      error += std::fabs(double{got.scores[b]} - want.blocks[b]);
    }
    EXPECT_LT(error, bands[i]) << i;
  }
}

// Goal: what a query loses where it is rounded is what its keys lost, no more.
// Method: logits of stored keys with the rounded query and with the given one, beside those of the
// keys as they were, all in double precision.
TEST(Flat, RoundedQueriesLoseAsMuchAsRoundedKeys) {
  for (const IndexKind kind : {IndexKind::kBf16, IndexKind::kInt8}) {
    const Shape shape{128, 8, 1, kind};
    const Context context = synthetic::random_context(shape, 30, 2);
    const uint32_t bytes = flat_run_bytes(kind, 128);
    double by_query = 0.0;
    double by_keys = 0.0;
    for (uint64_t seed = 0; seed < 100; ++seed) {
      const std::vector<float> query = synthetic::random_queries(1, 128, seed);
      const std::vector<float> rounded =
          kind == IndexKind::kBf16 ? in_bfloats(query, 0.0884) : in_steps(query);
      for (uint32_t s = 0; s < context.sentence_count(); ++s) {
        for (uint32_t token = 0; token < context.block_counts[s] * 8; ++token) {
          const auto run = std::span(context.blobs[s]).subspan(size_t{token} * bytes, bytes);
          const double kept = logit_of(kind, 128, run, query.data());
          double exact = 0.0;
          for (uint32_t d = 0; d < 128; ++d) {
            exact += double{query[d]} * double{context.keys[s][size_t{token} * 128 + d]};
          }
          by_keys += (kept - exact) * (kept - exact);
          const double taken = logit_of(kind, 128, run, rounded.data());
          by_query += (taken - kept) * (taken - kept);
        }
      }
    }
    EXPECT_GT(by_query, 0.0);
    EXPECT_LT(std::sqrt(by_query / by_keys), 1.1) << static_cast<int>(kind);
  }
}

// Goal: a bound is one: no token's logit is above its run's, whatever the query.
TEST(Flat, BoundsHold) {
  for (const IndexKind kind : {IndexKind::kMinMax, IndexKind::kBox, IndexKind::kBall}) {
    for (const uint32_t run_tokens : {2U, 4U, 8U}) {
      const Shape shape{40, 8, run_tokens, kind};
      const Context context = synthetic::random_context(shape, 9, run_tokens);
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const std::vector<float> query = synthetic::random_queries(1, shape.k_dim, seed);
        for (uint32_t s = 0; s < context.sentence_count(); ++s) {
          const uint32_t tokens = context.block_counts[s] * 8;
          for (uint32_t t = 0; t < tokens; ++t) {
            double logit = 0.0;
            for (uint32_t d = 0; d < shape.k_dim; ++d) {
              logit += double{query[d]} * double{context.keys[s][size_t{t} * shape.k_dim + d]};
            }
            const uint32_t bytes = flat_run_bytes(kind, shape.k_dim);
            const auto run =
                std::span(context.blobs[s]).subspan(size_t{t / run_tokens} * bytes, bytes);
            ASSERT_GE(logit_of(kind, shape.k_dim, run, query.data()), logit - 1e-9);
          }
        }
      }
    }
  }
}

// Goal: what stands for a run of kKeys is one of its keys, the one nearest to their mean.
TEST(Flat, KeysAreKeys) {
  const Shape shape{16, 8, 4, IndexKind::kKeys};
  const Context context = synthetic::random_context(shape, 4, 5);
  for (uint32_t s = 0; s < 4; ++s) {
    for (uint32_t run = 0; run < context.block_counts[s] * 2; ++run) {
      const float* keys = &context.keys[s][size_t{run} * 4 * 16];
      double best = std::numeric_limits<double>::max();
      uint32_t nearest = 0;
      for (uint32_t t = 0; t < 4; ++t) {
        double distance = 0.0;
        for (uint32_t d = 0; d < 16; ++d) {
          const double mean = (double{keys[d]} + double{keys[16 + d]} + double{keys[32 + d]} +
                               double{keys[48 + d]}) /
                              4.0;
          distance += (double{keys[t * 16 + d]} - mean) * (double{keys[t * 16 + d]} - mean);
        }
        if (distance < best) nearest = t;
        best = std::min(best, distance);
      }
      const auto stored = std::span(context.blobs[s]).subspan(size_t{run} * 32, 32);
      for (uint32_t d = 0; d < 16; ++d) {
        EXPECT_EQ(half_at(stored, d), double{half_to_float(float_to_half(keys[nearest * 16 + d]))});
      }
    }
  }
}

// Goal: a key that is not finite takes its run out, and nothing else.
TEST(Flat, KeysThatAreNotFiniteTakeTheirRunOut) {
  for (const IndexKind kind : kFlatKinds) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      SCOPED_TRACE(static_cast<int>(kind));
      const Shape shape{24, 8, 8, kind};
      Context context = synthetic::random_context(shape, 3, 5);
      std::vector<float> keys = context.keys[1];
      keys[size_t{9} * 24 + 7] = bad;  // token 9: run 1
      synthetic::append(context, context.block_counts[1], keys);
      const std::vector<float> queries = synthetic::random_queries(2, 24, 3);
      RankScratch scratch;
      const RankResult got = rank(context.view(), synthetic::query_of(queries, shape), {}, scratch);
      const uint32_t first = context.pages->sentence(3).first_block;
      for (uint32_t block = 0; block < got.end_block; ++block) {
        EXPECT_EQ(got.scores[block] == 0.0F, block == first + 1) << block;
      }
      const VectorsLayout layout(synthetic::model_of(shape), synthetic::index_of(shape));
      EXPECT_FALSE(check_blob(layout, context.block_counts[3], context.blobs[3]).ok());
      EXPECT_TRUE(check_blob(layout, context.block_counts[1], context.blobs[1]).ok());
    }
  }
}

// Goal: a masked token leaves no trace; a run without tokens scores 0.
TEST(Flat, MaskedTokensDoNotCount) {
  for (const IndexKind kind : kFlatKinds) {
    const Shape shape{16, 8, 4, kind};
    const VectorsLayout layout(synthetic::model_of(shape), synthetic::index_of(shape));
    std::vector<float> keys = synthetic::random_queries(32, 16, 1);
    std::vector<uint8_t> mask(32, 1);
    mask[1] = 0;
    for (uint32_t token = 8; token < 12; ++token) mask[token] = 0;
    const auto derive = [&] {
      std::vector<std::byte> record(layout.record(0, 4).bytes);
      KeyRows rows{
          reinterpret_cast<const std::byte*>(keys.data()), 512, 64, BodyDtype::kFp32, 4, 8, 16};
      DeriveScratch scratch;
      derive_record(rows, layout.index(), mask.data(), record, scratch);
      return record;
    };
    const std::vector<std::byte> before = derive();
    for (uint32_t d = 0; d < 16; ++d) keys[16 + d] = keys[size_t{9} * 16 + d] = 1e6F;
    EXPECT_EQ(derive(), before);
    const Result<void> checked = check_blob(layout, 4, before);
    ASSERT_FALSE(checked.ok());
    EXPECT_NE(checked.error().message.find("run 2,"), std::string::npos);
  }
}

// Goal: a client's blob is refused by name.
TEST(Flat, BadBlobsAreRefused) {
  const auto message_with = [](IndexKind kind, uint32_t at, uint16_t half) {
    const Shape shape{16, 8, 4, kind};
    const VectorsLayout layout(synthetic::model_of(shape), synthetic::index_of(shape));
    std::vector<std::byte> blob =
        synthetic::blob_of(shape, 4, synthetic::random_queries(32, 16, 1));
    std::memcpy(blob.data() + flat_run_bytes(kind, 16) + at, &half, 2);
    const Result<void> result = check_blob(layout, 4, blob);
    return result.ok() ? std::string("ok") : result.error().message;
  };
  const std::string run = "vectors: layer 0, kv head 0, run 1, ";
  EXPECT_EQ(message_with(IndexKind::kFp16, 6, 0x7C00), run + "value 3 is not finite");
  EXPECT_EQ(message_with(IndexKind::kBf16, 6, 0x7F80), run + "value 3 is not finite");
  EXPECT_EQ(message_with(IndexKind::kBf16, 6, 0x7C00), "ok");
  EXPECT_EQ(message_with(IndexKind::kInt8, 0, 0xBC00), run + "scale: not a finite number >= 0");
  EXPECT_NE(message_with(IndexKind::kInt8, 4, 0x0180).find("at byte 4"), std::string::npos);
  EXPECT_NE(message_with(IndexKind::kInt4, 4, 0x8001).find("at byte 5"), std::string::npos);
  EXPECT_EQ(message_with(IndexKind::kMinMax, 4, 0x7BFF), run + "channel 2: smallest above largest");
  EXPECT_EQ(message_with(IndexKind::kBox, 32, 0xFC00), run + "scale: not a finite number >= 0");
  EXPECT_EQ(message_with(IndexKind::kBall, 30, 0x7E00), run + "value 15 is not finite");
}

// Goal: rows that share one pass get what each gets alone, bit by bit.
TEST(Rows, AreRankedAsIfAlone) {
  for (const IndexKind kind :
       {IndexKind::kMeanSpreadRuns, IndexKind::kMean, IndexKind::kFp16, IndexKind::kInt4}) {
    const Shape shape{48, 8, 2, kind};
    const Context context = synthetic::random_context(shape, 150, 3);
    for (const uint32_t group : {1U, 3U, 4U}) {
      const uint32_t rows = 5;
      const std::vector<float> queries = synthetic::random_queries(rows * group, 48, group);
      RankOptions options;
      options.full_scan_blocks = 0;
      options.coarse_blocks = 100;
      options.recent_blocks = 9;
      RankScratch scratch;
      RankScratch alone;
      RankQuery query{queries.data(), group, 0.2F, rows};
      const std::span<const RankResult> together =
          rank_rows(context.view(), query, options, scratch);
      ASSERT_EQ(together.size(), rows);
      for (uint32_t row = 0; row < rows; ++row) {
        query.row_count = 1;
        query.queries = &queries[size_t{row} * group * 48];
        ranking_conformance::expect_same(together[row],
                                         rank(context.view(), query, options, alone));
      }
    }
  }
}

// Goal: pages of flat kinds never move, and what is behind their last run is not counted.
TEST(Flat, PagesGrowInPlace) {
  for (const IndexKind kind : kFlatKinds) {
    const Shape shape{16, 4, 4, kind};
    Context context = synthetic::random_context(shape, 1, 8);
    const std::vector<float> queries = synthetic::random_queries(2, 16, 1);
    for (uint32_t i = 1; i < 140; ++i) {
      const std::byte* base = context.view().pages[0];
      synthetic::append(context, 8 + i % 9, synthetic::random_queries((8 + i % 9) * 4, 16, i));
      ASSERT_EQ(context.view().pages[0], base);
      RankScratch scratch;
      const RankResult got = rank(context.view(), synthetic::query_of(queries, shape), {}, scratch);
      ASSERT_EQ(got.scores.size(), context.pages->end_block());
      double total = 0.0;
      for (const float score : got.scores) total += double{score};
      ASSERT_NEAR(total, 1.0, 1e-5);
      ASSERT_EQ(got.block_sentences.back(), i);
    }
  }
}

}  // namespace
}  // namespace skv
