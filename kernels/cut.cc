#include "kernels/cut.h"

#include <algorithm>
#include <numeric>

#include "ipc/types/check.h"
#include "kernels/cut_ops.h"
#include "kernels/float_environment.h"
#include "kernels/rank_math.h"

namespace skv {
namespace {

// Entries are ascending, so those of sinks come first, those of recents last.
struct Candidates {
  uint32_t first = 0;  // entries [first, end) may be chosen
  uint32_t end = 0;

  explicit Candidates(const RankResult& ranked) {
    const auto begin = ranked.blocks.begin();
    const auto sinks = std::lower_bound(begin, ranked.blocks.end(), ranked.sink_end);
    const auto recents = std::lower_bound(sinks, ranked.blocks.end(), ranked.recent_first);
    first = static_cast<uint32_t>(sinks - begin);
    end = static_cast<uint32_t>(recents - begin);
  }
  bool holds(uint32_t entry) const { return entry >= first && entry < end; }
  uint32_t count() const { return end - first; }
};

float exempt_mass(const RankResult& ranked, const Candidates& range) {
  float sum = 0.0F;
  for (uint32_t i = 0; i < range.first; ++i) sum = sum + ranked.scores[i];
  for (uint32_t i = range.end; i < ranked.scores.size(); ++i) sum = sum + ranked.scores[i];
  return sum;
}

// Of `count` ascending indices in s.select.chosen, the best that bring `mass` to `wanted`.
uint32_t until_mass(const float* scores, uint32_t count, float mass, float wanted, CutScratch& s) {
  const auto begin = s.select.chosen.begin();
  std::sort(begin, begin + count, [scores](uint32_t a, uint32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  uint32_t kept = 0;
  for (; kept < count && mass < wanted; ++kept) mass = mass + scores[s.select.chosen[kept]];
  std::sort(begin, begin + kept);
  return kept;
}

// Leaves the chosen entries, ascending and without those that are always read, in s.entries.
uint32_t take_best_blocks(const RankResult& ranked,
                          const Candidates& range,
                          const CutOptions& options,
                          CutScratch& s) {
  const float* scores = ranked.scores.data() + range.first;
  uint32_t count = select_largest({scores, range.count()}, options.budget_blocks, s.select);
  if (options.mass > 0.0F) {
    count = until_mass(scores, count, exempt_mass(ranked, range), options.mass, s);
  }
  for (uint32_t i = 0; i < count; ++i) s.entries[i] = s.select.chosen[i] + range.first;
  return count;
}

// Candidates here are sentences: `select.chosen` holds the first entry, `candidate_blocks` how many
// entries are counted, exempt ones left out; the score is the mean over them.
uint32_t take_best_sentences(const RankResult& ranked,
                             const Candidates& range,
                             const CutOptions& options,
                             CutScratch& s) {
  uint32_t count = 0;
  const auto sentence_end = [&](uint32_t first) {
    uint32_t end = first;
    while (end < range.end && ranked.block_sentences[end] == ranked.block_sentences[first]) ++end;
    return end;
  };
  for (uint32_t first = range.first; first < range.end;) {
    const uint32_t end = sentence_end(first);
    float sum = 0.0F;
    for (uint32_t i = first; i < end; ++i) sum = sum + ranked.scores[i];
    s.select.chosen[count] = first;
    s.candidate_blocks[count] = end - first;
    s.select.scores[count] = sum / static_cast<float>(end - first);
    s.order[count] = count;
    ++count;
    first = end;
  }
  const auto worse = [&s](uint32_t a, uint32_t b) {
    return s.select.scores[a] != s.select.scores[b] ? s.select.scores[a] < s.select.scores[b]
                                                    : a > b;
  };
  const auto begin = s.order.begin();
  std::make_heap(begin, begin + count, worse);
  uint32_t left = options.budget_blocks;
  uint32_t taken = 0;
  float mass = options.mass > 0.0F ? exempt_mass(ranked, range) : 0.0F;
  for (uint32_t heap = count; heap != 0 && left != 0; --heap) {
    if (options.mass > 0.0F && mass >= options.mass) break;
    std::pop_heap(begin, begin + heap, worse);
    const uint32_t best = s.order[heap - 1];
    if (s.candidate_blocks[best] > left) continue;
    left -= s.candidate_blocks[best];
    for (uint32_t i = 0; i < s.candidate_blocks[best]; ++i) {
      s.entries[taken] = s.select.chosen[best] + i;
      mass = mass + ranked.scores[s.entries[taken++]];
    }
  }
  std::sort(s.entries.begin(), s.entries.begin() + taken);
  return taken;
}

// sum16 over the candidates that were not chosen: by groups of 16, one by one where some were.
float unread_of(const RankResult& ranked,
                const Candidates& range,
                const uint32_t* chosen,
                uint32_t chosen_count) {
  float lanes[16] = {};
  const CutOps& ops = simd_cut_ops();
  const uint32_t* const chosen_end = chosen + chosen_count;
  const auto one_by_one = [&](uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; ++i) {
      if (chosen != chosen_end && *chosen == i) {
        ++chosen;
      } else {
        lanes[i % 16] = lanes[i % 16] + ranked.scores[i];
      }
    }
  };
  uint32_t at = std::min((range.first + 15) / 16 * 16, range.end);
  one_by_one(range.first, at);
  while (at + 16 <= range.end) {
    const uint32_t next = chosen == chosen_end ? range.end : *chosen;
    const uint32_t whole = (std::max(next, at) - at) / 16 * 16;
    ops.add_lanes(ranked.scores.data() + at, whole, lanes);
    at += whole;
    if (at + 16 <= range.end) {
      one_by_one(at, at + 16);
      at += 16;
    }
  }
  one_by_one(at, range.end);
  return sum_of_lanes(lanes);
}

}  // namespace

void CutScratch::reserve(uint32_t context_blocks) {
  select.reserve(context_blocks);
  if (blocks.size() >= context_blocks) return;
  blocks.resize(context_blocks);
  sentences.resize(context_blocks);
  scores.resize(context_blocks);
  entries.resize(context_blocks);
  candidate_blocks.resize(context_blocks);
  order.resize(context_blocks);
}

ReadSet cut(const RankResult& ranked, const CutOptions& options, CutScratch& scratch) {
  const FloatEnvironment environment;
  const auto entries = static_cast<uint32_t>(ranked.blocks.size());
  SKV_CHECK(entries <= ranked.end_block, "ranked blocks are the context's");
  scratch.reserve(ranked.end_block);  // more than entries, but the same from step to step
  const Candidates range(ranked);
  ReadSet set;
  set.ranked_count = options.unit == CutUnit::kBlock
                         ? take_best_blocks(ranked, range, options, scratch)
                         : take_best_sentences(ranked, range, options, scratch);
  uint32_t count = 0;
  const auto put = [&](uint32_t entry) {
    scratch.blocks[count] = ranked.blocks[entry];
    scratch.sentences[count] = ranked.block_sentences[entry];
    scratch.scores[count++] = ranked.scores[entry];
  };
  for (uint32_t i = 0; i < range.first; ++i) put(i);
  for (uint32_t i = 0; i < set.ranked_count; ++i) put(scratch.entries[i]);
  for (uint32_t i = range.end; i < entries; ++i) put(i);
  set.blocks = {scratch.blocks.data(), count};
  set.sentences = {scratch.sentences.data(), count};
  set.scores = {scratch.scores.data(), count};
  const float unread = unread_of(ranked, range, scratch.entries.data(), set.ranked_count);
  set.unread_mass = std::min(1.0F, unread + ranked.skipped_mass);
  const bool any = std::any_of(ranked.normalisers.begin(), ranked.normalisers.end(),
                               [](const RankNormaliser& n) { return n.sum > 0.0F; });
  if (!any) set.unread_mass = count == ranked.end_block ? 0.0F : 1.0F;
  return set;
}

}  // namespace skv
