#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace skv {

// The numbers and scalar functions of the scores' definition (kernels/README.md). The vectorised
// and the CUDA kernels use the same constants in the same order of operations.
inline constexpr float kLog2E = 0x1.715476p+0F;
inline constexpr float kHalfLn2 = 0x1.62e430p-2F;

// A logit (base 2) counts if its magnitude is at most kLogitMax; all others, NaN too, become
// kLogitNone, whose weight is 0 beside any that counts.
inline constexpr float kLogitMax = 0x1p100F;
inline constexpr float kLogitNone = -0x1p126F;

// 2^f - 1 = f * (k1 + f * (k2 + ..)) on [-1/2, 1/2]: minimax, relative error 2e-9 before rounding.
inline constexpr float kExp2Coefficients[6] = {0x1.62e430p-1F, 0x1.ebfbdcp-3F,  0x1.c6aee8p-5F,
                                               0x1.3b2d4cp-7F, 0x1.5f3e54p-10F, 0x1.41fbbcp-13F};
inline constexpr float kExp2Min = -125.0F;         // below: exactly 0, so nothing is ever subnormal
inline constexpr float kRoundMagic = 12582912.0F;  // 1.5 * 2^23: adding it leaves no fraction

// Steps of the largest channel of what a query brings to a sum of integers: itself (flat kinds),
// itself times a sentence's scales (fine), or its square (coarse). Below kStepsMin there are none.
inline constexpr uint32_t kQuerySteps = 127;
inline constexpr float kStepsMin = 0x1p-100F;

inline float clean_logit(float logit) { return std::fabs(logit) <= kLogitMax ? logit : kLogitNone; }

// 2^x for x <= 0, not NaN.
inline float exp2_of(float x) {
  if (!(x >= kExp2Min)) return 0.0F;
  const float whole = (x + kRoundMagic) - kRoundMagic;
  const float f = x - whole;
  float p = kExp2Coefficients[5];
  for (int i = 4; i >= 0; --i) p = std::fma(p, f, kExp2Coefficients[i]);
  p = std::fma(p, f, 1.0F);
  return p * std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23);
}

// 16 partial sums to one: lanes 8 apart first, then 4, 2, 1.
inline float sum_of_lanes(float* lanes) {
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
  }
  return lanes[0];
}

}  // namespace skv
