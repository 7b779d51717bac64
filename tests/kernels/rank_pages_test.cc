#include "kernels/rank_pages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/conformance/ranking_compare.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

using synthetic::Context;
using synthetic::Shape;

// The record of one head, put together again from the pages; its spread codes as square_step has
// them.
std::vector<std::byte> record_from(const RankView& view, uint32_t sentence) {
  const uint32_t d_count = view.k_dim;
  const RankSentence& at = view.sentences[sentence];
  const uint32_t runs = run_count(at.block_count, view.block_tokens, view.run_tokens);
  const VectorRecordLayout layout = VectorRecordLayout::of(view.kind, d_count, runs);
  const std::byte* area = view.pages[sentence / 64] + view.area_offset;
  const std::byte* tile =
      area + sentence % 64 / 16 * RankAreaLayout::coarse_tile_bytes(view.kind, d_count);
  const uint32_t lane = sentence % 16;
  std::vector<std::byte> record(layout.bytes);
  for (uint32_t d = 0; d < d_count; ++d) {
    std::memcpy(&record[size_t{2} * d], tile + (d * 16 + lane) * 2, 2);
    if (view.kind == IndexKind::kMean) continue;
    record[layout.spread_codes + d] = tile[RankAreaLayout::square(d_count, d, lane)];
  }
  if (view.kind == IndexKind::kMean) return record;
  std::memcpy(&record[layout.spread_m], tile + RankAreaLayout::spread_m(d_count) + lane * 2, 2);
  std::memcpy(&record[layout.scale_m], tile + RankAreaLayout::scale_m(d_count) + lane * 2, 2);
  const std::byte* fine =
      area + RankAreaLayout::fine(view.kind, d_count) + size_t{d_count} * at.fine_unit;
  std::memcpy(&record[layout.scale_codes], fine, d_count);
  for (uint32_t run = 0; run < stored_runs(runs); ++run) {
    const uint32_t first_run = run / 16 * 16;
    const uint32_t row_bytes = VectorRecordLayout::tile_width(runs, first_run) / 2;
    for (uint32_t d = 0; d < d_count; ++d) {
      const ResidualPlace place = residual_place(d_count, run, d);
      const auto value = static_cast<uint32_t>(fine[d_count + place.byte]) >> place.shift & 15U;
      const uint32_t nibble = (value + 8) % 16;  // two's complement again
      record[layout.tiles + VectorRecordLayout::tile_offset(d_count, first_run) + d * row_bytes +
             run % 16 / 2] |= static_cast<std::byte>(nibble << (run % 2 * 4));
    }
  }
  return record;
}

// Goal: what was appended is there, whole, for every layer and head, and never moves.
TEST(VectorPages, HoldWhatWasAppendedAndDoNotMoveIt) {
  for (const IndexKind kind : {IndexKind::kMeanSpreadRuns, IndexKind::kMean}) {
    const Shape shape{24, 8, 2, kind, 2, 3};
    ModelDescriptor model = synthetic::model_of(shape);
    model.layers[1].k_dim = 40;
    model.layers[1].kv_heads = 1;
    const VectorsLayout vectors(model, synthetic::index_of(shape));
    VectorPages pages(std::make_shared<RankPageLayout>(vectors));
    synthetic::Noise noise(1);
    std::vector<std::vector<std::byte>> blobs;
    std::vector<const std::byte*> bases;
    uint32_t end_block = 0;
    for (uint32_t i = 0; i < 150; ++i) {
      const uint32_t blocks = 4 + noise.below(5);
      std::vector<std::byte> blob(vectors.blob_bytes(blocks));
      for (std::byte& byte : blob) byte = static_cast<std::byte>(noise.next());
      pages.append(blocks, blob);
      blobs.push_back(std::move(blob));
      EXPECT_EQ(pages.sentence(i), (SentenceSpan{end_block, blocks}));
      end_block += blocks;
      const RankView view = pages.view(0, 0);
      ASSERT_EQ(view.sentence_count, i + 1);
      ASSERT_EQ(view.end_block, end_block);
      if (i % 64 == 0) bases.push_back(view.pages[i / 64]);
      for (size_t page = 0; page < bases.size(); ++page) ASSERT_EQ(view.pages[page], bases[page]);
    }
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t head = 0; head < vectors.kv_heads(layer); ++head) {
        const RankView view = pages.view(layer, head);
        for (uint32_t i = 0; i < 150; ++i) {
          const uint32_t blocks = view.sentences[i].block_count;
          const std::vector<std::byte> record = record_from(view, i);
          const VectorRecordLayout layout = vectors.record(layer, blocks);
          const std::byte* blob = blobs[i].data() + vectors.offset(layer, head, blocks);
          std::vector<std::byte> want(blob, blob + layout.bytes);
          for (uint32_t at = layout.spread_codes; at < layout.scale_codes; ++at) {
            const auto code = static_cast<uint8_t>(want[at]);
            want[at] = static_cast<std::byte>(
                code == 0 ? 0.0 : std::nearbyint(255.0 * std::exp2((code - 255) / 8.0)));
          }
          ASSERT_EQ(record, want);
        }
      }
    }
  }
}

// Goal: a context that takes another's full pages ranks as if it had appended everything itself,
// and both grow on without touching each other.
TEST(VectorPages, FullPagesAreShared) {
  const Shape shape{32, 8, 2};
  const Context first = synthetic::random_context(shape, 140, 3);
  ASSERT_EQ(first.pages->full_page_count(), 2U);
  const std::vector<float> queries = synthetic::random_queries(4, 32, 1);
  const RankQuery query = synthetic::query_of(queries, shape);
  RankOptions options;
  options.full_scan_blocks = 0;
  options.coarse_blocks = 100;
  RankScratch scratch_a;
  RankScratch scratch_b;

  std::unique_ptr<VectorPages> second = synthetic::empty_pages(shape);
  second->adopt(first.pages->full_page(0));
  second->adopt(first.pages->full_page(1));
  EXPECT_EQ(second->sentence_count(), 128U);
  for (uint32_t i = 128; i < 140; ++i) second->append(first.block_counts[i], first.blobs[i]);
  ranking_conformance::expect_same(rank(second->view(0, 0), query, options, scratch_a),
                                   rank(first.view(), query, options, scratch_b));

  const RankResult before = rank(first.view(), query, options, scratch_a);
  for (uint32_t i = 0; i < 90; ++i) second->append(first.block_counts[i], first.blobs[i]);
  ranking_conformance::expect_same(rank(first.view(), query, options, scratch_b), before);
  EXPECT_EQ(second->full_page_count(), 3U);

  // The pages outlive the context they came from.
  std::unique_ptr<VectorPages> third = synthetic::empty_pages(shape);
  third->adopt(second->full_page(2));
  second.reset();
  EXPECT_EQ(third->sentence_count(), 64U);
  EXPECT_EQ(rank(third->view(0, 0), query, options, scratch_a).end_block, third->end_block());
}

}  // namespace
}  // namespace skv
