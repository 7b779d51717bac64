#include "kernels/block_reader.h"

#include <algorithm>

#include "kernels/flat_pages.h"

namespace skv {

void read_blocks(const RankCall& call,
                 const float* query,
                 std::span<const uint32_t> blocks,
                 float* to) {
  constexpr uint32_t kAtOnce = 256;
  const RankView& view = call.view;
  const uint32_t runs = runs_per_block(view);
  const std::byte* pieces[kAtOnce];
  float logits[(kAtOnce + 1) * kPieceRuns];
  struct Part {  // of a block in one piece
    uint32_t piece;
    uint32_t lane;
  };
  Part parts[kAtOnce];
  const uint32_t piece_bytes = FlatAreaLayout::piece_bytes(view.k_dim);
  const uint32_t part_runs = std::min(runs, kPieceRuns);
  uint32_t part_count = 0;
  float* const spread = first_line(call.scratch.query_spread);
  spread_query(view.kind, query, view.k_dim, spread);
  PieceJob job;
  job.pieces = pieces;
  job.kind = view.kind;
  job.k_dim = view.k_dim;
  job.query = query;
  job.spread = spread;
  job.logits = logits;
  const auto flush = [&] {
    call.sketch_ops.logits(job);
    for (uint32_t i = 0; i < part_count; ++i, to += part_runs) {
      copy_runs(logits + size_t{parts[i].piece} * kPieceRuns + parts[i].lane, part_runs, to);
    }
    job.count = 0;
    part_count = 0;
  };
  uint32_t page = 0;
  for (const uint32_t block : blocks) {
    page = page_of(view, block, page);
    const uint32_t first_run =
        (block - view.sentences[size_t{page} * kPageSentences].first_block) * runs;
    for (uint32_t run = first_run; run < first_run + runs; run += part_runs) {
      const std::byte* piece =
          view.pages[page] + view.area_offset + size_t{run / kPieceRuns} * piece_bytes;
      if (part_count == kAtOnce) flush();
      if (job.count == 0 || pieces[job.count - 1] != piece) pieces[job.count++] = piece;
      parts[part_count++] = {static_cast<uint32_t>(job.count) - 1, run % kPieceRuns};
    }
  }
  flush();
}

}  // namespace skv
