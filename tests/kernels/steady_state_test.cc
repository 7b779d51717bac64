#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "kernels/cut.h"
#include "kernels/difference.h"
#include "kernels/rank.h"
#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

namespace {
std::atomic<uint64_t> allocation_count{0};
}  // namespace

void* operator new(std::size_t bytes) {
  allocation_count.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

// Goal: where only the best blocks are asked for, neither a list that grows nor a row that has to
// be scanned whole after all allocates.
TEST(SteadyState, TheBestBlocksAllocateNothing) {
  for (const IndexKind kind : {IndexKind::kFp16, IndexKind::kBf16, IndexKind::kKeys}) {
    Shape shape;
    shape.kind = kind;
    const Context context = synthetic::random_context(shape, 200, 1);
    const RankView view = context.view();
    RankScratch scratch;
    RankOptions options;
    options.best_blocks = 32;
    uint32_t whole = 0;
    uint64_t before = 0;
    for (uint64_t step = 1; step <= 20; ++step) {
      std::vector<float> queries = synthetic::random_queries(3, shape.k_dim, step);
      // Every row in its turn is one that no bound is certain of; in the first step none is.
      if (step % 2 == 0) queries[step / 2 % 3 * shape.k_dim] = 1e30F;
      if (step > 1) before = allocation_count.load();
      const auto results = rank_rows(view, {queries.data(), 1, 0.125F, 3}, options, scratch);
      if (step > 1) {
        EXPECT_EQ(allocation_count.load(), before);
      }
      for (const RankResult& result : results) whole += result.full_scan ? 1 : 0;
      if (step == 1) {
        EXPECT_LT(whole, 3U);
      }
    }
    EXPECT_GE(whole, 10U);
  }
}

// Goal: a decode step allocates nothing, for one row or several, whatever the index.
// Method: count operator new over rank, cut and difference, after one round and reserve.
TEST(SteadyState, NothingIsAllocated) {
  for (uint32_t kind = 0; kind <= static_cast<uint32_t>(kIndexKindLast); ++kind) {
    for (const uint32_t rows : {1U, 3U}) {
      SCOPED_TRACE(testing::Message() << "kind " << kind << " rows " << rows);
      Shape shape;
      shape.kind = static_cast<IndexKind>(kind);
      const Context context = synthetic::random_context(shape, 200, 1);
      const RankView view = context.view();
      RankScratch scratch;
      CutScratch cut_scratch;
      ResidentSet resident(160);
      std::vector<uint32_t> slots(512);
      RankOptions options;
      options.coarse_blocks = 256;
      options.full_scan_blocks = 0;
      options.sink_blocks = 2;
      options.recent_blocks = 4;
      scratch.reserve(200, view.end_block, view.end_block * 4, 4, shape.k_dim, rows);
      uint64_t before = 0;
      for (uint64_t version = 1; version <= 20; ++version) {
        const std::vector<float> queries =
            synthetic::random_queries(4 * rows, shape.k_dim, version);
        if (version > 1) before = allocation_count.load();
        RankQuery query{queries.data(), 4, 0.125F, rows};
        const RankResult ranked = rank_rows(view, query, options, scratch)[rows - 1];
        const CutUnit unit = version % 2 == 0 ? CutUnit::kBlock : CutUnit::kSentence;
        const ReadSet set = cut(ranked, {unit, 64, version % 3 == 0 ? 0.5F : 0.0F}, cut_scratch);
        const Difference difference = resident.difference(set.blocks, version, version - 1);
        std::copy(difference.slots.begin(), difference.slots.end(), slots.begin());
        for (size_t i = 0; i < difference.victims.size(); ++i) {
          resident.assign(difference.victims[i], set.blocks[difference.misses[i]]);
          resident.arrived(difference.victims[i]);
          slots[difference.misses[i]] = difference.victims[i];
        }
        resident.publish(version, {slots.data(), set.blocks.size()});
        if (version > 1) {
          EXPECT_EQ(allocation_count.load(), before);
        }
      }
    }
  }
}

// Goal: nor where only the best are asked for, with more or fewer candidates, or none that is
// certain.
TEST(SteadyState, NothingIsAllocatedForTheBest) {
  const Shape shape{64, 8, 2, IndexKind::kFp16};
  const Context context = synthetic::random_context(shape, 200, 1);
  RankScratch scratch;
  CutScratch cut_scratch;
  RankOptions options;
  options.best_blocks = 12;
  options.recent_blocks = 4;
  uint64_t before = 0;
  for (uint64_t round = 0; round <= 20; ++round) {
    std::vector<float> queries = synthetic::random_queries(5, shape.k_dim, round);
    for (float& value : queries) value *= static_cast<float>(round % 7) * 0.5F;
    queries[3] = round % 3 == 0 ? std::nanf("") : 1.0F;
    if (round > 0) before = allocation_count.load();
    const auto results =
        rank_rows(context.view(), {queries.data(), 1, 0.125F, 5}, options, scratch);
    for (const RankResult& result : results) cut(result, {CutUnit::kBlock, 12}, cut_scratch);
    if (round > 0) {
      EXPECT_EQ(allocation_count.load(), before);
    }
  }
}

#if defined(__x86_64__)
// Goal: a caller that flushes subnormals or rounds otherwise gets the same bits, and its own mode
// back.
TEST(SteadyState, TheCallersFloatingPointModeDoesNotMatter) {
  const Shape shape{40, 8, 2};
  const Context context = synthetic::random_context(shape, 90, 1);
  std::vector<float> queries = synthetic::random_queries(4, shape.k_dim, 2);
  for (size_t i = 0; i < queries.size(); i += 3) queries[i] = 1e-39F;  // subnormal
  const RankQuery query = synthetic::query_of(queries, shape);
  RankOptions options;
  options.coarse_blocks = 64;
  options.full_scan_blocks = 0;
  RankScratch scratch;
  RankScratch other;
  const RankResult want = rank(context.view(), query, options, scratch);
  const unsigned saved = _mm_getcsr();
  for (const unsigned mode : {0x9FC0U, 0x7F80U, 0x5F80U, 0x3F80U}) {  // FTZ and DAZ; roundings
    for (auto* function : {&rank, &rank_reference}) {
      _mm_setcsr(mode);
      const RankResult got = function(context.view(), query, options, other);
      const unsigned after = _mm_getcsr();
      const std::vector<std::byte> blob =
          synthetic::blob_of(shape, context.block_counts[0], context.keys[0]);
      _mm_setcsr(saved);
      EXPECT_EQ(after, mode);
      EXPECT_EQ(blob, context.blobs[0]);
      ranking_conformance::expect_same(got, want);
    }
  }
}
#endif

}  // namespace
}  // namespace skv
