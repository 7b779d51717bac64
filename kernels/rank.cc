#include "kernels/rank.h"

#include <algorithm>
#include <cstring>

#include "ipc/layout/half.h"
#include "ipc/types/check.h"
#include "kernels/cut.h"
#include "kernels/float_environment.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"

namespace skv {
namespace {

constexpr uint32_t padded(uint32_t count) { return (count + 15) / 16 * 16; }

// A vector as memory that only grows.
template <typename T>
T* room(std::vector<T>& memory, size_t count) {
  if (memory.size() < count) memory.resize(count);
  return memory.data();
}

// One call of rank. Steps in the order of kernels/README.md.
class Ranking {
 public:
  Ranking(const RankOps& ops,
          const RankView& view,
          const RankQuery& query,
          const RankOptions& options,
          RankScratch& scratch)
      : ops_(ops),
        view_(view),
        query_(query),
        options_(options),
        s_(scratch),
        sentences_padded_(padded(view.sentence_count)) {}

  RankResult run() {
    s_.reserve(view_.sentence_count, view_.end_block, query_.query_count, view_.k_dim);
    recent_first_ = view_.end_block - std::min(options_.recent_blocks, view_.end_block);
    sink_end_ = std::min(options_.sink_blocks, view_.end_block);
    full_scan_ = view_.kind == IndexKind::kMean ||
                 view_.end_block <= std::max(options_.full_scan_blocks, options_.coarse_blocks);
    scale_queries();
    scan_coarse();
    choose_sentences();
    list_blocks();
    if (view_.kind == IndexKind::kMean) {
      take_means();
    } else {
      scan_fine();
    }
    score();
    return result();
  }

 private:
  void scale_queries() {
    const float factor = query_.softmax_scale * kLog2E;
    const size_t count = size_t{query_.query_count} * view_.k_dim;
    for (size_t i = 0; i < count; ++i) {
      s_.query[i] = query_.queries[i] * factor;
      s_.query_square[i] = s_.query[i] * s_.query[i];
    }
  }

  void scan_coarse() {
    CoarseJob job;
    job.k_dim = view_.k_dim;
    job.kind = view_.kind;
    job.query = s_.query.data();
    job.query_square = full_scan_ ? nullptr : s_.query_square.data();
    job.query_count = query_.query_count;
    job.stride = sentences_padded_;
    for (uint32_t first = 0; first < view_.sentence_count; first += kPageSentences) {
      const uint32_t count = std::min(view_.sentence_count - first, kPageSentences);
      job.area = view_.pages[first / kPageSentences] + view_.area_offset;
      job.tile_count = padded(count) / kTileSentences;
      job.mean_dots = s_.mean_dots.data() + first;
      job.coarse = s_.coarse.data() + first;
      ops_.coarse(job);
    }
  }

  // Marks in s_.taken the sentences that the fine stage reads, lists them, and leaves in s_.coarse
  // and s_.counts only the others.
  void choose_sentences() {
    fine_count_ = 0;
    if (full_scan_) {
      for (uint32_t i = 0; i < view_.sentence_count; ++i) s_.sentences[fine_count_++] = i;
      return;
    }
    for (uint32_t i = 0; i < view_.sentence_count; ++i) {
      s_.counts[i] = static_cast<float>(view_.sentences[i].block_count * view_.block_tokens);
      s_.block_counts[i] = always_fine(i) ? 0 : view_.sentences[i].block_count;
    }
    pad(s_.counts.data(), 0.0F);
    std::fill_n(s_.shares.data(), sentences_padded_, 0.0F);
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      float* coarse = s_.coarse.data() + size_t{q} * sentences_padded_;
      pad(coarse, kLogitNone);
      const float max = ops_.max_of(coarse, sentences_padded_);
      const float sum =
          ops_.weigh(coarse, s_.counts.data(), max, sentences_padded_, s_.weights.data());
      ops_.add(s_.weights.data(), share_factor(max, sum), options_.reduction, sentences_padded_,
               s_.shares.data());
    }
    select_best({s_.shares.data(), view_.sentence_count}, s_.block_counts.data(),
                options_.coarse_blocks, {s_.taken.data(), view_.sentence_count}, s_.histogram);
    for (uint32_t i = 0; i < view_.sentence_count; ++i) {
      if (s_.taken[i] == 0 && !always_fine(i)) continue;
      s_.sentences[fine_count_++] = i;
      s_.counts[i] = 0.0F;
      for (uint32_t q = 0; q < query_.query_count; ++q) {
        s_.coarse[size_t{q} * sentences_padded_ + i] = kLogitNone;
      }
    }
    full_scan_ = fine_count_ == view_.sentence_count;
  }

  void list_blocks() {
    block_count_ = 0;
    for (uint32_t i = 0; i < fine_count_; ++i) {
      const uint32_t sentence = s_.sentences[i];
      const RankSentence& at = view_.sentences[sentence];
      for (uint32_t block = 0; block < at.block_count; ++block) {
        s_.blocks[block_count_] = at.first_block + block;
        s_.block_sentences[block_count_++] = sentence;
      }
    }
    fine_padded_ = padded(fine_count_);
  }

  // Fills s_.fine_max [query][fine sentence] and s_.block_sums [query][block].
  void scan_fine() {
    FineJob job;
    job.k_dim = view_.k_dim;
    job.runs_per_block = view_.block_tokens / view_.run_tokens;
    job.run_tokens = static_cast<float>(view_.run_tokens);
    job.query = s_.query.data();
    job.query_count = query_.query_count;
    job.query_scale = s_.query_scale.data();
    job.mean_stride = sentences_padded_;
    job.max_stride = fine_padded_;
    job.sum_stride = block_count_;
    const uint32_t tile_bytes = RankAreaLayout::coarse_tile_bytes(view_.kind, view_.k_dim);
    uint32_t first_block = 0;
    for (uint32_t i = 0; i < fine_count_; ++i) {
      const uint32_t sentence = s_.sentences[i];
      const RankSentence& at = view_.sentences[sentence];
      const std::byte* area = view_.pages[sentence / kPageSentences] + view_.area_offset;
      const uint32_t in_page = sentence % kPageSentences;
      uint16_t scale_m = 0;
      std::memcpy(&scale_m,
                  area + size_t{in_page / kTileSentences} * tile_bytes +
                      RankAreaLayout::scale_m(view_.k_dim) + size_t{in_page % kTileSentences} * 2,
                  sizeof scale_m);
      job.fine =
          area + RankAreaLayout::fine(view_.kind, view_.k_dim) + size_t{view_.k_dim} * at.fine_unit;
      job.scale_m = half_to_float(scale_m);
      job.runs = run_count(at.block_count, view_.block_tokens, view_.run_tokens);
      job.mean_dots = s_.mean_dots.data() + sentence;
      job.sentence_max = s_.fine_max.data() + i;
      job.block_sums = s_.block_sums.data() + first_block;
      ops_.fine(job);
      first_block += at.block_count;
    }
  }

  // kMean: every token of a sentence weighs as its mean does.
  void take_means() {
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      for (uint32_t i = 0; i < fine_count_; ++i) {
        s_.fine_max[size_t{q} * fine_padded_ + i] =
            clean_logit(s_.mean_dots[size_t{q} * sentences_padded_ + i]);
      }
      std::fill_n(s_.block_sums.data() + size_t{q} * block_count_, block_count_,
                  static_cast<float>(view_.block_tokens));
    }
  }

  void score() {
    std::fill_n(s_.scores.data(), block_count_, 0.0F);
    skipped_mass_ = 0.0F;
    for (uint32_t q = 0; q < query_.query_count; ++q) {
      float* fine_max = s_.fine_max.data() + size_t{q} * fine_padded_;
      const float* sums = s_.block_sums.data() + size_t{q} * block_count_;
      const float* coarse = s_.coarse.data() + size_t{q} * sentences_padded_;
      sum_sentences(sums);
      std::fill(fine_max + fine_count_, fine_max + fine_padded_, kLogitNone);
      float max = ops_.max_of(fine_max, fine_padded_);
      if (!full_scan_) max = std::max(max, ops_.max_of(coarse, sentences_padded_));
      float skipped = 0.0F;
      if (!full_scan_) {
        skipped = ops_.weigh(coarse, s_.counts.data(), max, sentences_padded_, s_.weights.data());
      }
      const float ranked =
          ops_.weigh(fine_max, s_.sentence_sums.data(), max, fine_padded_, s_.weights.data());
      const float sum = max == kLogitNone ? 0.0F : ranked + skipped;
      const float factor = share_factor(max, sum);
      s_.normalisers[q] = {max == kLogitNone ? 0.0F : max, sum};
      reduce_into(skipped_mass_, skipped * factor);
      uint32_t block = 0;
      for (uint32_t i = 0; i < fine_count_; ++i) {
        const float share = s_.weights[i] * factor;
        const uint32_t end = block + view_.sentences[s_.sentences[i]].block_count;
        for (; block < end; ++block) reduce_into(s_.scores[block], sums[block] * share);
      }
    }
    if (options_.reduction == RankReduction::kMax) return;
    const float group = 1.0F / static_cast<float>(query_.query_count);
    for (uint32_t block = 0; block < block_count_; ++block) s_.scores[block] *= group;
    skipped_mass_ *= group;
  }

  // Per fine sentence, its block sums added in ascending order.
  void sum_sentences(const float* sums) {
    uint32_t block = 0;
    for (uint32_t i = 0; i < fine_count_; ++i) {
      const uint32_t end = block + view_.sentences[s_.sentences[i]].block_count;
      float total = 0.0F;
      for (; block < end; ++block) total = total + sums[block];
      s_.sentence_sums[i] = total;
    }
    std::fill(s_.sentence_sums.data() + fine_count_, s_.sentence_sums.data() + fine_padded_, 0.0F);
  }

  void reduce_into(float& total, float share) const {
    total = options_.reduction == RankReduction::kMean ? total + share : std::max(total, share);
  }

  // What turns weights into shares; 0 where no logit counts.
  static float share_factor(float max, float sum) { return max == kLogitNone ? 0.0F : 1.0F / sum; }

  bool always_fine(uint32_t sentence) const {
    const RankSentence& at = view_.sentences[sentence];
    return at.first_block < sink_end_ || at.first_block + at.block_count > recent_first_;
  }

  void pad(float* values, float with) const {
    std::fill(values + view_.sentence_count, values + sentences_padded_, with);
  }

  RankResult result() const {
    RankResult result;
    result.blocks = {s_.blocks.data(), block_count_};
    result.scores = {s_.scores.data(), block_count_};
    result.block_sentences = {s_.block_sentences.data(), block_count_};
    result.sentences = {s_.sentences.data(), fine_count_};
    result.normalisers = {s_.normalisers.data(), query_.query_count};
    result.skipped_mass = skipped_mass_;
    result.full_scan = full_scan_;
    result.end_block = view_.end_block;
    result.sink_end = sink_end_;
    result.recent_first = recent_first_;
    return result;
  }

  const RankOps& ops_;
  const RankView& view_;
  const RankQuery& query_;
  const RankOptions& options_;
  RankScratch& s_;
  uint32_t sentences_padded_;
  uint32_t sink_end_ = 0;
  uint32_t recent_first_ = 0;
  bool full_scan_ = true;
  uint32_t fine_count_ = 0;
  uint32_t fine_padded_ = 0;
  uint32_t block_count_ = 0;
  float skipped_mass_ = 0.0F;
};

}  // namespace

// The widest first. NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
void RankScratch::reserve(uint32_t sentence_count,
                          uint32_t block_total,
                          uint32_t query_count,
                          uint32_t k_dim) {
  const size_t sentence_room = padded(sentence_count);
  const size_t queries = query_count;
  // A vector of 16 channels may reach 8 past the last row.
  room(query, queries * k_dim + 8);
  room(query_square, queries * k_dim);
  room(query_scale, queries * k_dim + 8);
  room(mean_dots, queries * sentence_room);
  room(coarse, queries * sentence_room);
  room(fine_max, queries * sentence_room);
  room(block_sums, queries * block_total);
  room(sentence_sums, sentence_room);
  room(counts, sentence_room);
  room(shares, sentence_room);
  room(weights, sentence_room);
  room(scores, block_total);
  room(blocks, block_total);
  room(block_sentences, block_total);
  room(sentences, sentence_room);
  room(block_counts, sentence_room);
  room(taken, sentence_room);
  room(normalisers, queries);
  room(histogram, kSelectHistogram);
}

RankResult rank_with(const RankOps& ops,
                     const RankView& view,
                     const RankQuery& query,
                     const RankOptions& options,
                     RankScratch& scratch) {
  SKV_CHECK(query.query_count >= 1, "a query");
  const FloatEnvironment environment;
  return Ranking(ops, view, query, options, scratch).run();
}

RankResult rank(const RankView& view,
                const RankQuery& query,
                const RankOptions& options,
                RankScratch& scratch) {
  return rank_with(simd_ops(), view, query, options, scratch);
}

RankResult rank_simd(const RankView& view,
                     const RankQuery& query,
                     const RankOptions& options,
                     RankScratch& scratch) {
  return rank_with(simd_ops(), view, query, options, scratch);
}

RankResult rank_reference(const RankView& view,
                          const RankQuery& query,
                          const RankOptions& options,
                          RankScratch& scratch) {
  return rank_with(reference_ops(), view, query, options, scratch);
}

}  // namespace skv
