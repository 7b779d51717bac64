#include "kernels/cut.h"

#include <algorithm>
#include <bit>

#include "ipc/types/check.h"
#include "kernels/float_environment.h"
#include "kernels/rank_math.h"

namespace skv {
namespace {

// A score >= 0 as an integer of the same order, 31 bits, looked at in digits of 11, 11 and 9.
struct Digit {
  uint32_t shift;
  uint32_t bits;
};
constexpr Digit kDigits[3] = {{20, 11}, {9, 11}, {0, 9}};

uint32_t key_of(float score) { return std::bit_cast<uint32_t>(score); }

}  // namespace

uint32_t select_best(std::span<const float> scores,
                     const uint32_t* weights,
                     uint32_t weight_min,
                     std::span<uint8_t> taken,
                     std::vector<uint32_t>& histogram) {
  const auto weight = [weights](size_t i) { return weights == nullptr ? 1U : weights[i]; };
  const size_t count = scores.size();
  uint32_t total = 0;
  for (size_t i = 0; i < count; ++i) total += weight(i);
  if (weight_min == 0 || total <= weight_min) {
    std::fill_n(taken.begin(), count, static_cast<uint8_t>(weight_min == 0 ? 0 : 1));
    return weight_min == 0 ? 0 : total;
  }
  if (histogram.size() < kSelectHistogram) histogram.resize(kSelectHistogram);
  // Digit by digit, highest first: the bucket in which the running weight from the top reaches
  // weight_min holds the threshold; only its entries are counted in the next round.
  uint32_t prefix = 0;
  uint32_t need = weight_min;
  for (const Digit& digit : kDigits) {
    std::fill_n(histogram.begin(), size_t{1} << digit.bits, 0U);
    const uint32_t mask = (1U << digit.bits) - 1U;
    const uint32_t above = digit.shift + digit.bits;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t key = key_of(scores[i]);
      if ((key >> above) == prefix) histogram[(key >> digit.shift) & mask] += weight(i);
    }
    uint32_t bucket = mask;
    while (histogram[bucket] < need) need -= histogram[bucket--];
    prefix = (prefix << digit.bits) | bucket;
  }
  const uint32_t threshold = prefix;
  uint32_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = key_of(scores[i]);
    bool take = key > threshold;
    if (key == threshold && need != 0) {
      take = true;
      need -= std::min(need, weight(i));
    }
    taken[i] = take ? 1 : 0;
    if (take) sum += weight(i);
  }
  return sum;
}

namespace {

bool exempt(const RankResult& ranked, uint32_t block) {
  return block < ranked.sink_end || block >= ranked.recent_first;
}

void take_best_blocks(const RankResult& ranked, uint32_t budget, CutScratch& s) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < ranked.blocks.size(); ++i) {
    if (exempt(ranked, ranked.blocks[i])) continue;
    s.candidates[count] = i;
    s.candidate_scores[count++] = ranked.scores[i];
  }
  select_best({s.candidate_scores.data(), count}, nullptr, budget,
              {s.candidate_taken.data(), count}, s.histogram);
  for (uint32_t i = 0; i < count; ++i) s.taken[s.candidates[i]] = s.candidate_taken[i];
}

// Candidates here are sentences: `candidates` holds the first entry, `candidate_blocks` how many
// entries from there belong to it, exempt ones included; the score is the mean over the others.
void take_best_sentences(const RankResult& ranked, uint32_t budget, CutScratch& s) {
  uint32_t count = 0;
  const auto entries = static_cast<uint32_t>(ranked.blocks.size());
  for (uint32_t first = 0; first < entries;) {
    uint32_t end = first;
    uint32_t blocks = 0;
    float sum = 0.0F;
    for (; end < entries && ranked.block_sentences[end] == ranked.block_sentences[first]; ++end) {
      if (exempt(ranked, ranked.blocks[end])) continue;
      sum = sum + ranked.scores[end];
      ++blocks;
    }
    if (blocks != 0) {
      s.candidates[count] = first;
      s.candidate_blocks[count] = blocks;
      s.candidate_scores[count] = sum / static_cast<float>(blocks);
      s.order[count] = count;
      ++count;
    }
    first = end;
  }
  const auto worse = [&s](uint32_t a, uint32_t b) {
    return s.candidate_scores[a] != s.candidate_scores[b]
               ? s.candidate_scores[a] < s.candidate_scores[b]
               : a > b;
  };
  const auto begin = s.order.begin();
  std::make_heap(begin, begin + count, worse);
  uint32_t left = budget;
  for (uint32_t heap = count; heap != 0 && left != 0; --heap) {
    std::pop_heap(begin, begin + heap, worse);
    const uint32_t best = s.order[heap - 1];
    if (s.candidate_blocks[best] > left) continue;
    left -= s.candidate_blocks[best];
    const uint32_t first = s.candidates[best];
    for (uint32_t i = first;
         i < entries && ranked.block_sentences[i] == ranked.block_sentences[first]; ++i) {
      if (!exempt(ranked, ranked.blocks[i])) s.taken[i] = 1;
    }
  }
}

}  // namespace

void CutScratch::reserve(uint32_t context_blocks) {
  if (histogram.size() < kSelectHistogram) histogram.resize(kSelectHistogram);
  if (taken.size() >= context_blocks) return;
  blocks.resize(context_blocks);
  sentences.resize(context_blocks);
  scores.resize(context_blocks);
  taken.resize(context_blocks);
  candidates.resize(context_blocks);
  candidate_scores.resize(context_blocks);
  candidate_blocks.resize(context_blocks);
  candidate_taken.resize(context_blocks);
  order.resize(context_blocks);
}

ReadSet cut(const RankResult& ranked, const CutOptions& options, CutScratch& scratch) {
  const FloatEnvironment environment;
  const auto entries = static_cast<uint32_t>(ranked.blocks.size());
  SKV_CHECK(entries <= ranked.end_block, "ranked blocks are the context's");
  scratch.reserve(ranked.end_block);  // more than entries, but the same from step to step
  std::fill_n(scratch.taken.begin(), entries, uint8_t{0});
  if (options.unit == CutUnit::kBlock) {
    take_best_blocks(ranked, options.budget_blocks, scratch);
  } else {
    take_best_sentences(ranked, options.budget_blocks, scratch);
  }

  ReadSet set;
  float unread[16] = {};
  uint32_t count = 0;
  for (uint32_t i = 0; i < entries; ++i) {
    const bool always = exempt(ranked, ranked.blocks[i]);
    if (scratch.taken[i] == 0 && !always) {
      unread[i % 16] = unread[i % 16] + ranked.scores[i];
      continue;
    }
    scratch.blocks[count] = ranked.blocks[i];
    scratch.sentences[count] = ranked.block_sentences[i];
    scratch.scores[count++] = ranked.scores[i];
    if (!always) ++set.ranked_count;
  }
  set.blocks = {scratch.blocks.data(), count};
  set.sentences = {scratch.sentences.data(), count};
  set.scores = {scratch.scores.data(), count};
  set.unread_mass = std::min(1.0F, sum_of_lanes(unread) + ranked.skipped_mass);
  const bool any = std::any_of(ranked.normalisers.begin(), ranked.normalisers.end(),
                               [](const RankNormaliser& n) { return n.sum > 0.0F; });
  if (!any) set.unread_mass = count == ranked.end_block ? 0.0F : 1.0F;
  return set;
}

}  // namespace skv
