#pragma once

#include <bit>
#include <cstdint>

namespace skv {

// IEEE binary16 and bfloat16 as bits, with conversions whose results do not depend on the CPU, the
// compiler or MXCSR: integer arithmetic and exact float operations only.

// Exact, subnormals and infinities included; a NaN stays a NaN.
constexpr float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t exponent = (half >> 10) & 0x1FU;
  const uint32_t fraction = half & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (fraction << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  if (fraction == 0) return std::bit_cast<float>(sign);
  const int shift = std::countl_zero(fraction) - 21;  // 1..10: to bring the leading one to bit 10
  const uint32_t normal = (fraction << shift) & 0x3FFU;
  return std::bit_cast<float>(sign | (static_cast<uint32_t>(113 - shift) << 23) | (normal << 13));
}

// Nearest, ties to even. What is finite stays finite: beyond 65504 it saturates. Infinity and NaN
// keep their kind.
constexpr uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U);
  if (magnitude == 0x7F800000U) return static_cast<uint16_t>(sign | 0x7C00U);
  if (magnitude >= 0x477FF000U) return static_cast<uint16_t>(sign | 0x7BFFU);  // >= 65520
  if (magnitude < 0x38800000U) {                                               // below 2^-14
    if (magnitude < 0x33000000U) return static_cast<uint16_t>(sign);           // below 2^-25
    const uint32_t shift = 126U - (magnitude >> 23);                           // 14..24
    const uint32_t significand = (magnitude & 0x7FFFFFU) | 0x800000U;
    const uint32_t rest = significand & ((1U << shift) - 1U);
    const uint32_t middle = 1U << (shift - 1U);
    uint32_t result = significand >> shift;
    if (rest > middle || (rest == middle && (result & 1U) != 0)) ++result;
    return static_cast<uint16_t>(sign | result);
  }
  const uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U) - 0x38000000U;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

// Smallest binary16 >= value, for finite value >= 0; saturates at 65504.
constexpr uint16_t float_to_half_up(float value) {
  const uint16_t nearest = float_to_half(value);
  if (nearest >= 0x7BFFU || half_to_float(nearest) >= value) return nearest;
  return static_cast<uint16_t>(nearest + 1U);
}

// Smallest binary16 >= value, and largest <= value, for any finite value within +-65504; beyond
// they saturate.
constexpr uint16_t float_to_half_above(float value) {
  const uint16_t nearest = float_to_half(value);
  if (half_to_float(nearest) >= value || nearest == 0x7BFFU) return nearest;
  return static_cast<uint16_t>((nearest & 0x8000U) != 0 ? nearest - 1U : nearest + 1U);
}
constexpr uint16_t float_to_half_below(float value) {
  return static_cast<uint16_t>(float_to_half_above(-value) ^ 0x8000U);
}

// Nearest, ties to even; what is finite stays finite.
constexpr uint16_t float_to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  if (magnitude == 0x7F800000U) return static_cast<uint16_t>(bits >> 16);
  const uint32_t rounded = (magnitude + 0x7FFFU + ((magnitude >> 16) & 1U)) >> 16;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000U) | (rounded < 0x7F7FU ? rounded : 0x7F7FU));
}
constexpr float bfloat_to_float(uint16_t bfloat) {
  return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16);
}

inline constexpr uint16_t kHalfNan = 0x7E00;  // the NaN that we write
inline constexpr uint16_t kBfloatNan = 0x7FC0;
constexpr bool bfloat_is_finite(uint16_t bfloat) { return (bfloat & 0x7F80U) != 0x7F80U; }

constexpr bool half_is_finite(uint16_t half) { return (half & 0x7C00U) != 0x7C00U; }

}  // namespace skv
