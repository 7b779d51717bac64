#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/flat_pages.h"
#include "kernels/rank.h"
#include "kernels/rank_ops.h"
#include "kernels/sketch.h"

namespace skv {

constexpr uint32_t padded_to_16(uint32_t count) { return (count + 15) / 16 * 16; }

// A vector as memory that only grows.
template <typename T>
T* room(std::vector<T>& memory, size_t count) {
  if (memory.size() < count) memory.resize(count);
  return memory.data();
}

// Of a vector with room for 16 more: where its first cache line begins. Loads of whole lines that
// are not aligned are two.
inline float* first_line(std::vector<float>& memory) {
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - at % 64) % 64 / sizeof(float);
}

constexpr uint32_t runs_per_block(const RankView& view) {
  return view.block_tokens / view.run_tokens;
}

// One call: what it reads and where it works. Borrowed.
struct RankCall {
  const RankOps& ops;
  const FlatOps& flat_ops;
  const SketchOps& sketch_ops;
  const RankView& view;
  const RankQuery& query;
  const RankOptions& options;
  RankScratch& scratch;

  uint32_t queries() const { return query.row_count * query.query_count; }
  uint32_t sink_end() const { return std::min(options.sink_blocks, view.end_block); }
  uint32_t recent_first() const {
    return view.end_block - std::min(options.recent_blocks, view.end_block);
  }
  // What turns masses into shares; 0 where no logit counts.
  static float share_factor(float max, float sum);
};

// Flat kinds: scan, then one result per row in scratch.results.
void rank_flat(const RankCall& call);

// Room for the bounds of a page, of one query.
constexpr size_t best_stride(const RankView& view) {
  return FlatAreaLayout::runs_max(view.run_tokens) + 16;
}
// Whether only the best blocks are asked for, and it pays to look for them alone.
bool wants_best(const RankCall& call);
// One result per row in scratch.results. Returns a bit for each row whose result is not certain to
// hold what a full scan finds: there is none for it.
uint64_t rank_best(const RankCall& call);

}  // namespace skv
