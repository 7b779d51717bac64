#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/rank.h"
#include "kernels/select.h"

namespace skv {

// Chooses what to read from what was ranked.
//
// kBlock     the `budget_blocks` candidates of the highest score, ties by lower index.
// kSentence  whole sentences by score per block, ties by lower index; one that does not fit what is
//            left of the budget is passed over and the next is tried. Sinks and recents inside a
//            sentence are not counted again.
// Sinks and recents are not candidates and always in the result.
//
// Units   blocks.   Thread  any; a CutScratch belongs to one call at a time, results live in it.
enum class CutUnit : uint8_t { kBlock = 0, kSentence = 1 };  // values as CutKind on the wire

struct CutOptions {
  CutUnit unit = CutUnit::kBlock;
  uint32_t budget_blocks = 0;  // ranked ones; more than there is takes all
  // Above 0: no more of them, best first, than bring the estimated mass of the whole set, sinks and
  // recents included, to this. fp32: the sinks and recents ascending, then one by one.
  float mass = 0.0F;
};

// One table's entries (ipc/layout/window.h), before slots: sinks, ranked and recents, ascending.
struct ReadSet {
  std::span<const uint32_t> blocks;
  std::span<const uint32_t> sentences;  // of each block: its index in the context
  std::span<const float> scores;
  uint32_t ranked_count = 0;  // entries that are neither sink nor recent
  // Estimated share of attention on closed blocks that are not in the set, 0..1. Where no score was
  // finite: 1, or 0 if nothing is missing. With RankReduction::kMax an upper bound.
  float unread_mass = 0.0F;
};

struct CutScratch {
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> sentences;
  std::vector<float> scores;
  std::vector<uint32_t> entries;  // chosen, ascending
  SelectScratch select;
  std::vector<uint32_t> candidate_blocks;
  std::vector<uint32_t> order;
  void reserve(uint32_t context_blocks);  // then cut allocates no more
};

ReadSet cut(const RankResult& ranked, const CutOptions& options, CutScratch& scratch);

}  // namespace skv
