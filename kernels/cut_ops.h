#pragma once

#include <cstddef>
#include <cstdint>

namespace skv {

// The passes of cut over all scores, plain and vectorised, with the same results.
struct CutOps {
  // Largest of each lane over `rows` rows of 16, for every such group of whole rows: 16 per group.
  // Returns how many; what is behind the last whole group is left out.
  size_t (*maxima)(const float* scores, size_t count, size_t rows, float* to);
  // Indices of the scores >= at_least, ascending; returns how many. `to` has room for all and 16.
  size_t (*collect)(const float* scores, size_t count, float at_least, uint32_t* to);
  // How many of the scores are >= at_least.
  size_t (*count)(const float* scores, size_t count, float at_least);
  // lanes[i % 16] += scores[i], ascending; `count` is a multiple of 16.
  void (*add_lanes)(const float* scores, size_t count, float* lanes);
};

const CutOps& plain_cut_ops();
const CutOps& simd_cut_ops();  // of the target that is chosen now

}  // namespace skv
