#pragma once

#include <algorithm>

#include "ipc/identity/model.h"
#include "kernels/cut.h"
#include "kernels/rank.h"
#include "kernels/window_tables.h"

namespace skv {

// Rank and cut of one (layer, kv head) for one window: what to read, before it is known where it
// lies. The same for the daemon's data thread and for a client that ranks in its own.
//
// Thread  one at a time; results live in it until the next call. No allocation once it has seen the
//         largest context.
class HeadRanker {
 public:
  // `queries`: fp32 [queries_per_kv_head][k_dim]. `cut`: what follows.
  RankResult rank(const RankView& view,
                  const LayerDescriptor& layer,
                  const float* queries,
                  const WindowShape& shape,
                  const CutOptions& cut) {
    RankQuery query;
    query.queries = queries;
    query.query_count = layer.queries_per_kv_head;
    query.softmax_scale = layer.softmax_scale;
    RankOptions options;
    options.sink_blocks = shape.sink_blocks;
    options.recent_blocks = shape.recent_blocks;
    options.coarse_blocks =
        shape.coarse_blocks > 0 ? shape.coarse_blocks : std::max(4 * shape.budget_blocks, 512U);
    if (shape.scores == Scores::kRelative) options.best_blocks = std::max(cut.budget_blocks, 1U);
    return skv::rank(view, query, options, rank_scratch_);
  }
  ReadSet cut(const RankResult& ranked, const CutOptions& options) {
    return skv::cut(ranked, options, cut_scratch_);
  }

 private:
  RankScratch rank_scratch_;
  CutScratch cut_scratch_;
};

}  // namespace skv
