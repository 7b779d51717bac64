#include "kernels/rank.h"

#include <algorithm>
#include <cstring>

#include "ipc/layout/half.h"
#include "ipc/types/check.h"
#include "kernels/cut.h"
#include "kernels/float_environment.h"
#include "kernels/rank_math.h"
#include "kernels/rank_memory.h"
#include "kernels/rank_ops.h"

namespace skv {
namespace {

// The best sentences lie apart: what is read is asked for so many of them before.
constexpr uint32_t kSentencesAhead = 4;

// One call of rank. Steps in the order of kernels/README.md.
class Ranking {
 public:
  explicit Ranking(const RankCall& call)
      : call_(call),
        ops_(call.ops),
        view_(call.view),
        query_(call.query),
        options_(call.options),
        s_(call.scratch),
        sentences_padded_(padded_to_16(view_.sentence_count)) {
    if (view_.kind == IndexKind::kMean) {
      runs_per_block_ = 1;
      run_tokens_ = static_cast<float>(view_.block_tokens);
    } else {
      runs_per_block_ = view_.block_tokens / view_.run_tokens;
      run_tokens_ = static_cast<float>(view_.run_tokens);
    }
  }

  void run() {
    s_.reserve(view_.sentence_count, view_.end_block, view_.end_block * runs_per_block_,
               query_.query_count, view_.k_dim, query_.row_count);
    recent_first_ = call_.recent_first();
    sink_end_ = call_.sink_end();
    full_scan_ = view_.kind == IndexKind::kMean ||
                 view_.end_block <= std::max(options_.full_scan_blocks, options_.coarse_blocks);
    scale_queries();
    scan_coarse();
    if (!full_scan_) count_blocks();
    for (uint32_t i = 0; i < query_.row_count; ++i) {
      choose_sentences(i);
      list_blocks(s_.rows[i]);
    }
    place_logits();
    if (view_.kind == IndexKind::kMean) {
      for (uint32_t i = 0; i < query_.row_count; ++i) take_means(i);
    } else {
      scan_fine();
    }
    for (uint32_t i = 0; i < query_.row_count; ++i) {
      score(i);
      s_.results[i] = result(s_.rows[i]);
    }
  }

 private:
  void scale_queries() {
    const float factor = query_.softmax_scale * kLog2E;
    const size_t count = size_t{call_.queries()} * view_.k_dim;
    for (size_t i = 0; i < count; ++i) {
      s_.query[i] = query_.queries[i] * factor;
    }
    const size_t padded = padded_to_line(view_.k_dim);
    for (uint32_t q = 0; q < call_.queries(); ++q) {
      const float* query = s_.query.data() + size_t{q} * view_.k_dim;
      line_query(query, view_.k_dim, s_.query_lines.data() + q * padded);
      if (!full_scan_) {
        s_.query_factors[q] =
            squares_to_steps(query, view_.k_dim, s_.query_steps.data() + size_t{q} * view_.k_dim);
      }
    }
  }

  void scan_coarse() {
    CoarseJob job;
    job.k_dim = view_.k_dim;
    job.kind = view_.kind;
    job.query = s_.query.data();
    job.square_steps = full_scan_ ? nullptr : s_.query_steps.data();
    job.square_values = s_.query_factors.data();
    job.query_count = call_.queries();
    job.stride = sentences_padded_;
    for (uint32_t first = 0; first < view_.sentence_count; first += kPageSentences) {
      const uint32_t count = std::min(view_.sentence_count - first, kPageSentences);
      const std::byte* const* page = view_.pages + first / kPageSentences;
      job.area = *page + view_.area_offset;
      job.next = first + count < view_.sentence_count ? page[1] + view_.area_offset : nullptr;
      job.tile_count = padded_to_16(count) / kTileSentences;
      job.mean_dots = s_.mean_dots.data() + first;
      job.coarse = s_.coarse.data() + first;
      ops_.coarse(job);
    }
  }

  // Lists the sentences that the fine stage reads for a row, and leaves in its part of s_.coarse
  // and in row.counts only the others.
  void choose_sentences(uint32_t row_index) {
    RankRow& row = s_.rows[row_index];
    row.fine_count = 0;
    row.full_scan = full_scan_;
    if (full_scan_) {
      for (uint32_t i = 0; i < view_.sentence_count; ++i) row.sentences[row.fine_count++] = i;
      return;
    }
    float* counts = row.counts.data();
    for (uint32_t i = 0; i < view_.sentence_count; ++i) {
      counts[i] = static_cast<float>(s_.block_counts[i] * view_.block_tokens);
    }
    pad(counts, 0.0F);
    std::fill_n(s_.shares.data(), sentences_padded_, 0.0F);
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      float* coarse = coarse_of(row_index, q);
      pad(coarse, kLogitNone);
      const float max = ops_.max_of(coarse, sentences_padded_);
      const float sum = ops_.weigh(coarse, counts, max, sentences_padded_, s_.weights.data());
      ops_.add(s_.weights.data(), RankCall::share_factor(max, sum), options_.reduction,
               sentences_padded_, s_.shares.data());
    }
    const uint32_t free_count = free_end_ - free_first_;
    uint8_t* taken = s_.taken.data();
    select_best({s_.shares.data() + free_first_, free_count}, s_.block_counts.data() + free_first_,
                options_.coarse_blocks, {taken, free_count}, s_.select.work);
    uint32_t* chosen = row.sentences.data();
    uint32_t chosen_count = 0;
    for (uint32_t i = 0; i < free_first_; ++i) chosen[chosen_count++] = i;
    for (uint32_t i = 0; i < free_count; ++i) {
      chosen[chosen_count] = free_first_ + i;
      chosen_count += taken[i];
    }
    for (uint32_t i = free_end_; i < view_.sentence_count; ++i) chosen[chosen_count++] = i;
    for (uint32_t i = 0; i < chosen_count; ++i) counts[chosen[i]] = 0.0F;
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      float* coarse = coarse_of(row_index, q);
      for (uint32_t i = 0; i < chosen_count; ++i) coarse[chosen[i]] = kLogitNone;
    }
    row.fine_count = chosen_count;
    row.full_scan = chosen_count == view_.sentence_count;
  }

  // The sentences that are read finely in any case are the first and the last: [free_first_,
  // free_end_) are to be chosen from.
  void count_blocks() {
    const uint32_t count = view_.sentence_count;
    for (uint32_t i = 0; i < count; ++i) s_.block_counts[i] = view_.sentences[i].block_count;
    const auto holds_recent = [this](const RankSentence& at) {
      return at.first_block + at.block_count > recent_first_;
    };
    free_first_ = 0;
    while (free_first_ < count && view_.sentences[free_first_].first_block < sink_end_) {
      ++free_first_;
    }
    free_end_ = count;
    while (free_end_ > free_first_ && holds_recent(view_.sentences[free_end_ - 1])) --free_end_;
  }

  void list_blocks(RankRow& row) const {
    uint32_t* blocks = row.blocks.data();
    uint32_t* sentences = row.block_sentences.data();
    uint32_t count = 0;
    for (uint32_t i = 0; i < row.fine_count; ++i) {
      const uint32_t sentence = row.sentences[i];
      const RankSentence& at = view_.sentences[sentence];
      // By fours: what is too much is written over by the next.
      for (uint32_t block = 0; block < at.block_count; block += 4) {
        for (uint32_t j = 0; j < 4; ++j) {
          blocks[count + block + j] = at.first_block + block + j;
          sentences[count + block + j] = sentence;
        }
      }
      count += at.block_count;
    }
    row.block_count = count;
  }

  // Where the logits of each row's runs go. kMean has one for each block: what its mean says.
  void place_logits() {
    size_t first = 0;
    for (uint32_t i = 0; i < query_.row_count; ++i) {
      RankRow& row = s_.rows[i];
      row.logits_first = first;
      row.logits_stride = padded_to_16(row.block_count * runs_per_block_) + kFlatRoom;
      first += query_.query_count * row.logits_stride;
    }
  }

  // Fills the logits of every row. A sentence that several rows chose is read for all of them while
  // it is in the nearest cache.
  void scan_fine() {
    struct Place {
      uint32_t fine = 0;
      uint32_t block = 0;
    };
    Place places[kRankQueriesMax];
    const uint32_t padded = padded_to_line(view_.k_dim);
    for (;;) {
      uint32_t sentence = view_.sentence_count;
      for (uint32_t i = 0; i < query_.row_count; ++i) {
        const RankRow& row = s_.rows[i];
        if (places[i].fine < row.fine_count) {
          sentence = std::min(sentence, row.sentences[places[i].fine]);
        }
      }
      if (sentence == view_.sentence_count) return;
      FineJob job = fine_job(sentence);
      for (uint32_t i = 0; i < query_.row_count; ++i) {
        const RankRow& row = s_.rows[i];
        Place& at = places[i];
        if (at.fine == row.fine_count || row.sentences[at.fine] != sentence) continue;
        ++at.fine;
        job.query_lines = s_.query_lines.data() + size_t{i} * query_.query_count * padded;
        job.mean_dots = mean_dots_of(i, 0) + sentence;
        job.logits = s_.logits.data() + row.logits_first + size_t{at.block} * runs_per_block_;
        job.logit_stride = row.logits_stride;
        const uint32_t ahead = at.fine + kSentencesAhead - 1;
        const uint32_t next = ahead < row.fine_count ? row.sentences[ahead] : sentence;
        job.next = fine_bytes(next);
        job.next_bytes = view_.k_dim * RankAreaLayout::fine_units(runs_of(next));
        ops_.fine(job);
        at.block += view_.sentences[sentence].block_count;
      }
    }
  }

  // Of one sentence; what depends on the row is still to be set.
  FineJob fine_job(uint32_t sentence) const {
    FineJob job;
    job.k_dim = view_.k_dim;
    job.query_count = query_.query_count;
    job.mean_stride = sentences_padded_;
    const uint32_t tile_bytes = RankAreaLayout::coarse_tile_bytes(view_.kind, view_.k_dim);
    const std::byte* area = view_.pages[sentence / kPageSentences] + view_.area_offset;
    const uint32_t in_page = sentence % kPageSentences;
    uint16_t scale_m = 0;
    std::memcpy(&scale_m,
                area + size_t{in_page / kTileSentences} * tile_bytes +
                    RankAreaLayout::scale_m(view_.k_dim) + size_t{in_page % kTileSentences} * 2,
                sizeof scale_m);
    job.fine = fine_bytes(sentence);
    job.scale_m = half_to_float(scale_m);
    job.runs = runs_of(sentence);
    return job;
  }

  uint32_t runs_of(uint32_t sentence) const {
    return run_count(view_.sentences[sentence].block_count, view_.block_tokens, view_.run_tokens);
  }

  const std::byte* fine_bytes(uint32_t sentence) const {
    return view_.pages[sentence / kPageSentences] + view_.area_offset +
           RankAreaLayout::fine(view_.kind, view_.k_dim) +
           size_t{view_.k_dim} * view_.sentences[sentence].fine_unit;
  }

  // kMean: every token of a sentence weighs as its mean does.
  void take_means(uint32_t row_index) {
    const RankRow& row = s_.rows[row_index];
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      const float* mean_dots = mean_dots_of(row_index, q);
      float* to = s_.logits.data() + row.logits_first + q * row.logits_stride;
      for (uint32_t i = 0; i < row.fine_count; ++i) {
        const uint32_t sentence = row.sentences[i];
        const uint32_t count = view_.sentences[sentence].block_count;
        std::fill_n(to, count, clean_logit(mean_dots[sentence]));
        to += count;
      }
    }
  }

  void score(uint32_t row_index) {
    RankRow& row = s_.rows[row_index];
    const uint32_t blocks = row.block_count;
    const uint32_t runs = blocks * runs_per_block_;
    float factors[kRankQueriesMax];
    row.skipped_mass = 0.0F;
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      float* masses = s_.logits.data() + row.logits_first + q * row.logits_stride;
      const float* coarse = coarse_of(row_index, q);
      std::fill(masses + runs, masses + padded_to_16(runs), kLogitNone);
      float max = ops_.max_of(masses, padded_to_16(runs));
      float skipped = 0.0F;
      if (!row.full_scan) {
        max = std::max(max, ops_.max_of(coarse, sentences_padded_));
        skipped = ops_.weigh(coarse, row.counts.data(), max, sentences_padded_, s_.weights.data());
      }
      const float ranked = call_.flat_ops.masses(masses, max, runs, runs_per_block_, run_tokens_);
      const bool any = max != kLogitNone;
      const float sum = any ? ranked + skipped : 0.0F;
      factors[q] = RankCall::share_factor(max, sum);
      row.normalisers[q] = {any ? max : 0.0F, sum};
      reduce_into(row.skipped_mass, skipped * factors[q]);
    }
    call_.flat_ops.shares({s_.logits.data() + row.logits_first, row.logits_stride, factors,
                           query_.query_count, options_.reduction, blocks, row.scores.data()});
    if (options_.reduction == RankReduction::kMax || query_.query_count == 1) return;
    row.skipped_mass *= 1.0F / static_cast<float>(query_.query_count);
  }

  void reduce_into(float& total, float share) const {
    total = options_.reduction == RankReduction::kMean ? total + share : std::max(total, share);
  }

  void pad(float* values, float with) const {
    std::fill(values + view_.sentence_count, values + sentences_padded_, with);
  }

  float* coarse_of(uint32_t row, uint32_t query) const {
    return s_.coarse.data() +
           (size_t{row} * query_.query_count + query) * size_t{sentences_padded_};
  }
  const float* mean_dots_of(uint32_t row, uint32_t query) const {
    return s_.mean_dots.data() +
           (size_t{row} * query_.query_count + query) * size_t{sentences_padded_};
  }

  RankResult result(const RankRow& row) const {
    RankResult result;
    result.blocks = {row.blocks.data(), row.block_count};
    result.scores = {row.scores.data(), row.block_count};
    result.block_sentences = {row.block_sentences.data(), row.block_count};
    result.sentences = {row.sentences.data(), row.fine_count};
    result.normalisers = {row.normalisers.data(), query_.query_count};
    result.skipped_mass = row.skipped_mass;
    result.full_scan = row.full_scan;
    result.end_block = view_.end_block;
    result.sink_end = sink_end_;
    result.recent_first = recent_first_;
    return result;
  }

  const RankCall& call_;
  const RankOps& ops_;
  const RankView& view_;
  const RankQuery& query_;
  const RankOptions& options_;
  RankScratch& s_;
  uint32_t sentences_padded_;
  uint32_t runs_per_block_;
  float run_tokens_;
  uint32_t sink_end_ = 0;
  uint32_t recent_first_ = 0;
  uint32_t free_first_ = 0;
  uint32_t free_end_ = 0;
  bool full_scan_ = true;
};

std::span<const RankResult> rank_with(const RankOps& ops,
                                      const FlatOps& flat_ops,
                                      const SketchOps& sketch_ops,
                                      const RankView& view,
                                      const RankQuery& query,
                                      const RankOptions& options,
                                      RankScratch& scratch) {
  const uint64_t queries = uint64_t{query.query_count} * query.row_count;
  SKV_CHECK(queries >= 1 && queries <= kRankQueriesMax, "1 to 64 queries in a call");
  const FloatEnvironment environment;
  const RankCall call{ops, flat_ops, sketch_ops, view, query, options, scratch};
  if (is_flat(view.kind)) {
    rank_flat(call);
  } else {
    Ranking(call).run();
  }
  return {scratch.results.data(), query.row_count};
}

}  // namespace

float RankCall::share_factor(float max, float sum) { return max == kLogitNone ? 0.0F : 1.0F / sum; }

RankResult rank_simd(const RankView& view,
                     const RankQuery& query,
                     const RankOptions& options,
                     RankScratch& scratch) {
  return rank_with(simd_ops(), simd_flat_ops(), simd_sketch_ops(), view, query, options, scratch)
      .front();
}

RankResult rank(const RankView& view,
                const RankQuery& query,
                const RankOptions& options,
                RankScratch& scratch) {
  return rank_simd(view, query, options, scratch);
}

RankResult rank_reference(const RankView& view,
                          const RankQuery& query,
                          const RankOptions& options,
                          RankScratch& scratch) {
  return rank_rows_reference(view, query, options, scratch).front();
}

std::span<const RankResult> rank_rows(const RankView& view,
                                      const RankQuery& query,
                                      const RankOptions& options,
                                      RankScratch& scratch) {
  return rank_with(simd_ops(), simd_flat_ops(), simd_sketch_ops(), view, query, options, scratch);
}

std::span<const RankResult> rank_rows_reference(const RankView& view,
                                                const RankQuery& query,
                                                const RankOptions& options,
                                                RankScratch& scratch) {
  return rank_with(reference_ops(), reference_flat_ops(), reference_sketch_ops(), view, query,
                   options, scratch);
}

}  // namespace skv
