#include "ipc/layout/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ipc/layout/vectors.h"

namespace skv {
namespace {

// Goal: every one of the 65,536 values has the number that the format's definition gives it.
TEST(Half, EveryValueByTheDefinition) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int fraction = static_cast<int>(bits & 1023);
    const float value = half_to_float(half);
    EXPECT_EQ(std::signbit(value), (bits & 0x8000) != 0);
    EXPECT_EQ(half_is_finite(half), exponent != 31);
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0);
      EXPECT_EQ(std::isinf(value), fraction == 0);
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(std::fabs(double{value}), magnitude);
    EXPECT_EQ(float_to_half(value), half);
    if ((bits & 0x8000) == 0) {
      EXPECT_EQ(float_to_half_up(value), half);
    }
  }
}

// Goal: nearest, ties to even; upwards where that is asked for.
// Method: every float exactly between two halves and its neighbours, then random floats.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const auto low = static_cast<uint16_t>(bits);
    const auto high = static_cast<uint16_t>(bits + 1);
    const float middle = (half_to_float(low) + half_to_float(high)) / 2.0F;  // exact
    EXPECT_EQ(float_to_half(middle), bits % 2 == 0 ? low : high);
    EXPECT_EQ(float_to_half(std::nextafter(middle, 0.0F)), low);
    EXPECT_EQ(float_to_half(std::nextafter(middle, 1e30F)), high);
    EXPECT_EQ(float_to_half(-middle), 0x8000U | float_to_half(middle));
    EXPECT_EQ(float_to_half_up(middle), high);
    EXPECT_EQ(float_to_half_up(std::nextafter(half_to_float(low), 1e30F)), high);
  }
}

TEST(Half, SaturatesWhatIsFiniteAndKeepsWhatIsNot) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_half(65519.99F), 0x7BFF);
  EXPECT_EQ(float_to_half(65520.0F), 0x7BFF);
  EXPECT_EQ(float_to_half(-1e38F), 0xFBFF);
  EXPECT_EQ(float_to_half_up(1e38F), 0x7BFF);
  EXPECT_EQ(float_to_half(infinity), 0x7C00);
  EXPECT_EQ(float_to_half(-infinity), 0xFC00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::quiet_NaN()) & 0x7FFF, kHalfNan);
  EXPECT_EQ(float_to_half(0x1p-25F), 0);  // half of the smallest, to even
  EXPECT_EQ(float_to_half_up(0x1p-25F), 1);
  EXPECT_EQ(float_to_half_up(1e-45F), 1);
  EXPECT_EQ(bfloat_to_float(0x3F80), 1.0F);
  EXPECT_EQ(bfloat_to_float(0xC0A0), -5.0F);
}

// Goal: the 255 steps of the log codes are 2^((c - 255) / 16) to the last bit of fp32.
TEST(LogCode, IsThePowerRoundedOnce) {
  EXPECT_EQ(log_code_factor(0), 0.0F);
  EXPECT_EQ(log_code_square(0), 0.0F);
  EXPECT_EQ(log_code_factor(255), 1.0F);
  for (int code = 1; code < 256; ++code) {
    const auto c = static_cast<uint8_t>(code);
    EXPECT_EQ(log_code_factor(c), static_cast<float>(std::exp2((code - 255) / 16.0)));
    EXPECT_EQ(log_code_square(c), static_cast<float>(std::exp2((code - 255) / 8.0)));
    EXPECT_TRUE(std::isnormal(half_to_float(1) * log_code_factor(c)));
  }
}

}  // namespace
}  // namespace skv
