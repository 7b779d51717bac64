#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ipc/layout/half.h"
#include "kernels/rank_math.h"
#include "kernels/rank_memory.h"

namespace skv {
namespace {

static_assert(uint64_t{kQuerySteps} * 255 * kHeadDimMax < (uint64_t{1} << 31), "sums of steps fit");

// Nearest even; |value| < 2^22.
float round_even(float value) { return (value + kRoundMagic) - kRoundMagic; }

// One query in steps of its largest channel / kQuerySteps, and their sum; returns the step. NaN:
// not finite.
float query_to_steps(const float* query, uint32_t k_dim, int8_t* steps, int32_t& sum) {
  float largest = 0.0F;
  bool finite = true;
  for (uint32_t d = 0; d < k_dim; ++d) {
    finite = finite && std::isfinite(query[d]);
    largest = std::max(largest, std::fabs(query[d]));
  }
  sum = 0;
  if (!finite || largest < kStepsMin) {
    std::fill_n(steps, k_dim, int8_t{0});
    return finite ? 0.0F : std::bit_cast<float>(0x7FC00000U);
  }
  const float per_step = static_cast<float>(kQuerySteps) / largest;
  for (uint32_t d = 0; d < k_dim; ++d) {
    steps[d] = static_cast<int8_t>(round_even(query[d] * per_step));
    sum += steps[d];
  }
  return largest / static_cast<float>(kQuerySteps);
}

}  // namespace

void scale_query(IndexKind kind, const float* query, float scale, uint32_t k_dim, float* to) {
  for (uint32_t d = 0; d < k_dim; ++d) to[d] = query[d] * scale;
  if (kind != IndexKind::kBf16) return;
  for (uint32_t d = 0; d < k_dim; ++d) to[d] = bfloat_to_float(float_to_bfloat(to[d]));
}

void spread_query(IndexKind kind, const float* query, uint32_t k_dim, float* to) {
  if (kind == IndexKind::kBf16) {
    for (uint32_t d = 0; d < k_dim; d += 4) {
      uint16_t four[4];
      for (uint32_t i = 0; i < 4; ++i) {
        four[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(query[d + i]) >> 16);
      }
      for (uint32_t i = 0; i < 2 * kQuerySpread; ++i, to += 2) std::memcpy(to, four, sizeof four);
    }
    return;
  }
  for (uint32_t d = 0; d < k_dim; d += 4) {
    for (uint32_t i = 0; i < kQuerySpread; ++i, to += 4) std::copy_n(query + d, 4, to);
  }
}

namespace {

float length_of(const float* query, uint32_t k_dim) {
  float sum = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) sum = std::fma(query[d], query[d], sum);
  return std::sqrt(sum);
}

// Scanned by piece_dots: one value of 16 bits per channel, and perhaps more.
bool has_halves(IndexKind kind) {
  return kind != IndexKind::kInt8 && kind != IndexKind::kInt4 && kind != IndexKind::kMinMax;
}

FlatQueries prepare_queries(const RankCall& call) {
  RankScratch& s = call.scratch;
  const uint32_t k_dim = call.view.k_dim;
  const float scale = call.query.softmax_scale * kLog2E;
  for (uint32_t q = 0; q < call.queries(); ++q) {
    const float* from = call.query.queries + size_t{q} * k_dim;
    float* first = s.query.data() + size_t{q} * k_dim;
    float* second = s.query_second.data() + size_t{q} * k_dim;
    scale_query(call.view.kind, from, scale, k_dim, first);
    switch (call.view.kind) {
      case IndexKind::kInt8:
      case IndexKind::kInt4:
        s.query_factors[q] = query_to_steps(first, k_dim, s.query_steps.data() + size_t{q} * k_dim,
                                            s.query_offsets[q]);
        // Values are kept with these added, so that none is below 0.
        s.query_offsets[q] *= call.view.kind == IndexKind::kInt8 ? -128 : -8;
        break;
      case IndexKind::kMinMax:
        for (uint32_t d = 0; d < k_dim; ++d) {  // NaN stays in both
          second[d] = first[d] > 0.0F ? 0.0F : first[d];
          first[d] = first[d] < 0.0F ? 0.0F : first[d];
        }
        break;
      case IndexKind::kBox:
        for (uint32_t d = 0; d < k_dim; ++d) second[d] = std::fabs(first[d]);
        break;
      case IndexKind::kBall:
        s.query_factors[q] = length_of(first, k_dim);
        break;
      default:
        break;
    }
    if (has_halves(call.view.kind)) {
      spread_query(call.view.kind, first, k_dim,
                   first_line(s.query_spread) + size_t{q} * k_dim * kQuerySpread);
    }
  }
  return {s.query.data(),       first_line(s.query_spread), s.query_second.data(),
          s.query_steps.data(), s.query_offsets.data(),     s.query_factors.data()};
}

void scan_pages(const RankCall& call, const FlatQueries& queries, size_t stride) {
  const RankView& view = call.view;
  FlatJob job;
  job.kind = view.kind;
  job.run_tokens = view.run_tokens;
  job.k_dim = view.k_dim;
  job.queries = &queries;
  job.query_count = call.queries();
  job.stride = stride;
  job.maxima = call.scratch.maxima.data();
  std::fill_n(job.maxima, job.query_count, kLogitNone);
  for (uint32_t first = 0; first < view.sentence_count; first += kPageSentences) {
    const RankSentence& last =
        view.sentences[std::min(first + kPageSentences, view.sentence_count) - 1];
    const uint32_t first_block = view.sentences[first].first_block;
    job.area = view.pages[first / kPageSentences] + view.area_offset;
    job.next = first + kPageSentences < view.sentence_count
                   ? view.pages[first / kPageSentences + 1] + view.area_offset
                   : nullptr;
    job.run_count = (last.first_block + last.block_count - first_block) * runs_per_block(view);
    job.logits = call.scratch.logits.data() + size_t{first_block} * runs_per_block(view);
    call.flat_ops.scan(job);
  }
}

// Which sentence each block is of: the same for all rows.
void list_sentences(const RankCall& call) {
  RankScratch& s = call.scratch;
  uint32_t* to = s.block_sentences.data();
  for (uint32_t i = 0; i < call.view.sentence_count; ++i) {
    const uint32_t count = call.view.sentences[i].block_count;
    const uint32_t four[4] = {i, i, i, i};
    for (uint32_t block = 0; block < count; block += 4) std::memcpy(to + block, four, sizeof four);
    to += count;
  }
}

void score_row(const RankCall& call, uint32_t row_index, size_t stride) {
  RankScratch& s = call.scratch;
  RankRow& row = s.rows[row_index];
  const RankView& view = call.view;
  const uint32_t blocks = view.end_block;
  const uint32_t count = call.query.query_count;
  float factors[kRankQueriesMax];
  for (uint32_t q = 0; q < count; ++q) {
    const size_t query = size_t{row_index} * count + q;
    const float max = s.maxima[query];
    const float sum =
        call.flat_ops.masses(s.logits.data() + query * stride, max, blocks * runs_per_block(view),
                             runs_per_block(view), static_cast<float>(view.run_tokens));
    const bool any = max != kLogitNone;
    row.normalisers[q] = {any ? max : 0.0F, any ? sum : 0.0F};
    factors[q] = RankCall::share_factor(max, sum);
  }
  call.flat_ops.shares({s.logits.data() + size_t{row_index} * count * stride, stride, factors,
                        count, call.options.reduction, blocks, row.scores.data()});
}

}  // namespace

// The widest first. NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
void RankScratch::reserve_flat(uint32_t block_total,
                               uint32_t run_total,
                               uint32_t query_count,
                               uint32_t k_dim,
                               uint32_t row_count) {
  const size_t queries = size_t{query_count} * row_count;
  room(query, queries * k_dim);
  room(query_second, queries * k_dim);
  room(query_spread, queries * k_dim * kQuerySpread + 16);
  room(query_steps, queries * k_dim);
  room(query_offsets, queries);
  room(query_factors, queries);
  room(logits, queries * (size_t{run_total} + kFlatRoom));
  room(maxima, queries);
  room(block_sentences, block_total + 4);
  if (identity.size() < block_total) {
    identity.resize(block_total);
    std::iota(identity.begin(), identity.end(), 0U);
  }
  if (rows.size() < row_count) rows.resize(row_count);
  if (results.size() < row_count) results.resize(row_count);
  for (uint32_t i = 0; i < row_count; ++i) {
    room(rows[i].scores, padded_to_16(block_total));
    room(rows[i].normalisers, query_count);
  }
}

namespace {

void rank_whole(const RankCall& call) {
  const RankView& view = call.view;
  RankScratch& s = call.scratch;
  const uint32_t runs = view.end_block * runs_per_block(view);
  s.reserve_flat(view.end_block, runs, call.query.query_count, view.k_dim, call.query.row_count);
  const size_t stride = size_t{runs} + kFlatRoom;
  const FlatQueries queries = prepare_queries(call);
  scan_pages(call, queries, stride);
  list_sentences(call);
  for (uint32_t i = 0; i < call.query.row_count; ++i) {
    score_row(call, i, stride);
    RankResult& result = s.results[i];
    result = {};
    result.blocks = {s.identity.data(), view.end_block};
    result.scores = {s.rows[i].scores.data(), view.end_block};
    result.block_sentences = {s.block_sentences.data(), view.end_block};
    result.sentences = {s.identity.data(), view.sentence_count};
    result.normalisers = {s.rows[i].normalisers.data(), call.query.query_count};
    result.end_block = view.end_block;
    result.sink_end = call.sink_end();
    result.recent_first = call.recent_first();
  }
}

// Row `index` alone; the results of the others stay.
void rank_whole_row(const RankCall& call, uint32_t index) {
  RankScratch& s = call.scratch;
  RankQuery query = call.query;
  query.queries += size_t{index} * query.query_count * call.view.k_dim;
  query.row_count = 1;
  const RankResult first = s.results[0];
  std::swap(s.rows[0], s.rows[index]);
  rank_whole({call.ops, call.flat_ops, call.sketch_ops, call.view, query, call.options, s});
  std::swap(s.rows[0], s.rows[index]);
  std::swap(s.results[0], s.results[index]);
  if (index != 0) s.results[0] = first;
}

}  // namespace

void rank_flat(const RankCall& call) {
  if (!wants_best(call)) return rank_whole(call);
  for (uint64_t left = rank_best(call); left != 0; left &= left - 1) {
    rank_whole_row(call, static_cast<uint32_t>(std::countr_zero(left)));
  }
}

}  // namespace skv
