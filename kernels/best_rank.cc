// Ranking of a flat kind where only the best blocks are asked for: bounds from the sketches of all
// runs, logits of the few blocks whose bound reaches the best. kernels/README.md, "The best only".
#include <algorithm>

#include "kernels/cut_ops.h"
#include "kernels/flat_pages.h"
#include "kernels/rank_math.h"
#include "kernels/rank_memory.h"

namespace skv {
namespace {

// Roundings on the way from two logits to two scores, of fp32 numbers of up to 125, cannot turn
// masses round that are this far apart.
constexpr float kMassMargin = 1.0F - 0x1p-12F;
// Scores are masses times a common factor, whose rounding may make two equal that are closer. If
// the masses are not beside the same largest logit as a full scan's, that rounds them too.
constexpr float kScoreMargin = 0x1p-21F;
constexpr float kOtherMaxMargin = 0x1p-15F;
constexpr float kMassMin = 0x1p-90F;  // below, of the largest: scores might be subnormal, or 0
// Above this share of the blocks, a full scan is as fast.
constexpr uint32_t kBlocksPerCandidate = 4;

uint32_t runs_per_block(const RankView& view) { return view.block_tokens / view.run_tokens; }

// One row. Blocks are absolute.
class BestRow {
 public:
  BestRow(const RankCall& call, const float* query, uint32_t row_index)
      : call_(call),
        view_(call.view),
        s_(call.scratch),
        row_(call.scratch.rows[row_index]),
        query_(query),
        runs_(runs_per_block(call.view)),
        first_(call.sink_end()),
        end_(std::max(call.sink_end(), call.recent_first())) {}

  // `bounds` of all runs, of which `largest` is the largest. False: what was found is not certain
  // to be what a full scan finds.
  bool run(float* bounds, float largest, RankResult& result) {
    if (!(largest <= kLogitMax)) return false;
    spread_query(query_, view_.k_dim, first_line(s_.query_spread));
    call_.flat_ops.masses(bounds, largest, view_.end_block * runs_, runs_, run_tokens());
    const uint32_t guessed = guess(bounds);
    const float threshold = least_of_guessed(guessed, largest) * kMassMargin;
    if (!(threshold >= kMassMin * run_tokens())) return false;
    if (!list_candidates(bounds, threshold)) return false;
    join_logits(guessed);
    return finish(bounds, largest, threshold, result);
  }

 private:
  float run_tokens() const { return static_cast<float>(view_.run_tokens); }

  // The best by their bounds, in s_.guesses, with their logits in s_.guess_logits.
  uint32_t guess(const float* masses) {
    const std::span<const float> ranked{masses + first_, end_ - first_};
    s_.select.reserve(end_ - first_);
    const uint32_t count = select_largest(ranked, call_.options.best_blocks, s_.select);
    for (uint32_t i = 0; i < count; ++i) s_.guesses[i] = s_.select.chosen[i] + first_;
    read_logits(s_.guesses.data(), count, s_.guess_logits.data());
    return count;
  }

  // So many blocks have at least this mass, beside a run at `largest`.
  float least_of_guessed(uint32_t count, float largest) {
    float* masses = s_.candidate_logits.data();
    std::copy_n(s_.guess_logits.data(), size_t{count} * runs_, masses);
    call_.flat_ops.masses(masses, largest, count * runs_, runs_, run_tokens());
    return *std::min_element(masses, masses + count);
  }

  // Sinks, all whose bound reaches the threshold (so all that were guessed), recents: row_.blocks.
  bool list_candidates(const float* masses, float threshold) {
    uint32_t* blocks = row_.blocks.data();
    uint32_t count = 0;
    for (uint32_t block = 0; block < first_; ++block) blocks[count++] = block;
    const auto found = static_cast<uint32_t>(
        simd_cut_ops().collect(masses + first_, end_ - first_, threshold, s_.select.chosen.data()));
    if (found > (end_ - first_) / kBlocksPerCandidate) return false;
    candidates_ = found;
    for (uint32_t i = 0; i < found; ++i) blocks[count++] = s_.select.chosen[i] + first_;
    for (uint32_t block = end_; block < view_.end_block; ++block) blocks[count++] = block;
    row_.block_count = count;
    return true;
  }

  // Logits of row_.blocks to s_.candidate_logits; those of the guessed are there already.
  void join_logits(uint32_t guessed) {
    uint32_t* others = s_.others.data();
    uint32_t other_count = 0;
    const auto each = [&](auto&& is_guess, auto&& is_other) {
      for (uint32_t i = 0, g = 0; i < row_.block_count; ++i) {
        if (g < guessed && s_.guesses[g] == row_.blocks[i]) {
          is_guess(i, g++);
        } else {
          is_other(i);
        }
      }
    };
    each([](uint32_t, uint32_t) {}, [&](uint32_t i) { others[other_count++] = row_.blocks[i]; });
    float* other_logits = s_.guess_logits.data() + size_t{guessed} * runs_;
    read_logits(others, other_count, other_logits);
    float* to = s_.candidate_logits.data();
    each(
        [&](uint32_t i, uint32_t g) {
          std::copy_n(s_.guess_logits.data() + size_t{g} * runs_, runs_, to + size_t{i} * runs_);
        },
        [&](uint32_t i) {
          std::copy_n(other_logits, runs_, to + size_t{i} * runs_);
          other_logits += runs_;
        });
  }

  bool finish(float* bounds, float largest, float threshold, RankResult& result) {
    float* logits = s_.candidate_logits.data();
    const uint32_t count = row_.block_count;
    const float max = *std::max_element(logits, logits + size_t{count} * runs_);
    if (max == kLogitNone || max - largest < kExp2Min) return false;
    // A block with a larger one would be here. Where a run is a block, that is always so.
    const bool is_max = exp2_of(max - largest) * run_tokens() * kMassMargin >= threshold;
    const float sum = call_.flat_ops.masses(logits, max, count * runs_, runs_, run_tokens());
    if (!order_is_certain(logits + first_, is_max ? kScoreMargin : kOtherMaxMargin)) return false;
    const float rest = rest_of(bounds) / exp2_of(max - largest);
    const float total = sum + rest;
    const float factor = RankCall::share_factor(max, total);
    call_.flat_ops.first_share(logits, factor, count, row_.scores.data());
    row_.normalisers[0] = {max, total};
    list_sentences();
    result = {};
    result.blocks = {row_.blocks.data(), count};
    result.scores = {row_.scores.data(), count};
    result.block_sentences = {row_.block_sentences.data(), count};
    result.sentences = {row_.sentences.data(), row_.fine_count};
    result.normalisers = {row_.normalisers.data(), 1};
    result.skipped_mass = rest * factor;
    result.full_scan = false;
    result.end_block = view_.end_block;
    result.sink_end = call_.sink_end();
    result.recent_first = call_.recent_first();
    return true;
  }

  // No mass but an equal one is so near the last that is taken that rounding the scores of a full
  // scan might turn to the index instead.
  bool order_is_certain(const float* masses, float margin) {
    const std::span<const float> ranked{masses, candidates_};
    const uint32_t taken = select_largest(ranked, call_.options.best_blocks, s_.select);
    float last = masses[s_.select.chosen[0]];
    for (uint32_t i = 1; i < taken; ++i) last = std::min(last, masses[s_.select.chosen[i]]);
    return last >= kMassMin &&
           std::none_of(ranked.begin(), ranked.end(), [last, margin](float mass) {
             return mass != last && std::abs(mass - last) <= last * margin;
           });
  }

  // At most so much is the mass of the blocks that are not in row_.blocks.
  float rest_of(float* masses) const {
    for (uint32_t i = 0; i < row_.block_count; ++i) masses[row_.blocks[i]] = 0.0F;
    const uint32_t padded = padded_to_16(view_.end_block);
    std::fill(masses + view_.end_block, masses + padded, 0.0F);
    float lanes[16] = {};
    simd_cut_ops().add_lanes(masses, padded, lanes);
    return sum_of_lanes(lanes);
  }

  void list_sentences() {
    row_.fine_count = 0;
    uint32_t sentence = 0;
    for (uint32_t i = 0; i < row_.block_count; ++i) {
      const RankSentence* const end = view_.sentences + view_.sentence_count;
      const RankSentence* after = std::upper_bound(
          view_.sentences + sentence, end, row_.blocks[i],
          [](uint32_t block, const RankSentence& s) { return block < s.first_block; });
      sentence = static_cast<uint32_t>(after - view_.sentences) - 1;
      row_.block_sentences[i] = sentence;
      if (row_.fine_count == 0 || row_.sentences[row_.fine_count - 1] != sentence) {
        row_.sentences[row_.fine_count++] = sentence;
      }
    }
  }

  // [block][run], of blocks that ascend. Each piece of a tile is read once.
  void read_logits(const uint32_t* blocks, uint32_t count, float* to) {
    constexpr uint32_t kAtOnce = 64;
    const std::byte* pieces[kAtOnce];
    float logits[(kAtOnce + 1) * kPieceRuns];
    struct Part {  // of a block in one piece
      uint32_t piece;
      uint32_t lane;
    };
    Part parts[kAtOnce];
    const uint32_t piece_bytes = FlatAreaLayout::piece_bytes(view_.k_dim);
    const uint32_t part_runs = std::min(runs_, kPieceRuns);
    uint32_t part_count = 0;
    PieceJob job;
    job.pieces = pieces;
    job.kind = view_.kind;
    job.k_dim = view_.k_dim;
    job.query = query_;
    job.spread = first_line(s_.query_spread);
    job.logits = logits;
    const auto flush = [&] {
      call_.sketch_ops.logits(job);
      for (uint32_t i = 0; i < part_count; ++i, to += part_runs) {
        std::copy_n(logits + size_t{parts[i].piece} * kPieceRuns + parts[i].lane, part_runs, to);
      }
      job.count = 0;
      part_count = 0;
    };
    uint32_t page = 0;
    for (uint32_t i = 0; i < count; ++i) {
      while ((page + 1) * kPageSentences < view_.sentence_count &&
             view_.sentences[(page + 1) * kPageSentences].first_block <= blocks[i]) {
        ++page;
      }
      const uint32_t first_run =
          (blocks[i] - view_.sentences[page * kPageSentences].first_block) * runs_;
      for (uint32_t run = first_run; run < first_run + runs_; run += part_runs) {
        const std::byte* piece =
            view_.pages[page] + view_.area_offset + size_t{run / kPieceRuns} * piece_bytes;
        if (part_count == kAtOnce) flush();
        if (job.count == 0 || pieces[job.count - 1] != piece) pieces[job.count++] = piece;
        parts[part_count++] = {static_cast<uint32_t>(job.count) - 1, run % kPieceRuns};
      }
    }
    flush();
  }

  const RankCall& call_;
  const RankView& view_;
  RankScratch& s_;
  RankRow& row_;
  const float* query_;
  uint32_t runs_;   // of a block
  uint32_t first_;  // blocks [first_, end_) are neither sinks nor recents
  uint32_t end_;
  uint32_t candidates_ = 0;
};

void bound_pages(const RankCall& call, const SketchQuery* queries, size_t stride) {
  const RankView& view = call.view;
  SketchJob job;
  job.at = {view.k_dim, FlatAreaLayout::runs_max(view.run_tokens)};
  job.steps = call.scratch.query_steps.data();
  job.queries = queries;
  job.query_count = call.queries();
  job.stride = stride;
  job.maxima = call.scratch.maxima.data();
  std::fill_n(job.maxima, job.query_count, kLogitNone);
  for (uint32_t first = 0; first < view.sentence_count; first += kPageSentences) {
    const RankSentence& last =
        view.sentences[std::min(first + kPageSentences, view.sentence_count) - 1];
    const uint32_t first_block = view.sentences[first].first_block;
    job.sketch = view.pages[first / kPageSentences] + view.area_offset +
                 FlatAreaLayout::sketch(view.kind, view.k_dim, view.run_tokens);
    job.run_count = (last.first_block + last.block_count - first_block) * runs_per_block(view);
    job.bounds = call.scratch.logits.data() + size_t{first_block} * runs_per_block(view);
    call.sketch_ops.bounds(job);
  }
}

}  // namespace

bool wants_best(const RankCall& call) {
  const uint32_t exempt = call.sink_end() + call.options.recent_blocks;
  return call.options.best_blocks > 0 && call.query.query_count == 1 &&
         FlatAreaLayout::has_sketch(call.view.kind) && exempt < call.view.end_block &&
         (call.view.end_block - exempt) / (2 * kBlocksPerCandidate) >= call.options.best_blocks;
}

uint64_t rank_best(const RankCall& call) {
  const RankView& view = call.view;
  RankScratch& s = call.scratch;
  const uint32_t runs = view.end_block * runs_per_block(view);
  s.reserve_best(view.end_block, runs, view.sentence_count, view.k_dim, call.queries());
  const size_t stride = size_t{runs} + kFlatRoom;
  SketchQuery queries[kRankQueriesMax];
  const float scale = call.query.softmax_scale * kLog2E;
  uint64_t uncertain = 0;
  for (uint32_t i = 0; i < call.queries(); ++i) {
    float* query = s.query.data() + size_t{i} * view.k_dim;
    int8_t* steps = s.query_steps.data() + size_t{i} * view.k_dim;
    for (uint32_t d = 0; d < view.k_dim; ++d) {
      query[d] = call.query.queries[size_t{i} * view.k_dim + d] * scale;
    }
    if (sketch_query(query, view.k_dim, steps, queries[i])) continue;
    uncertain |= uint64_t{1} << i;
    queries[i] = {};
    std::fill_n(steps, view.k_dim, int8_t{0});
  }
  bound_pages(call, queries, stride);
  for (uint32_t i = 0; i < call.queries(); ++i) {
    if ((uncertain >> i & 1U) != 0) continue;
    BestRow row(call, s.query.data() + size_t{i} * view.k_dim, i);
    if (!row.run(s.logits.data() + i * stride, s.maxima[i], s.results[i])) {
      uncertain |= uint64_t{1} << i;
    }
  }
  return uncertain;
}

}  // namespace skv
