#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace skv {

// Working memory of select_best: a histogram, and those that are still undecided.
inline constexpr uint32_t kSelectHistogram = 2048;
constexpr size_t select_room(size_t count) { return kSelectHistogram + count + 1; }

// The best entries until their weights sum to at least `weight_min`: marks taken[i] = 1 for those,
// 0 for the others, and returns the sum. Higher score first, ties by lower index; scores are >= 0
// and not NaN. `weights` null: 1 each. `work` grows to select_room.
uint32_t select_best(std::span<const float> scores,
                     const uint32_t* weights,
                     uint32_t weight_min,
                     std::span<uint8_t> taken,
                     std::vector<uint32_t>& work);

// Working memory of select_largest; allocates no more once it has seen the largest count.
struct SelectScratch {
  std::vector<uint32_t> chosen;
  std::vector<float> scores;
  std::vector<uint8_t> taken;
  std::vector<uint32_t> work;  // of select_best
  void reserve(uint32_t count);
};

// The `budget` largest scores (>= 0, not NaN; ties by lower index) as ascending indices in
// s.chosen; returns how many. Requires: s.reserve(scores.size()).
uint32_t select_largest(std::span<const float> scores, uint32_t budget, SelectScratch& s);

}  // namespace skv
