// Ranking of a flat kind where only the best blocks are asked for: bounds from the sketches of all
// runs, logits of the few blocks whose bound reaches the best. kernels/README.md, "The best only".
#include <algorithm>
#include <functional>

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

// Of a few runs, mostly one: a call would cost more.
float* copy_runs(const float* from, uint32_t count, float* to) {
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
  return to + count;
}

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

  // `bounds` of all runs, their peaks. False: what was found is not certain to be what a full scan
  // finds.
  bool run(const float* bounds, float* peaks, uint32_t peak_count, RankResult& result) {
    const float largest = call_.ops.max_of(peaks, peak_count);
    if (!(largest <= kLogitMax) || largest == kLogitNone) return false;
    spread_query(query_, view_.k_dim, first_line(s_.query_spread));
    call_.flat_ops.masses(peaks, largest, peak_count, runs_, run_tokens());
    const std::span<const float> sets{peaks, peak_count / runs_};
    const uint32_t guessed = guess(bounds, sets);
    if (guessed < call_.options.best_blocks) return false;
    const float threshold = mass_of_guessed(guessed, largest) * kMassMargin;
    if (!(threshold >= kMassMin * run_tokens())) return false;
    if (!list_candidates(bounds, sets, largest, threshold)) return false;
    join_logits(guessed);
    return finish(largest, threshold, result);
  }

 private:
  float run_tokens() const { return static_cast<float>(view_.run_tokens); }
  bool is_candidate(uint32_t block) const { return block >= first_ && block < end_; }

  // A set is as many lanes of the peaks as a block has runs: it bounds the masses of up to
  // kPeakTiles blocks, which `each` is told with where the bound of
  // its first run is; the others' are kPeakTiles apart. Sets ascend from call to call, as `page`
  // does.
  template <typename Each>
  void members(uint32_t set, uint32_t& page, const Each& each) const {
    const uint32_t peak = set * runs_;
    const uint32_t page_count = (view_.sentence_count + kPageSentences - 1) / kPageSentences;
    while (page + 1 < page_count && s_.best_pages[page + 1].first_peak <= peak) ++page;
    const RankScratch::BestPage& at = s_.best_pages[page];
    const uint32_t in_page = peak - at.first_peak;
    uint32_t run = in_page / kTileRuns * (kPeakTiles * kTileRuns) + in_page % kTileRuns;
    for (uint32_t i = 0; i < kPeakTiles && run < at.run_count; ++i, run += kTileRuns) {
      const uint32_t block = at.first_block + run / runs_;
      if (is_candidate(block)) each(block, peak * kPeakTiles + i);
    }
  }

  // Of `count` sets in s_.select.chosen, the members; bounds are asked for ahead.
  template <typename Each>
  void all_members(const float* bounds, uint32_t count, const Each& each) const {
    constexpr uint32_t kAhead = 16;
    uint32_t page = 0;
    for (uint32_t i = 0; i < count; ++i) {
      if (i + kAhead < count) {
        __builtin_prefetch(bounds + size_t{s_.select.chosen[i + kAhead]} * runs_ * kPeakTiles);
      }
      members(s_.select.chosen[i], page,
              [&](uint32_t block, size_t at) { each(i, block, bounds + at); });
    }
  }

  // Blocks that are likely to be among the best, one of each of the best sets, in s_.guesses with
  // their logits in s_.guess_logits.
  uint32_t guess(const float* bounds, std::span<const float> sets) {
    // Sets of sinks or recents alone have no member.
    const uint32_t exempt = view_.end_block - (end_ - first_);
    const uint32_t wanted = call_.options.best_blocks + (exempt + 1) / 2;
    const uint32_t count = select_largest(sets, wanted, s_.select);
    uint32_t guessed = 0;
    uint32_t last_set = count;
    float best = 0.0F;
    all_members(bounds, count, [&](uint32_t set, uint32_t block, const float* from) {
      float bound = from[0];
      for (uint32_t i = 1; i < runs_; ++i) bound = std::max(bound, from[i * kPeakTiles]);
      if (set == last_set && bound <= best) return;
      if (set != last_set) ++guessed;
      last_set = set;
      best = bound;
      s_.guesses[guessed - 1] = block;
    });
    std::sort(s_.guesses.begin(), s_.guesses.begin() + guessed);
    read_logits(s_.guesses.data(), guessed, s_.guess_logits.data());
    return guessed;
  }

  // As many blocks as are asked for have at least this mass, beside a run at `largest`.
  float mass_of_guessed(uint32_t count, float largest) {
    float* masses = s_.candidate_logits.data();
    std::copy_n(s_.guess_logits.data(), size_t{count} * runs_, masses);
    call_.flat_ops.masses(masses, largest, count * runs_, runs_, run_tokens());
    return last_of_best({masses, count});
  }
  // The least of the best, of at least as many as are asked for.
  float last_of_best(std::span<const float> masses) {
    float* copy = s_.member_masses.data();
    std::copy(masses.begin(), masses.end(), copy);
    float* last = copy + call_.options.best_blocks - 1;
    std::nth_element(copy, last, copy + masses.size(), std::greater<>());
    return *last;
  }

  // Sinks, all whose bound reaches the threshold, recents: row_.blocks.
  bool list_candidates(const float* bounds,
                       std::span<const float> sets,
                       float largest,
                       float threshold) {
    const auto found = static_cast<uint32_t>(
        simd_cut_ops().collect(sets.data(), sets.size(), threshold, s_.select.chosen.data()));
    uint32_t member_count = 0;
    float* masses = s_.member_masses.data();
    float* to = masses;
    all_members(bounds, found, [&](uint32_t, uint32_t block, const float* from) {
      s_.others[member_count++] = block;
      for (uint32_t i = 0; i < runs_; ++i) *to++ = from[i * kPeakTiles];
    });
    call_.flat_ops.masses(masses, largest, member_count * runs_, runs_, run_tokens());
    uint32_t* blocks = row_.blocks.data();
    uint32_t count = 0;
    for (uint32_t block = 0; block < first_; ++block) blocks[count++] = block;
    for (uint32_t i = 0; i < member_count; ++i) {
      if (masses[i] >= threshold) blocks[count++] = s_.others[i];
    }
    candidates_ = count - first_;
    if (candidates_ > (end_ - first_) / kBlocksPerCandidate) return false;
    std::sort(blocks + first_, blocks + count);
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
          copy_runs(s_.guess_logits.data() + size_t{g} * runs_, runs_, to + size_t{i} * runs_);
        },
        [&](uint32_t i) {
          copy_runs(other_logits, runs_, to + size_t{i} * runs_);
          other_logits += runs_;
        });
  }

  bool finish(float largest, float threshold, RankResult& result) {
    float* logits = s_.candidate_logits.data();
    const uint32_t count = row_.block_count;
    const float max = *std::max_element(logits, logits + size_t{count} * runs_);
    if (max == kLogitNone || max - largest < kExp2Min) return false;
    // A block with a larger one would be here. Where a run is a block, that is always so.
    const bool is_max = exp2_of(max - largest) * run_tokens() * kMassMargin >= threshold;
    const float sum = call_.flat_ops.masses(logits, max, count * runs_, runs_, run_tokens());
    if (!order_is_certain(logits + first_, is_max ? kScoreMargin : kOtherMaxMargin)) return false;
    const float factor = RankCall::share_factor(max, sum);
    call_.flat_ops.first_share(logits, factor, count, row_.scores.data());
    row_.normalisers[0] = {max, sum};
    list_sentences();
    result = {};
    result.blocks = {row_.blocks.data(), count};
    result.scores = {row_.scores.data(), count};
    result.block_sentences = {row_.block_sentences.data(), count};
    result.sentences = {row_.sentences.data(), row_.fine_count};
    result.normalisers = {row_.normalisers.data(), 1};
    result.skipped_mass = 1.0F;
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
    const float last = last_of_best(ranked);
    return last >= kMassMin &&
           std::none_of(ranked.begin(), ranked.end(), [last, margin](float mass) {
             return mass != last && std::abs(mass - last) <= last * margin;
           });
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
    constexpr uint32_t kAtOnce = 256;
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
        copy_runs(logits + size_t{parts[i].piece} * kPieceRuns + parts[i].lane, part_runs, to);
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

// Returns how many peaks a query has.
uint32_t bound_pages(const RankCall& call, const SketchQuery* queries, size_t stride) {
  const RankView& view = call.view;
  SketchJob job;
  job.at = {view.k_dim, FlatAreaLayout::runs_max(view.run_tokens)};
  job.steps = call.scratch.query_steps.data();
  job.queries = queries;
  job.query_count = call.queries();
  job.peak_stride = stride;
  uint32_t peak_count = 0;
  for (uint32_t first = 0; first < view.sentence_count; first += kPageSentences) {
    const RankSentence& last =
        view.sentences[std::min(first + kPageSentences, view.sentence_count) - 1];
    const uint32_t first_block = view.sentences[first].first_block;
    job.sketch = view.pages[first / kPageSentences] + view.area_offset +
                 FlatAreaLayout::sketch(view.kind, view.k_dim, view.run_tokens);
    job.run_count = (last.first_block + last.block_count - first_block) * runs_per_block(view);
    job.bounds = call.scratch.logits.data() + size_t{peak_count} * kPeakTiles;
    job.peaks = call.scratch.peaks.data() + peak_count;
    call.scratch.best_pages[first / kPageSentences] = {first_block, peak_count, job.run_count};
    constexpr uint32_t kPeakRuns = kPeakTiles * kTileRuns;
    peak_count += (job.run_count + kPeakRuns - 1) / kPeakRuns * kTileRuns;
    call.sketch_ops.bounds(job);
  }
  return peak_count;
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
  const size_t stride = peak_stride(runs, view.sentence_count);
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
  const uint32_t peak_count = bound_pages(call, queries, stride);
  for (uint32_t i = 0; i < call.queries(); ++i) {
    if ((uncertain >> i & 1U) != 0) continue;
    BestRow row(call, s.query.data() + size_t{i} * view.k_dim, i);
    if (!row.run(s.logits.data() + i * stride * kPeakTiles, s.peaks.data() + i * stride, peak_count,
                 s.results[i])) {
      uncertain |= uint64_t{1} << i;
    }
  }
  return uncertain;
}

}  // namespace skv
