#pragma once

#include <cstdint>

#include "kernels/cuda/device_math.h"

namespace skv::cuda {

// skv::select_best (kernels/cut.h) by a thread block: the best entries until their weights sum to
// at least weight_min, higher score first, ties by lower index. Scores are >= 0 and not NaN.
struct Selection {
  const float* scores;
  const uint32_t* weights;  // null: 1 each
  uint32_t count;
  uint32_t weight_min;
  uint8_t* taken;
};

template <typename Block>
SKV_BODY void select_best(Block& block, const Selection& s) {
  const auto weight = [&s](uint32_t i) -> uint32_t {
    return s.weights == nullptr ? 1 : s.weights[i];
  };
  const uint32_t total = block.scan(s.count, weight, [](uint32_t, uint32_t) {});
  if (s.weight_min == 0 || total <= s.weight_min) {
    const uint8_t all = s.weight_min == 0 ? 0 : 1;
    block.for_each(s.count, [&](uint32_t i) { s.taken[i] = all; });
    return;
  }
  struct Digit {
    uint32_t shift, bits;
  };
  uint32_t* histogram = block.shared().histogram;
  uint32_t prefix = 0;
  uint32_t need = s.weight_min;
  for (uint32_t round = 0; round < 3; ++round) {
    const Digit digit = round == 0 ? Digit{20, 11} : round == 1 ? Digit{9, 11} : Digit{0, 9};
    const uint32_t buckets = 1U << digit.bits;
    const uint32_t above = digit.shift + digit.bits;
    block.for_each(buckets, [&](uint32_t i) { histogram[i] = 0; });
    block.for_each(s.count, [&](uint32_t i) {
      const uint32_t key = float_to_bits(s.scores[i]);
      if ((key >> above) == prefix) {
        Block::add(histogram[(key >> digit.shift) & (buckets - 1)], weight(i));
      }
    });
    // From the top bucket down: the one in which the running weight reaches `need`.
    struct Found {
      uint32_t bucket, need;
    };
    const Found found = block.broadcast([&]() -> Found {
      uint32_t bucket = buckets - 1;
      uint32_t left = need;
      while (histogram[bucket] < left) left -= histogram[bucket--];
      return {bucket, left};
    });
    prefix = (prefix << digit.bits) | found.bucket;
    need = found.need;
  }
  const uint32_t threshold = prefix;
  // Of those at the threshold, by index, as long as something is needed before them.
  block.scan(
      s.count,
      [&](uint32_t i) -> uint32_t {
        return float_to_bits(s.scores[i]) == threshold ? weight(i) : 0;
      },
      [&](uint32_t i, uint32_t before) {
        const uint32_t key = float_to_bits(s.scores[i]);
        s.taken[i] = key > threshold || (key == threshold && before < need) ? 1 : 0;
      });
}

}  // namespace skv::cuda
