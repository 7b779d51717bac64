#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/rank_work.h"
#include "kernels/cuda/select_body.h"

// The phases of rank, one function each, in launch order: scan_coarse, choose, scan_fine, score,
// and cut_body.h. The same steps as kernels/rank.cc, whose bits they return; sums have the order of
// kernels/README.md: 16 lanes by index, or ascending in one thread.
//
// Block  DeviceBlock or HostBlock. Everything between two calls on it runs in every thread.
namespace skv::cuda {

static_assert(kQueriesMax == kRankQueriesMax);

struct RankGeometry {
  uint32_t sentences_padded;
  uint32_t sink_end;
  uint32_t recent_first;
  bool full_scan;  // decided without looking at scores
};
SKV_BODY inline RankGeometry geometry_of(const RankJob& job) {
  const RankView& view = job.view;
  RankGeometry at{};
  at.sentences_padded = padded_to_lanes(view.sentence_count);
  at.sink_end = smaller(job.options.sink_blocks, view.end_block);
  at.recent_first = view.end_block - smaller(job.options.recent_blocks, view.end_block);
  const uint32_t whole = job.options.full_scan_blocks > job.options.coarse_blocks
                             ? job.options.full_scan_blocks
                             : job.options.coarse_blocks;
  at.full_scan = view.kind == IndexKind::kMean || view.end_block <= whole;
  return at;
}
SKV_BODY inline bool always_fine(const RankJob& job, const RankGeometry& at, uint32_t sentence) {
  const RankSentence& s = job.view.sentences[sentence];
  return s.first_block < at.sink_end || s.first_block + s.block_count > at.recent_first;
}
SKV_BODY inline float query_factor(const RankJob& job) { return job.softmax_scale * kLog2E; }

// Nearest even; 0 where that is no step (the query is not finite, and its logits none).
SKV_BODY inline int8_t step_of(float value) {
  const float whole = (value + kRoundMagic) - kRoundMagic;
  const auto most = static_cast<float>(kQuerySteps);
  return whole >= -most && whole <= most ? static_cast<int8_t>(whole) : int8_t{0};
}

// One page of 64 sentences: mean dots and, unless all is ranked finely, coarse logits.
template <typename Block>
SKV_BODY void scan_coarse(Block& block, const RankJob& job, uint32_t page) {
  const RankView& view = job.view;
  const RankGeometry at = geometry_of(job);
  const uint32_t first = page * kPageSentences;
  if (first >= view.sentence_count) return;
  const uint32_t count = padded_to_lanes(smaller(view.sentence_count - first, kPageSentences));
  const std::byte* area = view.pages[page] + view.area_offset;
  const uint32_t tile_bytes = RankAreaLayout::coarse_tile_bytes(view.kind, view.k_dim);
  const float factor = query_factor(job);
  BlockShared& shared = block.shared();
  for (uint32_t q = 0; q < job.query_count && !at.full_scan; ++q) {
    const float* query = job.queries + static_cast<size_t>(q) * view.k_dim;
    const float largest = block.max_of(
        view.k_dim, 0.0F, [&](uint32_t d) { return (query[d] * factor) * (query[d] * factor); });
    block.for_each(1, [&](uint32_t) {
      const bool any = largest >= kStepsMin;
      shared.per_step[q] = any ? static_cast<float>(kQuerySteps) / largest : 0.0F;
      shared.square_values[q] =
          any ? largest / static_cast<float>(kQuerySteps * kSquareSteps) : 0.0F;
    });
  }
  block.for_each(count * job.query_count, [&](uint32_t i) {
    const uint32_t lane = i % kTileSentences;
    const uint32_t in_page = i % count;
    const uint32_t q = i / count;
    const std::byte* tile = area + static_cast<size_t>(in_page / kTileSentences) * tile_bytes;
    const float* query = job.queries + static_cast<size_t>(q) * view.k_dim;
    float dot = 0.0F;
    for (uint32_t d = 0; d < view.k_dim; ++d) {
      dot = fma_of(query[d] * factor, half_at(tile, static_cast<uint64_t>(d) * 16 + lane), dot);
    }
    const size_t to = static_cast<size_t>(q) * at.sentences_padded + first + in_page;
    job.work.mean_dots[to] = dot;
    if (at.full_scan) return;
    int sum = 0;
    for (uint32_t d = 0; d < view.k_dim; ++d) {
      const float scaled = query[d] * factor;
      sum += step_of((scaled * scaled) * shared.per_step[q]) *
             static_cast<int>(tile[RankAreaLayout::square(view.k_dim, d, lane)]);
    }
    const float variance = static_cast<float>(sum) * shared.square_values[q];
    const float m = half_at(tile + RankAreaLayout::spread_m(view.k_dim), lane);
    job.work.coarse[to] = clean(fma_of(variance * (m * m), kHalfLn2, dot));
  });
}

// The 16 lanes in shared memory to one: lanes 8 apart first, then 4, 2, 1.
template <typename Block>
SKV_BODY float sum_of_shared_lanes(Block& block) {
  float* lanes = block.shared().lanes;
  return block.broadcast([&]() -> float {
    for (uint32_t width = kSumLanes / 2; width >= 1; width /= 2) {
      for (uint32_t i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
    }
    return lanes[0];
  });
}

// to[i] = 2^(logits[i] - max); the sum of counts[i] * to[i] over 16 lanes. `count` is padded.
template <typename Block>
SKV_BODY float weigh(
    Block& block, const float* logits, const float* counts, float max, uint32_t count, float* to) {
  block.for_each(count, [&](uint32_t i) { to[i] = exp2_at(logits[i] - max); });
  float* lanes = block.shared().lanes;
  block.for_each(kSumLanes, [&](uint32_t lane) {
    float sum = 0.0F;
    for (uint32_t i = lane; i < count; i += kSumLanes) sum = fma_of(counts[i], to[i], sum);
    lanes[lane] = sum;
  });
  return sum_of_shared_lanes(block);
}

SKV_BODY inline float share_factor(float max, float sum) {
  return max == kLogitNone ? 0.0F : 1.0F / sum;
}
SKV_BODY inline float reduced(const RankJob& job, float total, float share) {
  return job.options.reduction == RankReduction::kMean ? total + share : larger(total, share);
}

// Which sentences the fine stage reads, and the list of their blocks.
template <typename Block>
SKV_BODY void choose(Block& block, const RankJob& job) {
  const RankView& view = job.view;
  const RankWork& w = job.work;
  const RankGeometry at = geometry_of(job);
  const uint32_t n = view.sentence_count;
  const uint32_t padded = at.sentences_padded;
  if (at.full_scan) {
    block.for_each(n, [&](uint32_t i) { w.taken[i] = 1; });
  } else {
    block.for_each(padded, [&](uint32_t i) {
      w.shares[i] = 0.0F;
      w.counts[i] = 0.0F;
      if (i >= n) return;
      w.counts[i] = static_cast<float>(view.sentences[i].block_count * view.block_tokens);
      w.block_weights[i] = always_fine(job, at, i) ? 0 : view.sentences[i].block_count;
    });
    for (uint32_t q = 0; q < job.query_count; ++q) {
      float* coarse = w.coarse + static_cast<size_t>(q) * padded;
      block.for_each(padded - n, [&](uint32_t i) { coarse[n + i] = kLogitNone; });
      const float max = block.max_of(padded, kLogitNone, [&](uint32_t i) { return coarse[i]; });
      const float sum = weigh(block, coarse, w.counts, max, padded, w.weights);
      const float factor = share_factor(max, sum);
      block.for_each(padded, [&](uint32_t i) {
        w.shares[i] = job.options.reduction == RankReduction::kMean
                          ? fma_of(w.weights[i], factor, w.shares[i])
                          : larger(w.shares[i], w.weights[i] * factor);
      });
    }
    select_best(block, {w.shares, w.block_weights, n, job.options.coarse_blocks, w.taken});
    block.for_each(n, [&](uint32_t i) {
      if (always_fine(job, at, i)) w.taken[i] = 1;
      if (w.taken[i] == 0) return;
      w.counts[i] = 0.0F;
      for (uint32_t q = 0; q < job.query_count; ++q) {
        w.coarse[static_cast<size_t>(q) * padded + i] = kLogitNone;
      }
    });
  }
  const uint32_t fine = block.scan(
      n, [&](uint32_t i) -> uint32_t { return w.taken[i]; },
      [&](uint32_t i, uint32_t before) {
        if (w.taken[i] != 0) w.sentences[before] = i;
      });
  const uint32_t blocks = block.scan(
      fine, [&](uint32_t i) -> uint32_t { return view.sentences[w.sentences[i]].block_count; },
      [&](uint32_t i, uint32_t before) { w.first_blocks[i] = before; });
  block.for_each(fine, [&](uint32_t i) {
    const uint32_t sentence = w.sentences[i];
    const RankSentence& s = view.sentences[sentence];
    for (uint32_t b = 0; b < s.block_count; ++b) {
      const uint32_t to = w.first_blocks[i] + b;
      w.blocks[to] = s.first_block + b;
      w.block_sentences[to] = sentence;
      w.block_fine[to] = i;
    }
  });
  block.for_each(1, [&](uint32_t) {
    w.first_blocks[fine] = blocks;
    w.summary->fine_count = fine;
    w.summary->block_count = blocks;
    w.summary->full_scan = fine == n ? 1 : 0;
    w.summary->sink_end = at.sink_end;
    w.summary->recent_first = at.recent_first;
  });
}

SKV_BODY inline int residual_at(const std::byte* residuals,
                                uint32_t k_dim,
                                uint32_t run,
                                uint32_t channel) {
  const ResidualPlace at = residual_place(k_dim, run, channel);
  return static_cast<int>((static_cast<uint32_t>(residuals[at.byte]) >> at.shift) & 0xFU) - 8;
}

// Runs of a block, or 1 where a block has the logit of its sentence's mean.
SKV_BODY inline uint32_t runs_of_block(const RankView& view) {
  return view.kind == IndexKind::kMean ? 1 : view.block_tokens / view.run_tokens;
}

// Sentence `i` of the fine list: the logits of its runs, for every query.
template <typename Block>
SKV_BODY void scan_fine(Block& block, const RankJob& job, uint32_t i) {
  const RankView& view = job.view;
  const RankWork& w = job.work;
  if (i >= w.summary->fine_count) return;
  const RankGeometry at = geometry_of(job);
  const uint32_t sentence = w.sentences[i];
  const RankSentence& s = view.sentences[sentence];
  const uint32_t runs_per_block = runs_of_block(view);
  const uint32_t runs = s.block_count * runs_per_block;
  const size_t run_total = static_cast<size_t>(w.summary->block_count) * runs_per_block;
  float* logits = w.logits + static_cast<size_t>(w.first_blocks[i]) * runs_per_block;
  if (view.kind == IndexKind::kMean) {
    block.for_each(job.query_count * runs, [&](uint32_t j) {
      const uint32_t q = j / runs;
      logits[q * run_total + j % runs] =
          clean(w.mean_dots[static_cast<size_t>(q) * at.sentences_padded + sentence]);
    });
    return;
  }
  const std::byte* area = view.pages[sentence / kPageSentences] + view.area_offset;
  const uint32_t in_page = sentence % kPageSentences;
  const std::byte* tile = area + static_cast<size_t>(in_page / kTileSentences) *
                                     RankAreaLayout::coarse_tile_bytes(view.kind, view.k_dim);
  const float scale_m =
      half_at(tile + RankAreaLayout::scale_m(view.k_dim), in_page % kTileSentences);
  const std::byte* scale_codes = area + RankAreaLayout::fine(view.kind, view.k_dim) +
                                 static_cast<size_t>(view.k_dim) * s.fine_unit;
  const std::byte* residuals = scale_codes + view.k_dim;
  const float factor = query_factor(job);
  BlockShared& shared = block.shared();
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* query = job.queries + static_cast<size_t>(q) * view.k_dim;
    block.for_each(view.k_dim, [&](uint32_t d) {
      const auto code = static_cast<uint8_t>(scale_codes[d]);
      shared.scaled[d] = query[d] * factor * (scale_m * code_factor(code));
    });
    const float largest = block.max_of(view.k_dim, 0.0F, [&](uint32_t d) {
      return shared.scaled[d] < 0.0F ? -shared.scaled[d] : shared.scaled[d];
    });
    const bool any = largest >= kStepsMin;
    const float per_step = any ? static_cast<float>(kQuerySteps) / largest : 0.0F;
    float step = any ? largest / static_cast<float>(kQuerySteps) : 0.0F;
    if (!is_finite(scale_m)) step = bits_to_float(0x7FC00000U);
    block.for_each(view.k_dim,
                   [&](uint32_t d) { shared.steps[d] = step_of(shared.scaled[d] * per_step); });
    const float mean_dot = w.mean_dots[static_cast<size_t>(q) * at.sentences_padded + sentence];
    block.for_each(runs, [&](uint32_t run) {
      int sum = 0;
      for (uint32_t d = 0; d < view.k_dim; ++d) {
        sum += shared.steps[d] * residual_at(residuals, view.k_dim, run, d);
      }
      logits[q * run_total + run] = clean(fma_of(static_cast<float>(sum), step, mean_dot));
    });
  }
}

// The mass of block `b`: a tree over its runs, neighbours first. Leaves `logits` as they are.
SKV_BODY inline float block_mass(const float* logits, uint32_t runs, float max, float run_tokens) {
  float sums[kSentenceTokensMax];
  for (uint32_t r = 0; r < runs; ++r) sums[r] = exp2_at(logits[r] - max);
  for (uint32_t count = runs; count > 1; count /= 2) {
    for (uint32_t r = 0; r < count / 2; ++r) sums[r] = sums[2 * r] + sums[2 * r + 1];
  }
  return sums[0] * run_tokens;
}

// values[0] + .. over 16 lanes.
template <typename Block>
SKV_BODY float sum16(Block& block, const float* values, uint32_t count) {
  float* lanes = block.shared().lanes;
  block.for_each(kSumLanes, [&](uint32_t lane) {
    float sum = 0.0F;
    for (uint32_t i = lane; i < count; i += kSumLanes) sum = sum + values[i];
    lanes[lane] = sum;
  });
  return sum_of_shared_lanes(block);
}

// Shares of attention mass per ranked block, normalisers, and what only the coarse stage saw.
template <typename Block>
SKV_BODY void score(Block& block, const RankJob& job) {
  const RankView& view = job.view;
  const RankWork& w = job.work;
  const RankGeometry at = geometry_of(job);
  const uint32_t blocks = w.summary->block_count;
  const uint32_t runs_per_block = runs_of_block(view);
  const uint32_t runs = blocks * runs_per_block;
  const auto run_tokens =
      static_cast<float>(view.kind == IndexKind::kMean ? view.block_tokens : view.run_tokens);
  const bool full_scan = w.summary->full_scan != 0;
  float skipped_mass = 0.0F;
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* logits = w.logits + static_cast<size_t>(q) * runs;
    float* masses = w.block_masses + static_cast<size_t>(q) * blocks;
    const float* coarse = w.coarse + static_cast<size_t>(q) * at.sentences_padded;
    float max = block.max_of(runs, kLogitNone, [&](uint32_t i) { return logits[i]; });
    float skipped = 0.0F;
    if (!full_scan) {
      max = block.max_of(at.sentences_padded, max, [&](uint32_t i) { return coarse[i]; });
      skipped = weigh(block, coarse, w.counts, max, at.sentences_padded, w.weights);
    }
    block.for_each(blocks, [&](uint32_t b) {
      masses[b] = block_mass(logits + static_cast<size_t>(b) * runs_per_block, runs_per_block, max,
                             run_tokens);
    });
    const float ranked = sum16(block, masses, blocks);
    const float sum = max == kLogitNone ? 0.0F : ranked + skipped;
    const float factor = share_factor(max, sum);
    skipped_mass = reduced(job, skipped_mass, skipped * factor);
    block.for_each(blocks, [&](uint32_t b) {
      if (q == 0) {
        w.scores[b] = masses[b] * factor;
      } else if (job.options.reduction == RankReduction::kMean) {
        w.scores[b] = fma_of(masses[b], factor, w.scores[b]);
      } else {
        w.scores[b] = larger(w.scores[b], masses[b] * factor);
      }
    });
    block.for_each(1, [&](uint32_t) { w.normalisers[q] = {max == kLogitNone ? 0.0F : max, sum}; });
  }
  if (job.options.reduction != RankReduction::kMax) {
    const float group = 1.0F / static_cast<float>(job.query_count);
    block.for_each(blocks, [&](uint32_t b) { w.scores[b] = w.scores[b] * group; });
    skipped_mass = skipped_mass * group;
  }
  block.for_each(1, [&](uint32_t) { w.summary->skipped_mass = skipped_mass; });
}

}  // namespace skv::cuda
