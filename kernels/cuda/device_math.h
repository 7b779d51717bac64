#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ipc/layout/half.h"
#include "ipc/layout/vectors.h"
#include "kernels/cuda/block_shared.h"
#include "kernels/rank_math.h"

// The scalar functions of kernels/rank_math.h and ipc/layout/vectors.h for code that runs on both
// sides: the same operations in the same order, each rounded once.
namespace skv::cuda {

SKV_BODY inline float fma_of(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

SKV_BODY inline float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}
SKV_BODY inline uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}

SKV_BODY inline float clean(float logit) {
  return (logit < 0.0F ? -logit : logit) <= kLogitMax ? logit : kLogitNone;
}

SKV_BODY inline bool is_finite(float value) {
  return (float_to_bits(value) & 0x7F800000U) != 0x7F800000U;
}
SKV_BODY inline float larger(float a, float b) { return a < b ? b : a; }
SKV_BODY inline uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

SKV_BODY inline float exp2_at(float x) {
  if (!(x >= kExp2Min)) return 0.0F;
  const float whole = (x + kRoundMagic) - kRoundMagic;
  const float f = x - whole;
  constexpr float kC0 = kExp2Coefficients[0];
  constexpr float kC1 = kExp2Coefficients[1];
  constexpr float kC2 = kExp2Coefficients[2];
  constexpr float kC3 = kExp2Coefficients[3];
  constexpr float kC4 = kExp2Coefficients[4];
  constexpr float kC5 = kExp2Coefficients[5];
  float p = fma_of(kC5, f, kC4);
  p = fma_of(p, f, kC3);
  p = fma_of(p, f, kC2);
  p = fma_of(p, f, kC1);
  p = fma_of(p, f, kC0);
  p = fma_of(p, f, 1.0F);
  return p * bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23);
}

// 2^(-i / 16), as detail::kSixteenthPowers; a switch, because device code cannot index that array.
SKV_BODY inline float sixteenth_power(uint32_t i) {
  switch (i) {
#define SKV_POWER(n)                                      \
  case n: {                                               \
    constexpr float kPower = detail::kSixteenthPowers[n]; \
    return kPower;                                        \
  }
    SKV_POWER(0)
    SKV_POWER(1)
    SKV_POWER(2)
    SKV_POWER(3)
    SKV_POWER(4)
    SKV_POWER(5)
    SKV_POWER(6)
    SKV_POWER(7)
    SKV_POWER(8)
    SKV_POWER(9)
    SKV_POWER(10)
    SKV_POWER(11)
    SKV_POWER(12)
    SKV_POWER(13)
    SKV_POWER(14)
    SKV_POWER(15)
#undef SKV_POWER
    default:
      return 0.0F;
  }
}
SKV_BODY inline float scaled_down(float value, uint32_t n) {
  return bits_to_float(float_to_bits(value) - (n << 23));
}
SKV_BODY inline float code_factor(uint8_t code) {
  if (code == 0) return 0.0F;
  const uint32_t below = 255U - code;
  return scaled_down(sixteenth_power(below & 15U), below >> 4);
}

// Little-endian halves at any even address.
SKV_BODY inline float half_at(const std::byte* from, uint64_t index) {
  const uint16_t half = *reinterpret_cast<const uint16_t*>(from + index * 2);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t magnitude = half & 0x7FFFU;
  if (magnitude >= 0x7C00U) return bits_to_float(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13));
  if (magnitude >= 0x400U) return bits_to_float(sign | ((magnitude << 13) + (112U << 23)));
  // Subnormal: magnitude * 2^-24, exact.
  const float value = static_cast<float>(magnitude) * 0x1p-24F;
  return bits_to_float(sign | float_to_bits(value));
}

}  // namespace skv::cuda
