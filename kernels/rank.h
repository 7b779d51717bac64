#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/rank_pages.h"
#include "kernels/select.h"

namespace skv {

// Estimates, for one (layer, kv head) and the queries of its group, which share of the attention
// over all closed blocks falls on each block. The exact definition, operation by operation, is in
// kernels/README.md; every backend returns the same bits.
//
// Shape   queries [row][query_count][k_dim] fp32, row-major: rows that share a context (sequences
//         of a batch, draft tokens) are ranked in one pass over the vectors, each as if alone.
// Units   blocks of the context's grid; scores are shares of attention mass, in [0, 1].
// Thread  any; a RankScratch belongs to one call at a time.
// Owns    nothing. Results live in the scratch until its next use.
// Errors  none: NaN and infinity, in queries or vectors, score 0.
struct RankQuery {
  const float* queries = nullptr;
  uint32_t query_count = 0;  // of the group
  float softmax_scale = 1.0F;
  uint32_t row_count = 1;  // row_count * query_count is 1..kRankQueriesMax
};
inline constexpr uint32_t kRankQueriesMax = 64;

enum class RankReduction : uint8_t { kMean = 0, kMax = 1 };  // over the group, after the softmax

struct RankOptions {
  // The fine stage reads the best sentences until they hold at least this many blocks.
  uint32_t coarse_blocks = 1024;
  // Contexts of up to this many blocks are read whole; so are those of up to coarse_blocks.
  uint32_t full_scan_blocks = 512;
  // First and last closed blocks, which are read in any case: never candidates of a cut, always
  // ranked finely and not counted in coarse_blocks; they count in the normaliser.
  uint32_t sink_blocks = 0;
  uint32_t recent_blocks = 0;
  RankReduction reduction = RankReduction::kMean;
  // 0: all blocks are ranked. Above: a cut of exactly so many single blocks, and not by mass, is
  // all that follows. For one query per row over a flat kind of 16-bit vectors (kFp16,
  // kBf16, kKeys) rank may then leave out blocks that such a cut cannot take, like the coarse
  // stage's: the set is that of a full scan, the masses are estimates (RankResult::skipped_mass).
  uint32_t best_blocks = 0;
};

// Of one query: estimated sum of e^(logit) over all closed tokens = sum * 2^log2_max.
struct RankNormaliser {
  float log2_max = 0.0F;
  float sum = 0.0F;  // 0: no finite score at all
};

struct RankResult {
  std::span<const uint32_t> blocks;             // finely ranked, ascending
  std::span<const float> scores;                // of each of `blocks`
  std::span<const uint32_t> block_sentences;    // sentence of each of `blocks`
  std::span<const uint32_t> sentences;          // finely ranked, ascending
  std::span<const RankNormaliser> normalisers;  // per query
  // Share of what only the coarse stage read. With best_blocks 1, not known: the scores, and the
  // normaliser, are relative to the mass of what was ranked.
  float skipped_mass = 0.0F;
  bool full_scan = true;      // nothing was skipped
  bool best_only = false;     // but not what best_blocks asks for
  uint32_t end_block = 0;     // of the view
  uint32_t sink_end = 0;      // blocks [0, sink_end) are sinks
  uint32_t recent_first = 0;  // blocks [recent_first, end_block) are recents
};

// What rank leaves of one row.
struct RankRow {
  std::vector<float> counts;  // tokens of the sentences that were not ranked finely
  std::vector<float> scores;
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> block_sentences;
  std::vector<uint32_t> sentences;
  std::vector<RankNormaliser> normalisers;
  uint32_t fine_count = 0;  // sentences
  uint32_t block_count = 0;
  size_t logits_first = 0;  // of query 0, in RankScratch::logits
  size_t logits_stride = 0;
  float skipped_mass = 0.0F;
  bool full_scan = true;
};

struct RankCall;

// Working memory of rank; grows to the largest context seen (reserve does it ahead), then allocates
// no more. Contents between calls are unspecified, except that results point into it.
class RankScratch {
 public:
  // `queries` are those of one row.
  void reserve(uint32_t sentences,
               uint32_t blocks,
               uint32_t runs,
               uint32_t queries,
               uint32_t k_dim,
               uint32_t rows = 1);
  void reserve_flat(
      uint32_t blocks, uint32_t runs, uint32_t queries, uint32_t k_dim, uint32_t rows);
  void reserve_best(const RankCall& call);

  // What follows is the kernels' own. Sentence arrays are padded to a multiple of 16; a query is
  // one of any row.
  std::vector<float> query;            // [query][k_dim], times softmax_scale * log2(e)
  std::vector<float> query_second;     // of flat kinds, see FlatQueries::second
  std::vector<float> query_spread;     // [query][k_dim / 4][16], see spread_query
  std::vector<float> query_lines;      // [query][padded_to_line(k_dim)], see line_query
  std::vector<int8_t> query_steps;     // [query][k_dim]
  std::vector<int32_t> query_offsets;  // [query]
  std::vector<float> query_factors;    // [query]
  std::vector<float> mean_dots;        // [query][sentence]
  std::vector<float> coarse;           // [query][sentence]: log2 of the mass per token
  std::vector<float> logits;           // [query][run], then masses [query][block]
  std::vector<float> maxima;           // [query]
  std::vector<float> shares;
  std::vector<float> weights;
  std::vector<uint32_t> block_counts;
  std::vector<uint8_t> taken;
  std::vector<uint32_t> identity;         // 0, 1, 2, ..
  std::vector<uint32_t> block_sentences;  // of a flat kind, for all rows
  SelectScratch select;
  // The best only. Of one row, what may be among them.
  struct BestList {
    std::vector<uint32_t> blocks;  // ascending
    std::vector<float> bounds;     // [block][run], no logit is above
    std::vector<float> least;      // [block][run], no logit is below
    uint32_t count = 0;
    uint32_t limit = 0;  // above, it is looked through
    // So many blocks as are asked for have at least the mass floor_mass * 2^floor_log2.
    float floor_log2 = 0.0F;
    float floor_mass = 1.0F;
    bool is_lost = false;  // a full scan it is
  };
  std::vector<BestList> best;
  std::vector<float> member_masses;     // [block][run], then masses [block]
  std::vector<uint32_t> guesses;        // blocks
  std::vector<uint32_t> others;         // blocks
  std::vector<float> guess_logits;      // [block][run], of guesses, then of others
  std::vector<float> candidate_logits;  // [block][run], then masses [block]
  std::vector<RankRow> rows;
  std::vector<RankResult> results;
};

// The fastest backend of this CPU, for one row.
RankResult rank(const RankView& view,
                const RankQuery& query,
                const RankOptions& options,
                RankScratch& scratch);

// One result per row, in memory of the scratch.
std::span<const RankResult> rank_rows(const RankView& view,
                                      const RankQuery& query,
                                      const RankOptions& options,
                                      RankScratch& scratch);

// Plain loops and std::fma; the definition in code.
RankResult rank_reference(const RankView& view,
                          const RankQuery& query,
                          const RankOptions& options,
                          RankScratch& scratch);

// Highway, on the best target of this CPU; the reference where that target has no fma.
RankResult rank_simd(const RankView& view,
                     const RankQuery& query,
                     const RankOptions& options,
                     RankScratch& scratch);
std::span<const RankResult> rank_rows_reference(const RankView& view,
                                                const RankQuery& query,
                                                const RankOptions& options,
                                                RankScratch& scratch);
// Name of that target, for reports ("AVX3_ZEN4"); "reference" where it has no fma.
const char* rank_target();

}  // namespace skv
