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
    const std::byte* codes = tile + RankAreaLayout::spread_codes(view.k_dim);
    float variance = 0.0F;
    for (uint32_t d = 0; d < view.k_dim; ++d) {
      const float scaled = query[d] * factor;
      const auto code = static_cast<uint8_t>(codes[static_cast<size_t>(d) * 16 + lane]);
      variance = fma_of(scaled * scaled, code_square(code), variance);
    }
    const float m = half_at(tile + RankAreaLayout::spread_m(view.k_dim), lane);
    job.work.coarse[to] = clean(fma_of(variance * (m * m), kHalfLn2, dot));
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
  return block.broadcast([&]() -> float {
    for (uint32_t width = kSumLanes / 2; width >= 1; width /= 2) {
      for (uint32_t i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
    }
    return lanes[0];
  });
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

SKV_BODY inline int residual_at(
    const std::byte* tiles, uint32_t k_dim, uint32_t runs, uint32_t run, uint32_t d) {
  const uint32_t first_run = run / kTileRuns * kTileRuns;
  const uint32_t row_bytes = VectorRecordLayout::tile_width(runs, first_run) / 2;
  const std::byte* tile = tiles + VectorRecordLayout::tile_offset(k_dim, first_run);
  const uint32_t lane = run - first_run;
  const auto pair = static_cast<uint32_t>(tile[static_cast<size_t>(d) * row_bytes + lane / 2]);
  const auto nibble = static_cast<int>((pair >> (lane % 2 * 4)) & 0xFU);
  return nibble < 8 ? nibble : nibble - 16;
}

// Sentence `i` of the fine list: its largest logit and its blocks' sums, for every query.
template <typename Block>
SKV_BODY void scan_fine(Block& block, const RankJob& job, uint32_t i) {
  const RankView& view = job.view;
  const RankWork& w = job.work;
  if (i >= w.summary->fine_count) return;
  const RankGeometry at = geometry_of(job);
  const uint32_t fine_padded = padded_to_lanes(w.summary->fine_count);
  const uint32_t sentence = w.sentences[i];
  const RankSentence& s = view.sentences[sentence];
  const uint32_t first_block = w.first_blocks[i];
  const uint32_t block_total = w.summary->block_count;
  if (view.kind == IndexKind::kMean) {
    block.for_each(job.query_count, [&](uint32_t q) {
      w.fine_max[static_cast<size_t>(q) * fine_padded + i] =
          clean(w.mean_dots[static_cast<size_t>(q) * at.sentences_padded + sentence]);
      for (uint32_t b = 0; b < s.block_count; ++b) {
        w.block_sums[static_cast<size_t>(q) * block_total + first_block + b] =
            static_cast<float>(view.block_tokens);
      }
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
  const std::byte* tiles = scale_codes + view.k_dim;
  const uint32_t runs = run_count(s.block_count, view.block_tokens, view.run_tokens);
  const uint32_t runs_per_block = view.block_tokens / view.run_tokens;
  const float factor = query_factor(job);
  BlockShared& shared = block.shared();
  for (uint32_t q = 0; q < job.query_count; ++q) {
    const float* query = job.queries + static_cast<size_t>(q) * view.k_dim;
    block.for_each(view.k_dim, [&](uint32_t d) {
      const auto code = static_cast<uint8_t>(scale_codes[d]);
      shared.scaled[d] = query[d] * factor * (scale_m * code_factor(code));
    });
    const float mean_dot = w.mean_dots[static_cast<size_t>(q) * at.sentences_padded + sentence];
    block.for_each(runs, [&](uint32_t run) {
      float dot = 0.0F;
      for (uint32_t d = 0; d < view.k_dim; ++d) {
        const int residual = residual_at(tiles, view.k_dim, runs, run, d);
        dot = fma_of(shared.scaled[d], static_cast<float>(residual), dot);
      }
      shared.logits[run] = clean(dot + mean_dot);
    });
    const float max =
        block.max_of(runs, kLogitNone, [&](uint32_t run) { return shared.logits[run]; });
    block.for_each(s.block_count, [&](uint32_t b) {
      float* values = shared.logits + static_cast<size_t>(b) * runs_per_block;
      for (uint32_t r = 0; r < runs_per_block; ++r) values[r] = exp2_at(values[r] - max);
      for (uint32_t count = runs_per_block; count > 1; count /= 2) {
        for (uint32_t r = 0; r < count / 2; ++r) values[r] = values[2 * r] + values[2 * r + 1];
      }
      w.block_sums[static_cast<size_t>(q) * block_total + first_block + b] =
          values[0] * static_cast<float>(view.run_tokens);
      if (b == 0) w.fine_max[static_cast<size_t>(q) * fine_padded + i] = max;
    });
  }
}

// Shares of attention mass per ranked block, normalisers, and what only the coarse stage saw.
template <typename Block>
SKV_BODY void score(Block& block, const RankJob& job) {
  const RankWork& w = job.work;
  const RankGeometry at = geometry_of(job);
  const uint32_t fine = w.summary->fine_count;
  const uint32_t fine_padded = padded_to_lanes(fine);
  const uint32_t blocks = w.summary->block_count;
  const bool full_scan = w.summary->full_scan != 0;
  float skipped_mass = 0.0F;
  block.for_each(blocks, [&](uint32_t b) { w.scores[b] = 0.0F; });
  for (uint32_t q = 0; q < job.query_count; ++q) {
    float* fine_max = w.fine_max + static_cast<size_t>(q) * fine_padded;
    const float* sums = w.block_sums + static_cast<size_t>(q) * blocks;
    const float* coarse = w.coarse + static_cast<size_t>(q) * at.sentences_padded;
    block.for_each(fine_padded, [&](uint32_t i) {
      float total = 0.0F;
      if (i < fine) {
        for (uint32_t b = w.first_blocks[i]; b < w.first_blocks[i + 1]; ++b)
          total = total + sums[b];
      } else {
        fine_max[i] = kLogitNone;
      }
      w.sentence_sums[i] = total;
    });
    float max = block.max_of(fine_padded, kLogitNone, [&](uint32_t i) { return fine_max[i]; });
    float skipped = 0.0F;
    if (!full_scan) {
      max = block.max_of(at.sentences_padded, max, [&](uint32_t i) { return coarse[i]; });
      skipped = weigh(block, coarse, w.counts, max, at.sentences_padded, w.weights);
    }
    const float ranked = weigh(block, fine_max, w.sentence_sums, max, fine_padded, w.weights);
    const float sum = max == kLogitNone ? 0.0F : ranked + skipped;
    const float factor = share_factor(max, sum);
    skipped_mass = reduced(job, skipped_mass, skipped * factor);
    block.for_each(blocks, [&](uint32_t b) {
      const float share = w.weights[w.block_fine[b]] * factor;
      w.scores[b] = reduced(job, w.scores[b], sums[b] * share);
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
