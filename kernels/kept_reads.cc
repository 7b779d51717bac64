#include "kernels/kept_reads.h"

#include <algorithm>
#include <cmath>

namespace skv {
namespace {

double dot(const float* a, const float* b, uint32_t count) {
  double lanes[4] = {};  // independent, so that no addition waits for the last
  uint32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (uint32_t lane = 0; lane < 4; ++lane) {
      lanes[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
    }
  }
  for (; i < count; ++i) lanes[0] += static_cast<double>(a[i]) * b[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

const ReadSet* KeptReads::find(uint32_t head,
                               std::span<const float> queries,
                               uint32_t k_dim,
                               uint32_t end_block) const {
  if (heads_.empty()) return nullptr;
  const Head& kept = heads_[head];
  if (kept.queries.size() != queries.size() || kept.end_block != end_block) return nullptr;
  for (size_t i = 0; i < kept.squares.size(); ++i) {
    const float* now = queries.data() + i * k_dim;
    const double square = dot(now, now, k_dim);
    const double least = query_cosine_ * std::sqrt(square * kept.squares[i]);
    // Zeros and what is not finite have no direction.
    const bool is_near = least > 0.0 && std::isfinite(least) &&
                         dot(now, kept.queries.data() + i * k_dim, k_dim) >= least;
    if (!is_near) return nullptr;
  }
  return &kept.read;
}

void KeptReads::keep(uint32_t head,
                     std::span<const float> queries,
                     uint32_t k_dim,
                     uint32_t end_block,
                     const ReadSet& read) {
  if (heads_.empty()) return;
  Head& kept = heads_[head];
  kept.end_block = end_block;
  kept.queries.assign(queries.begin(), queries.end());
  kept.squares.clear();
  for (size_t at = 0; at < queries.size(); at += k_dim) {
    kept.squares.push_back(dot(queries.data() + at, queries.data() + at, k_dim));
  }
  kept.blocks.assign(read.blocks.begin(), read.blocks.end());
  kept.sentences.assign(read.sentences.begin(), read.sentences.end());
  kept.scores.assign(read.scores.begin(), read.scores.end());
  kept.read = read;
  kept.read.blocks = kept.blocks;
  kept.read.sentences = kept.sentences;
  kept.read.scores = kept.scores;
}

}  // namespace skv
