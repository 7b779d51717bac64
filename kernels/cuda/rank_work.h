#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cut.h"
#include "kernels/rank.h"

namespace skv::cuda {

// Working memory and results of one job, in memory that the kernels reach: one (row, layer, kv
// head) of a submission. Carved from one allocation by carve(); sizes are capacities, jobs of any
// smaller context use the same memory. Pointers are device addresses (host addresses under
// HostBlock).
struct RankSummary {
  uint32_t fine_count;   // sentences
  uint32_t block_count;  // ranked finely
  uint32_t full_scan;
  uint32_t sink_end;
  uint32_t recent_first;
  float skipped_mass;
  uint32_t read_count;  // entries of the read set
  uint32_t ranked_count;
  float unread_mass;
};

struct RankCapacity {
  uint32_t sentences = 0;
  uint32_t blocks = 0;
  uint32_t queries = 0;
  uint32_t runs_per_block = 1;  // kMean: 1
};

struct RankWork {
  RankSummary* summary;
  RankNormaliser* normalisers;  // [query]
  float* mean_dots;             // [query][sentence, padded to 16]
  float* coarse;                // [query][sentence, padded to 16]
  float* logits;                // [query][run of `blocks`]
  float* block_masses;          // [query][block]
  float* counts;                // [sentence, padded]
  float* shares;                // [sentence, padded]
  float* weights;               // [sentence, padded]
  float* factors;               // [query]
  float* scores;                // [block]
  float* candidate_scores;      // [block]
  float* read_scores;           // [block]
  uint32_t* blocks;             // [block]
  uint32_t* block_sentences;    // [block]
  uint32_t* block_fine;         // [block]: index of its sentence among the fine ones
  uint32_t* sentences;          // [fine sentence]
  uint32_t* first_blocks;       // [fine sentence + 1]: of `blocks`
  uint32_t* block_weights;      // [sentence]
  uint32_t* candidates;         // [block]
  uint32_t* candidate_blocks;   // [block]
  uint32_t* order;              // [block]
  uint32_t* read_blocks;        // [block]
  uint32_t* read_sentences;     // [block]
  uint8_t* taken;               // [sentence or block]
  uint8_t* candidate_taken;     // [block]
};

struct RankJob {
  RankView view;         // over addresses that the kernels reach
  const float* queries;  // [query_count][k_dim]
  uint32_t query_count;
  float softmax_scale;
  RankOptions options;
  CutOptions cut;
  RankWork work;
};

// What `job` asks for that the device kernels do not do, by name; null: they do all of it. To be
// looked at before a launch.
inline const char* refusal(const RankJob& job) {
  if (is_flat(job.view.kind)) return "index kind: device kernels rank mean+spread+runs and mean";
  if (job.query_count > kRankQueriesMax) return "queries: device kernels rank up to 64 of a row";
  if (job.cut.mass > 0.0F) return "mass: device kernels cut by budget alone";
  return nullptr;
}

constexpr uint32_t padded_to_lanes(uint32_t count) { return (count + 15) / 16 * 16; }

// Lays `work` out from `base` (aligned to 256; null only measures); returns the bytes it takes, a
// multiple of 256.
inline uint64_t carve(std::byte* base, const RankCapacity& capacity, RankWork& work) {
  uint64_t at = 0;
  const auto take = [&at, base]<typename T>(T*& pointer, uint64_t count) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
    at += (count * sizeof(T) + 255) / 256 * 256;
  };
  const uint64_t sentences = padded_to_lanes(capacity.sentences);
  const uint64_t blocks = capacity.blocks;
  const uint64_t queries = capacity.queries;
  take(work.summary, 1);
  take(work.normalisers, queries);
  take(work.mean_dots, queries * sentences);
  take(work.coarse, queries * sentences);
  take(work.logits, queries * blocks * capacity.runs_per_block);
  take(work.block_masses, queries * blocks);
  take(work.counts, sentences);
  take(work.shares, sentences);
  take(work.weights, sentences);
  take(work.factors, queries);
  take(work.scores, blocks);
  take(work.candidate_scores, blocks);
  take(work.read_scores, blocks);
  take(work.blocks, blocks);
  take(work.block_sentences, blocks);
  take(work.block_fine, blocks);
  take(work.sentences, sentences);
  take(work.first_blocks, sentences + 1);
  take(work.block_weights, sentences);
  take(work.candidates, blocks);
  take(work.candidate_blocks, blocks);
  take(work.order, blocks);
  take(work.read_blocks, blocks);
  take(work.read_sentences, blocks);
  take(work.taken, blocks > sentences ? blocks : sentences);
  take(work.candidate_taken, blocks);
  return at;
}

}  // namespace skv::cuda
