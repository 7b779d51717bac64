#include "kernels/select.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "kernels/cut_ops.h"

namespace skv {
namespace {

// A score >= 0 as an integer of the same order, 31 bits, looked at in digits of 11, 11 and 9.
struct Digit {
  uint32_t shift;
  uint32_t bits;
};
constexpr Digit kDigits[3] = {{20, 11}, {9, 11}, {0, 9}};

uint32_t key_of(float score) { return std::bit_cast<uint32_t>(score); }

}  // namespace

uint32_t select_best(std::span<const float> scores,
                     const uint32_t* weights,
                     uint32_t weight_min,
                     std::span<uint8_t> taken,
                     std::vector<uint32_t>& histogram) {
  const auto weight = [weights](size_t i) { return weights == nullptr ? 1U : weights[i]; };
  const size_t count = scores.size();
  uint32_t total = 0;
  for (size_t i = 0; i < count; ++i) total += weight(i);
  if (weight_min == 0 || total <= weight_min) {
    std::fill_n(taken.begin(), count, static_cast<uint8_t>(weight_min == 0 ? 0 : 1));
    return weight_min == 0 ? 0 : total;
  }
  if (histogram.size() < kSelectHistogram) histogram.resize(kSelectHistogram);
  // Digit by digit, highest first: the bucket in which the running weight from the top reaches
  // weight_min holds the threshold; only its entries are counted in the next round.
  uint32_t prefix = 0;
  uint32_t need = weight_min;
  for (const Digit& digit : kDigits) {
    std::fill_n(histogram.begin(), size_t{1} << digit.bits, 0U);
    const uint32_t mask = (1U << digit.bits) - 1U;
    const uint32_t above = digit.shift + digit.bits;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t key = key_of(scores[i]);
      if ((key >> above) == prefix) histogram[(key >> digit.shift) & mask] += weight(i);
    }
    uint32_t bucket = mask;
    while (histogram[bucket] < need) need -= histogram[bucket--];
    prefix = (prefix << digit.bits) | bucket;
  }
  const uint32_t threshold = prefix;
  uint32_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = key_of(scores[i]);
    bool take = key > threshold;
    if (key == threshold && need != 0) {
      take = true;
      need -= std::min(need, weight(i));
    }
    taken[i] = take ? 1 : 0;
    if (take) sum += weight(i);
  }
  return sum;
}

void SelectScratch::reserve(uint32_t count) {
  if (histogram.size() < kSelectHistogram) histogram.resize(kSelectHistogram);
  if (scores.size() >= count) return;
  chosen.resize(size_t{count} + 16);
  scores.resize(count);
  taken.resize(count);
}

// A few passes of vectors instead of a sort of everything: the budget-th largest of some maxima of
// distinct scores is a lower bound of the threshold; what reaches it is hardly more than the
// budget, and only that is selected from by digits.
uint32_t select_largest(std::span<const float> from, uint32_t budget, SelectScratch& s) {
  const float* scores = from.data();
  const auto count = static_cast<uint32_t>(from.size());
  constexpr uint32_t kMaximaPerBlock = 4;
  const CutOps& ops = simd_cut_ops();
  if (budget >= count) {
    std::iota(s.chosen.begin(), s.chosen.begin() + count, 0U);
    return count;
  }
  if (budget == 0) return 0;
  float at_least = 0.0F;
  const uint32_t rows = count / (budget * kMaximaPerBlock);
  if (rows >= 2) {
    const auto made = static_cast<uint32_t>(ops.maxima(scores, count, rows, s.scores.data()));
    if (made >= budget) {
      select_best({s.scores.data(), made}, nullptr, budget, {s.taken.data(), made}, s.histogram);
      at_least = std::numeric_limits<float>::max();
      for (uint32_t i = 0; i < made; ++i) {
        if (s.taken[i] != 0) at_least = std::min(at_least, s.scores[i]);
      }
    }
  }
  const auto found = static_cast<uint32_t>(ops.collect(scores, count, at_least, s.chosen.data()));
  for (uint32_t i = 0; i < found; ++i) s.scores[i] = scores[s.chosen[i]];
  select_best({s.scores.data(), found}, nullptr, budget, {s.taken.data(), found}, s.histogram);
  uint32_t taken = 0;
  for (uint32_t i = 0; i < found; ++i) {
    if (s.taken[i] != 0) s.chosen[taken++] = s.chosen[i];
  }
  return taken;
}

}  // namespace skv
