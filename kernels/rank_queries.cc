// What rank makes of its queries before it reads vectors, and the room it works in.
#include <algorithm>

#include "kernels/rank_math.h"
#include "kernels/rank_memory.h"
#include "kernels/rank_ops.h"

namespace skv {

void line_query(const float* query, uint32_t k_dim, float* to) {
  for (uint32_t line = 0; line < k_dim; line += kLineChannels, to += kLineChannels) {
    const uint32_t half = std::min(k_dim - line, kLineChannels) / 2;
    std::fill_n(to, kLineChannels, 0.0F);
    std::copy_n(query + line, half, to);
    std::copy_n(query + line + half, half, to + kLineChannels / 2);
  }
}

float squares_to_steps(const float* query, uint32_t k_dim, int8_t* steps) {
  float largest = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) largest = std::max(largest, query[d] * query[d]);
  const bool any = largest >= kStepsMin;
  const float per_step = any ? static_cast<float>(kQuerySteps) / largest : 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) {
    // Not a step where the query is not finite, or its square is not: then no logit counts.
    const float whole = ((query[d] * query[d]) * per_step + kRoundMagic) - kRoundMagic;
    steps[d] = whole <= static_cast<float>(kQuerySteps) ? static_cast<int8_t>(whole) : int8_t{0};
  }
  return any ? largest / static_cast<float>(kQuerySteps * kSquareSteps) : 0.0F;
}

// The widest first.
// NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
void RankScratch::reserve(uint32_t sentence_count,
                          uint32_t block_total,
                          // NOLINTNEXTLINE(bugprone-easily-swappable-parameters)
                          uint32_t run_total,
                          uint32_t query_count,
                          uint32_t k_dim,
                          uint32_t row_count) {
  const size_t sentence_room = padded_to_16(sentence_count);
  const size_t queries = size_t{query_count} * row_count;
  room(query, queries * k_dim);
  room(query_steps, queries * k_dim);
  room(query_factors, queries);
  room(query_lines, queries * padded_to_line(k_dim));
  room(logits, queries * (size_t{padded_to_16(run_total)} + kFlatRoom));
  room(mean_dots, queries * sentence_room);
  room(coarse, queries * sentence_room);
  room(shares, sentence_room);
  room(weights, sentence_room);
  room(block_counts, sentence_room);
  room(taken, sentence_room);
  room(select.work, select_room(sentence_count));
  if (rows.size() < row_count) rows.resize(row_count);
  if (results.size() < row_count) results.resize(row_count);
  for (uint32_t i = 0; i < row_count; ++i) {
    RankRow& row = rows[i];
    room(row.counts, sentence_room);
    room(row.scores, padded_to_16(block_total));
    room(row.blocks, block_total + 3);
    room(row.block_sentences, block_total + 3);
    room(row.sentences, sentence_room);
    room(row.normalisers, query_count);
  }
}

}  // namespace skv
