#include "kernels/recall.h"

#include <algorithm>
#include <limits>

namespace skv {

RecallCounts RecallSampler::compare(const Ranking& of,
                                    const RankResult& ranked,
                                    const ReadSet& read) {
  WindowShape whole;
  whole.sink_blocks = of.shape.sink_blocks;
  whole.recent_blocks = of.shape.recent_blocks;
  whole.coarse_blocks = std::numeric_limits<uint32_t>::max();
  const ReadSet all = full_.cut(full_.rank(of.view, of.layer, of.queries, whole, of.cut), of.cut);
  RecallCounts counts{1, 0, 0};
  const uint32_t* chosen = read.blocks.data();
  const uint32_t* const chosen_end = chosen + read.blocks.size();
  for (const uint32_t block : all.blocks) {
    if (block < ranked.sink_end || block >= ranked.recent_first) continue;
    chosen = std::lower_bound(chosen, chosen_end, block);
    ++counts.wanted;
    counts.found += chosen != chosen_end && *chosen == block ? 1 : 0;
  }
  return counts;
}

}  // namespace skv
