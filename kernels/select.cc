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

namespace {

// The bucket in which the running weight from the top reaches `need`; takes from it what is above.
uint32_t bucket_of(const uint32_t* histogram, uint32_t bucket, uint32_t& need) {
  while (histogram[bucket] < need) need -= histogram[bucket--];
  return bucket;
}

// Digit by digit, highest first: what is in the bucket of the threshold is put aside by the first,
// and only that is looked at by the others.
template <bool kWeights>
uint32_t select_from(std::span<const float> scores,
                     const uint32_t* weights,
                     uint32_t weight_min,
                     uint8_t* taken,
                     uint32_t* histogram) {
  const auto weight = [weights](size_t i) { return kWeights ? weights[i] : 1U; };
  const auto count = static_cast<uint32_t>(scores.size());
  uint32_t* const undecided = histogram + kSelectHistogram;
  uint32_t need = weight_min;
  std::fill_n(histogram, kSelectHistogram, 0U);
  for (uint32_t i = 0; i < count; ++i)
    histogram[key_of(scores[i]) >> kDigits[0].shift] += weight(i);
  uint32_t prefix = bucket_of(histogram, kSelectHistogram - 1, need);
  uint32_t sum = weight_min - need;
  uint32_t undecided_count = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t digit = key_of(scores[i]) >> kDigits[0].shift;
    taken[i] = digit > prefix ? 1 : 0;
    undecided[undecided_count] = i;
    undecided_count += digit == prefix ? 1 : 0;
  }
  for (const Digit& digit : {kDigits[1], kDigits[2]}) {
    const uint32_t mask = (1U << digit.bits) - 1U;
    const uint32_t above = digit.shift + digit.bits;
    std::fill_n(histogram, mask + 1, 0U);
    for (uint32_t j = 0; j < undecided_count; ++j) {
      const uint32_t i = undecided[j];
      const uint32_t key = key_of(scores[i]);
      if ((key >> above) == prefix) histogram[(key >> digit.shift) & mask] += weight(i);
    }
    prefix = (prefix << digit.bits) | bucket_of(histogram, mask, need);
  }
  for (uint32_t j = 0; j < undecided_count; ++j) {
    const uint32_t i = undecided[j];
    const uint32_t key = key_of(scores[i]);
    if (key < prefix || (key == prefix && need == 0)) continue;
    if (key == prefix) need -= std::min(need, weight(i));
    taken[i] = 1;
    sum += weight(i);
  }
  return sum;
}

}  // namespace

uint32_t select_best(std::span<const float> scores,
                     const uint32_t* weights,
                     uint32_t weight_min,
                     std::span<uint8_t> taken,
                     std::vector<uint32_t>& work) {
  const size_t count = scores.size();
  auto total = static_cast<uint32_t>(count);
  if (weights != nullptr) total = std::accumulate(weights, weights + count, 0U);
  if (weight_min == 0 || total <= weight_min) {
    std::fill_n(taken.begin(), count, static_cast<uint8_t>(weight_min == 0 ? 0 : 1));
    return weight_min == 0 ? 0 : total;
  }
  if (work.size() < select_room(count)) work.resize(select_room(count));
  return weights == nullptr
             ? select_from<false>(scores, nullptr, weight_min, taken.data(), work.data())
             : select_from<true>(scores, weights, weight_min, taken.data(), work.data());
}

void SelectScratch::reserve(uint32_t count) {
  if (work.size() < select_room(count)) work.resize(select_room(count));
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
      select_best({s.scores.data(), made}, nullptr, budget, {s.taken.data(), made}, s.work);
      at_least = std::numeric_limits<float>::max();
      for (uint32_t i = 0; i < made; ++i) {
        if (s.taken[i] != 0) at_least = std::min(at_least, s.scores[i]);
      }
    }
  }
  const auto found = static_cast<uint32_t>(ops.collect(scores, count, at_least, s.chosen.data()));
  for (uint32_t i = 0; i < found; ++i) s.scores[i] = scores[s.chosen[i]];
  select_best({s.scores.data(), found}, nullptr, budget, {s.taken.data(), found}, s.work);
  uint32_t taken = 0;
  for (uint32_t i = 0; i < found; ++i) {
    if (s.taken[i] != 0) s.chosen[taken++] = s.chosen[i];
  }
  return taken;
}

}  // namespace skv
