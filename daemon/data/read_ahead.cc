#include "daemon/data/read_ahead.h"

#include <algorithm>

#include "daemon/data/feed.h"

namespace skv {

void ReadAhead::collect(Feed& feed,
                        uint32_t layer,
                        const RankResult& ranked,
                        const CutOptions& options,
                        std::span<const uint32_t> read) {
  if (residency_.absent_chunks() == 0) return;
  // As much again as is read: what a step reads anew was mostly close below the cut before.
  CutOptions wider = options;
  wider.budget_blocks = 2 * std::min(options.budget_blocks, static_cast<uint32_t>(read.size()));
  wider.mass = 0.0F;
  const ReadSet more = cut(ranked, wider, scratch_);
  const uint32_t chunk = feed.layout().chunk_of(layer);
  size_t at = 0;
  for (size_t i = 0; i < more.blocks.size(); ++i) {
    while (at < read.size() && read[at] < more.blocks[i]) ++at;
    if (at < read.size() && read[at] == more.blocks[i]) continue;
    const ChunkRef ref{feed.uid(more.sentences[i]), chunk};
    if (!residency_.present(ref)) worth_[ref] += more.scores[i];
  }
}

std::vector<ChunkRef> ReadAhead::take(uint64_t now_ns) {
  if (worth_.empty()) return {};
  std::vector<std::pair<float, ChunkRef>> order;
  order.reserve(worth_.size());
  for (const auto& [chunk, worth] : worth_) order.emplace_back(worth, chunk);
  worth_.clear();
  const size_t count = std::min(order.size(), kChunksMax);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [](const auto& left, const auto& right) {
                      if (left.first != right.first) return left.first > right.first;
                      return std::pair(left.second.uid, left.second.chunk) <
                             std::pair(right.second.uid, right.second.chunk);
                    });
  std::vector<ChunkRef> chunks;
  for (size_t i = 0; i < count; ++i) {
    if (residency_.read_ahead(order[i].second, now_ns, kAgainNs)) chunks.push_back(order[i].second);
  }
  return chunks;
}

}  // namespace skv
