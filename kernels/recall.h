#pragma once

#include <cstdint>

#include "kernels/head_ranker.h"

namespace skv {

// Of rankings that were sampled: how many, the blocks that a full scan would have chosen, and how
// many of those were chosen. Sinks and recents, which are never chosen, do not count.
struct RecallCounts {
  uint64_t rankings = 0;
  uint64_t wanted = 0;
  uint64_t found = 0;
};

// What the coarse stage costs in quality, seen while it works: once in a while ranks a (layer, kv
// head) again, this time reading the runs of all its sentences, and compares the choices.
//
//   const RankResult ranked = ranker.rank(view, layer, queries, shape, options);
//   const ReadSet read = ranker.cut(ranked, options);
//   if (recall.due(every, ranked)) {
//     add(recall.compare({view, layer, queries, shape, options}, ranked, read));
//   }
//
// Cost    a full scan takes up to 10 times as long as the ranking it is compared with (at 1M
//         tokens; 5 times at 64K), so one in `every` costs 10 / every of ranking at most.
// Thread  one at a time. Its scratch is made at the first comparison and grows to the largest
//         context.
class RecallSampler {
 public:
  // Whether this ranking is to be compared. Of those that left sentences out, one in `every` on
  // average, at irregular distances, so that the heads of a model all get their turn. 0: none.
  bool due(uint32_t every, const RankResult& ranked) {
    if (every == 0 || ranked.full_scan || ranked.best_only) return false;
    if (every != every_) {
      every_ = every;
      left_ = distance();
    }
    if (--left_ > 0) return false;
    left_ = distance();
    return true;
  }

  // What `ranked` was made from.
  struct Ranking {
    const RankView& view;
    const LayerDescriptor& layer;
    const float* queries = nullptr;
    const WindowShape& shape;
    const CutOptions& cut;
  };
  RecallCounts compare(const Ranking& of, const RankResult& ranked, const ReadSet& read);

 private:
  // 1 to 2 * every - 1.
  uint64_t distance() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return 1 + (state_ >> 33) % (2 * uint64_t{every_} - 1);
  }

  uint32_t every_ = 0;
  uint64_t left_ = 0;
  uint64_t state_ = 1;
  HeadRanker full_;
};

}  // namespace skv
