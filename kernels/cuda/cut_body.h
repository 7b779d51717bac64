#pragma once

#include <cstdint>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/rank_work.h"
#include "kernels/cuda/select_body.h"

// skv::cut (kernels/cut.cc) by a thread block, after score().
namespace skv::cuda {

SKV_BODY inline bool exempt(const RankWork& w, uint32_t entry) {
  return w.blocks[entry] < w.summary->sink_end || w.blocks[entry] >= w.summary->recent_first;
}

template <typename Block>
SKV_BODY void take_best_blocks(Block& block, const RankJob& job) {
  const RankWork& w = job.work;
  const uint32_t count = block.scan(
      w.summary->block_count, [&](uint32_t i) -> uint32_t { return exempt(w, i) ? 0 : 1; },
      [&](uint32_t i, uint32_t before) {
        if (exempt(w, i)) return;
        w.candidates[before] = i;
        w.candidate_scores[before] = w.scores[i];
      });
  select_best(block,
              {w.candidate_scores, nullptr, count, job.cut.budget_blocks, w.candidate_taken});
  block.for_each(count, [&](uint32_t i) { w.taken[w.candidates[i]] = w.candidate_taken[i]; });
}

// Candidates are the fine sentences with a block that is neither sink nor recent, in the order of
// score per block, ties by lower index; one that does not fit is passed over.
template <typename Block>
SKV_BODY void take_best_sentences(Block& block, const RankJob& job) {
  const RankWork& w = job.work;
  const uint32_t fine = w.summary->fine_count;
  block.for_each(fine, [&](uint32_t i) {
    float sum = 0.0F;
    uint32_t blocks = 0;
    for (uint32_t b = w.first_blocks[i]; b < w.first_blocks[i + 1]; ++b) {
      if (exempt(w, b)) continue;
      sum = sum + w.scores[b];
      ++blocks;
    }
    w.candidate_blocks[i] = blocks;
    w.candidate_scores[i] = blocks == 0 ? -1.0F : sum / static_cast<float>(blocks);
  });
  block.for_each(fine, [&](uint32_t i) {
    uint32_t better = 0;
    for (uint32_t j = 0; j < fine; ++j) {
      const bool before = w.candidate_scores[j] > w.candidate_scores[i] ||
                          (w.candidate_scores[j] == w.candidate_scores[i] && j < i);
      better += before ? 1 : 0;
    }
    w.order[better] = i;
    w.candidate_taken[i] = 0;
  });
  block.for_each(1, [&](uint32_t) {
    uint32_t left = job.cut.budget_blocks;
    for (uint32_t place = 0; place < fine && left != 0; ++place) {
      const uint32_t i = w.order[place];
      if (w.candidate_blocks[i] == 0 || w.candidate_blocks[i] > left) continue;
      left -= w.candidate_blocks[i];
      w.candidate_taken[i] = 1;
    }
  });
  block.for_each(w.summary->block_count, [&](uint32_t b) {
    w.taken[b] = !exempt(w, b) && w.candidate_taken[w.block_fine[b]] != 0 ? 1 : 0;
  });
}

template <typename Block>
SKV_BODY void cut(Block& block, const RankJob& job) {
  const RankWork& w = job.work;
  const uint32_t entries = w.summary->block_count;
  block.for_each(entries, [&](uint32_t i) { w.taken[i] = 0; });
  if (job.cut.unit == CutUnit::kBlock) {
    take_best_blocks(block, job);
  } else {
    take_best_sentences(block, job);
  }
  const uint32_t ranked = block.scan(
      entries, [&](uint32_t i) -> uint32_t { return w.taken[i]; }, [](uint32_t, uint32_t) {});
  const uint32_t read = block.scan(
      entries, [&](uint32_t i) -> uint32_t { return w.taken[i] != 0 || exempt(w, i) ? 1 : 0; },
      [&](uint32_t i, uint32_t before) {
        if (w.taken[i] == 0 && !exempt(w, i)) return;
        w.read_blocks[before] = w.blocks[i];
        w.read_sentences[before] = w.block_sentences[i];
        w.read_scores[before] = w.scores[i];
      });
  float* lanes = block.shared().lanes;
  block.for_each(kSumLanes, [&](uint32_t lane) {
    float sum = 0.0F;
    for (uint32_t i = lane; i < entries; i += kSumLanes) {
      if (w.taken[i] == 0 && !exempt(w, i)) sum = sum + w.scores[i];
    }
    lanes[lane] = sum;
  });
  block.for_each(1, [&](uint32_t) {
    for (uint32_t width = kSumLanes / 2; width >= 1; width /= 2) {
      for (uint32_t i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
    }
    const float unread = lanes[0] + w.summary->skipped_mass;
    bool any = false;
    for (uint32_t q = 0; q < job.query_count; ++q) any = any || w.normalisers[q].sum > 0.0F;
    w.summary->unread_mass = unread < 1.0F ? unread : 1.0F;
    if (!any) w.summary->unread_mass = read == job.view.end_block ? 0.0F : 1.0F;
    w.summary->read_count = read;
    w.summary->ranked_count = ranked;
  });
}

}  // namespace skv::cuda
