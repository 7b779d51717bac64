// Ranking of a flat kind where only the best blocks are asked for: bounds from the sketches of all
// runs, logits of the few blocks whose bound reaches the best. kernels/README.md, "The best only".
#include <algorithm>
#include <bit>
#include <span>

#include "kernels/block_reader.h"
#include "kernels/cut_ops.h"
#include "kernels/flat_pages.h"
#include "kernels/rank_math.h"
#include "kernels/rank_memory.h"

namespace skv {
namespace {

// Roundings on the way from two logits to two scores, of fp32 numbers of up to 125, cannot turn
// masses round that are this far apart.
constexpr float kMassMargin = 1.0F - 0x1p-12F;
constexpr float kLogitMargin = 0x1p-11F;  // of the logits of such masses
// Scores are masses times a common factor, whose rounding may make two equal that are closer. If
// the masses are not beside the same largest logit as a full scan's, that rounds them too.
constexpr float kScoreMargin = 0x1p-21F;
constexpr float kOtherMaxMargin = 0x1p-15F;
constexpr float kMassMin = 0x1p-90F;  // below, of the largest: scores might be subnormal, or 0
// Above this share of the blocks, a full scan is as fast.
constexpr uint32_t kBlocksPerCandidate = 4;
// Above this share of the blocks, a list is given up: a full scan is as fast.
constexpr uint32_t kBlocksPerListed = 2;
// Entries of a list, beside some of the best, before it is looked through for the first time.
constexpr uint32_t kListRoom = 256;
// Exponents beyond are cut off: sums of up to 64 runs stay finite.
constexpr float kExponentMax = 60.0F;

// The k-th largest, of at least k values that are neither NaN nor below kLogitNone: bit by bit, in
// integers of the same order.
float kth_largest(std::span<const float> values, uint32_t k) {
  constexpr uint32_t kSign = 0x80000000U;
  const auto value_of = [](uint32_t key) {
    return std::bit_cast<float>((key & kSign) != 0 ? key ^ kSign : ~key);
  };
  const CutOps& ops = simd_cut_ops();
  uint32_t key = 0;
  for (uint32_t bit = kSign; bit != 0; bit >>= 1) {
    if (ops.count(values.data(), values.size(), value_of(key | bit)) >= k) key |= bit;
  }
  return value_of(key);
}

// Blocks that may be listed, of one row.
uint32_t listed_max(const RankCall& call) {
  return std::max(call.view.end_block / kBlocksPerListed, 4 * call.options.best_blocks + kListRoom);
}

// One row. Blocks are absolute.
class BestRow {
 public:
  BestRow(const RankCall& call, uint32_t row_index)
      : call_(call),
        view_(call.view),
        s_(call.scratch),
        row_(call.scratch.rows[row_index]),
        list_(call.scratch.best[row_index]),
        query_(call.scratch.query.data() + size_t{row_index} * call.view.k_dim),
        runs_(runs_per_block(call.view)),
        first_(call.sink_end()),
        end_(std::max(call.sink_end(), call.recent_first())) {}

  void begin() {
    list_.count = 0;
    list_.limit = 4 * call_.options.best_blocks + kListRoom;
    list_.floor_log2 = kLogitNone;
    list_.floor_mass = 1.0F;
    list_.is_lost = false;
  }

  // Lists what may be among the best of one page, whose bounds these are.
  void add(const SketchJob& page, uint32_t first_block, const SketchQuery& query, float* bounds) {
    if (list_.is_lost) return;
    const uint32_t found = reaching(bounds, page.run_count / runs_);
    uint32_t* blocks = list_.blocks.data() + list_.count;
    float* above = list_.bounds.data() + size_t{list_.count} * runs_;
    float* below = list_.least.data() + size_t{list_.count} * runs_;
    for (uint32_t i = 0; i < found; ++i) {
      const uint32_t in_page = s_.others.data()[i];
      if (!is_candidate(first_block + in_page)) continue;
      *blocks++ = first_block + in_page;
      for (uint32_t run = in_page * runs_; run < (in_page + 1) * runs_; ++run) {
        *above++ = bounds[run];
        *below++ = least_logit(page.sketch, page.at, run, query, bounds[run]);
      }
    }
    list_.count = static_cast<uint32_t>(blocks - list_.blocks.data());
    if (list_.count <= list_.limit) return;
    tighten();
    const uint32_t most = listed_max(call_);
    list_.limit = std::min(std::max(list_.limit, 2 * list_.count), most);
    if (list_.count > most / 4 * 3) list_.is_lost = true;
  }

  // False: what was found is not certain to be what a full scan finds.
  bool finish(RankResult& result) {
    if (list_.is_lost || list_.count < call_.options.best_blocks) return false;
    tighten();
    if (list_.is_lost || list_.count < call_.options.best_blocks) return false;
    float* masses = s_.member_masses.data();
    const float largest = copy_of(list_.bounds.data(), list_.count, masses);
    if (!(largest <= kLogitMax) || largest == kLogitNone) return false;
    call_.flat_ops.masses(masses, largest, list_.count * runs_, runs_, run_tokens());
    const uint32_t guessed = guess({masses, list_.count});
    const float floor = exp2_of(list_.floor_log2 - largest) * list_.floor_mass * run_tokens();
    const float threshold = std::max(mass_of_guessed(guessed, largest), floor) * kMassMargin;
    if (!(threshold >= kMassMin * run_tokens())) return false;
    if (!list_candidates({masses, list_.count}, threshold)) return false;
    join_logits(guessed);
    return score(largest, threshold, result);
  }

 private:
  float run_tokens() const { return static_cast<float>(view_.run_tokens); }
  bool is_candidate(uint32_t block) const { return block >= first_ && block < end_; }

  // Copies what `count` blocks have per run; returns the largest.
  float copy_of(const float* from, uint32_t count, float* to) const {
    const uint32_t runs = count * runs_;
    std::copy_n(from, runs, to);
    std::fill_n(to + runs, padded_to_16(runs) - runs, kLogitNone);
    return call_.ops.max_of(to, padded_to_16(runs));
  }

  // Those of `count` blocks whose bounds reach the floor, to s_.others; ascending.
  uint32_t reaching(const float* bounds, uint32_t count) {
    const CutOps& ops = simd_cut_ops();
    // Where a run is a block, its bound says it all.
    if (runs_ == 1) {
      return static_cast<uint32_t>(
          ops.collect(bounds, count, list_.floor_log2 - kLogitMargin, s_.others.data()));
    }
    float* masses = s_.member_masses.data();
    const float largest = copy_of(bounds, count, masses);
    if (!(largest <= kLogitMax)) list_.is_lost = true;
    const float from_floor = list_.floor_log2 - largest;
    if (list_.is_lost || from_floor > kExponentMax) return 0;
    call_.flat_ops.masses(masses, largest, count * runs_, runs_, 1.0F);
    return static_cast<uint32_t>(ops.collect(
        masses, count, exp2_of(from_floor) * list_.floor_mass * kMassMargin, s_.others.data()));
  }

  // Raises the floor to the last of the best by what is certain of them, and drops what is below.
  void tighten() {
    float* masses = s_.member_masses.data();
    const float largest = copy_of(list_.least.data(), list_.count, masses);
    if (largest < -kLogitMax) return;
    if (runs_ == 1) {
      list_.floor_log2 = kth_largest({masses, list_.count}, call_.options.best_blocks);
    } else {
      call_.flat_ops.masses(masses, largest, list_.count * runs_, runs_, 1.0F);
      list_.floor_log2 = largest;
      list_.floor_mass = kth_largest({masses, list_.count}, call_.options.best_blocks);
    }
    const uint32_t left = reaching(list_.bounds.data(), list_.count);
    uint32_t* blocks = list_.blocks.data();
    float* above = list_.bounds.data();
    float* below = list_.least.data();
    for (uint32_t i = 0; i < left; ++i) {
      const uint32_t from = s_.others.data()[i];
      blocks[i] = blocks[from];
      copy_runs(above + size_t{from} * runs_, runs_, above + size_t{i} * runs_);
      copy_runs(below + size_t{from} * runs_, runs_, below + size_t{i} * runs_);
    }
    list_.count = left;
  }

  // Blocks that are likely to be among the best, in s_.guesses with their logits in
  // s_.guess_logits.
  uint32_t guess(std::span<const float> masses) {
    const float last = kth_largest(masses, call_.options.best_blocks);
    const auto count = static_cast<uint32_t>(
        simd_cut_ops().collect(masses.data(), masses.size(), last, s_.guesses.data()));
    for (uint32_t i = 0; i < count; ++i) s_.guesses[i] = list_.blocks[s_.guesses[i]];
    read_blocks(call_, query_, {s_.guesses.data(), count}, s_.guess_logits.data());
    return count;
  }

  // As many blocks as are asked for have at least this mass, beside a run at `largest`.
  float mass_of_guessed(uint32_t count, float largest) {
    float* masses = s_.candidate_logits.data();
    std::copy_n(s_.guess_logits.data(), size_t{count} * runs_, masses);
    call_.flat_ops.masses(masses, largest, count * runs_, runs_, run_tokens());
    return kth_largest({masses, count}, call_.options.best_blocks);
  }

  // Sinks, all whose bound reaches the threshold, recents: row_.blocks.
  bool list_candidates(std::span<const float> masses, float threshold) {
    candidates_ = static_cast<uint32_t>(
        simd_cut_ops().collect(masses.data(), masses.size(), threshold, s_.others.data()));
    if (candidates_ > (end_ - first_) / kBlocksPerCandidate) return false;
    uint32_t* to = row_.blocks.data();
    for (uint32_t block = 0; block < first_; ++block) *to++ = block;
    for (uint32_t i = 0; i < candidates_; ++i) *to++ = list_.blocks[s_.others[i]];
    for (uint32_t block = end_; block < view_.end_block; ++block) *to++ = block;
    row_.block_count = static_cast<uint32_t>(to - row_.blocks.data());
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
    read_blocks(call_, query_, {others, other_count}, other_logits);
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

  bool score(float largest, float threshold, RankResult& result) {
    float* logits = s_.candidate_logits.data();
    const uint32_t count = row_.block_count;
    const float max = *std::max_element(logits, logits + size_t{count} * runs_);
    if (max == kLogitNone || max - largest < kExp2Min) return false;
    // A block with a larger one would be here. Where a run is a block, that is always so.
    const float above = exp2_of(std::min(max - largest, kExponentMax));
    const bool is_max = above * run_tokens() * kMassMargin >= threshold;
    const float sum = call_.flat_ops.masses(logits, max, count * runs_, runs_, run_tokens());
    if (!order_is_certain(logits + first_, is_max ? kScoreMargin : kOtherMaxMargin)) return false;
    const float factor = RankCall::share_factor(max, sum);
    call_.flat_ops.shares({logits, 0, &factor, 1, RankReduction::kMean, count, row_.scores.data()});
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
    result.best_only = true;
    result.end_block = view_.end_block;
    result.sink_end = call_.sink_end();
    result.recent_first = call_.recent_first();
    return true;
  }

  // No mass but an equal one is so near the last that is taken that rounding the scores of a full
  // scan might turn to the index instead.
  bool order_is_certain(const float* masses, float margin) {
    const std::span<const float> ranked{masses, candidates_};
    const float last = kth_largest(ranked, call_.options.best_blocks);
    return last >= kMassMin &&
           std::none_of(ranked.begin(), ranked.end(), [last, margin](float mass) {
             return mass != last && std::abs(mass - last) <= last * margin;
           });
  }

  void list_sentences() {
    row_.fine_count = 0;
    uint32_t page = 0;
    for (uint32_t i = 0; i < row_.block_count; ++i) {
      const uint32_t block = row_.blocks[i];
      page = page_of(view_, block, page);
      const RankSentence* at = view_.sentences + size_t{page} * kPageSentences;
      uint32_t left = std::min(kPageSentences, view_.sentence_count - page * kPageSentences);
      // Without a branch, which would be a surprise each time.
      for (; left > 1; left -= left / 2) {
        at += size_t{left / 2} * static_cast<size_t>(at[left / 2].first_block <= block);
      }
      const auto sentence = static_cast<uint32_t>(at - view_.sentences);
      row_.block_sentences[i] = sentence;
      if (row_.fine_count == 0 || row_.sentences[row_.fine_count - 1] != sentence) {
        row_.sentences[row_.fine_count++] = sentence;
      }
    }
  }

  const RankCall& call_;
  const RankView& view_;
  RankScratch& s_;
  RankRow& row_;
  RankScratch::BestList& list_;
  const float* query_;
  uint32_t runs_;   // of a block
  uint32_t first_;  // blocks [first_, end_) are neither sinks nor recents
  uint32_t end_;
  uint32_t candidates_ = 0;
};

// While a list is looked through, nothing is read: some of the next page can come. Many queries
// wait for no memory.
void ask_for_more(const SketchJob& job, uint32_t row) {
  constexpr uint32_t kLines = 64;
  if (job.next == nullptr || job.query_count >= kByteAheadQueries) return;
  for (uint32_t line = row * kLines; line < (row + 1) * kLines; ++line) {
    __builtin_prefetch(job.next + size_t{line} * 64, 0, 2);
  }
}

// Bounds of one page after the other, each looked through while it is in the nearest cache.
void scan_sketches(const RankCall& call, const SketchQuery* queries) {
  const RankView& view = call.view;
  const uint64_t offset =
      view.area_offset + FlatAreaLayout::sketch(view.kind, view.k_dim, view.run_tokens);
  SketchJob job;
  job.at = {view.k_dim, FlatAreaLayout::runs_max(view.run_tokens)};
  job.steps = call.scratch.query_steps.data();
  job.queries = queries;
  job.query_count = call.queries();
  job.stride = best_stride(view);
  job.bounds = call.scratch.logits.data();
  for (uint32_t first = 0; first < view.sentence_count; first += kPageSentences) {
    const uint32_t page = first / kPageSentences;
    const RankSentence& last =
        view.sentences[std::min(first + kPageSentences, view.sentence_count) - 1];
    const uint32_t first_block = view.sentences[first].first_block;
    job.sketch = view.pages[page] + offset;
    job.next =
        first + kPageSentences < view.sentence_count ? view.pages[page + 1] + offset : nullptr;
    job.run_count = (last.first_block + last.block_count - first_block) * runs_per_block(view);
    call.sketch_ops.bounds(job);
    for (uint32_t i = 0; i < job.query_count; ++i) {
      ask_for_more(job, i);
      BestRow(call, i).add(job, first_block, queries[i], job.bounds + i * job.stride);
    }
  }
}

}  // namespace

void RankScratch::reserve_best(const RankCall& call) {
  const RankView& view = call.view;
  const uint32_t row_count = call.query.row_count;
  const uint32_t runs = runs_per_block(view);
  reserve_flat(view.end_block, runs, 1, view.k_dim, 1);  // rows that are scanned whole after all
  const size_t page_blocks = FlatAreaLayout::runs_max(view.run_tokens) / runs;
  const size_t listed = std::max<size_t>(listed_max(call) + page_blocks, view.end_block);
  room(query, size_t{row_count} * view.k_dim);
  room(query_spread, size_t{view.k_dim} * kQuerySpread + 16);
  room(query_steps, size_t{row_count} * view.k_dim);
  room(logits, row_count * best_stride(view));
  room(member_masses, listed * runs + kFlatRoom);
  room(guesses, listed + 16);
  room(others, listed + 16);
  room(guess_logits, listed * runs);
  room(candidate_logits, listed * runs + kFlatRoom);
  if (best.size() < row_count) best.resize(row_count);
  if (rows.size() < row_count) rows.resize(row_count);
  if (results.size() < row_count) results.resize(row_count);
  for (uint32_t i = 0; i < row_count; ++i) {
    BestList& list = best[i];
    room(list.blocks, listed_max(call) + page_blocks);
    room(list.bounds, (listed_max(call) + page_blocks) * runs);
    room(list.least, (listed_max(call) + page_blocks) * runs);
    RankRow& row = rows[i];
    room(row.scores, padded_to_16(view.end_block));
    room(row.blocks, view.end_block);
    room(row.block_sentences, view.end_block);
    room(row.sentences, view.sentence_count);
    room(row.normalisers, 1);
  }
}

bool wants_best(const RankCall& call) {
  const uint32_t exempt = call.sink_end() + call.options.recent_blocks;
  return call.options.best_blocks > 0 && call.query.query_count == 1 &&
         FlatAreaLayout::has_sketch(call.view.kind) && exempt < call.view.end_block &&
         (call.view.end_block - exempt) / (2 * kBlocksPerCandidate) >= call.options.best_blocks;
}

uint64_t rank_best(const RankCall& call) {
  const RankView& view = call.view;
  RankScratch& s = call.scratch;
  s.reserve_best(call);
  SketchQuery queries[kRankQueriesMax];
  const float scale = call.query.softmax_scale * kLog2E;
  uint64_t uncertain = 0;
  for (uint32_t i = 0; i < call.queries(); ++i) {
    float* query = s.query.data() + size_t{i} * view.k_dim;
    int8_t* steps = s.query_steps.data() + size_t{i} * view.k_dim;
    scale_query(view.kind, call.query.queries + size_t{i} * view.k_dim, scale, view.k_dim, query);
    BestRow(call, i).begin();
    if (sketch_query(query, view.k_dim, steps, queries[i])) continue;
    s.best[i].is_lost = true;
    queries[i] = {};
    std::fill_n(steps, view.k_dim, int8_t{0});
  }
  scan_sketches(call, queries);
  for (uint32_t i = 0; i < call.queries(); ++i) {
    if (!BestRow(call, i).finish(s.results[i])) uncertain |= uint64_t{1} << i;
  }
  return uncertain;
}

}  // namespace skv
