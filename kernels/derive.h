#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ipc/layout/half.h"
#include "kernels/vectors.h"

// What the derivation of all index kinds shares.
namespace skv {

inline void store_u16(std::byte* at, uint16_t value) { std::memcpy(at, &value, sizeof value); }
inline uint16_t load_u16(const std::byte* at) {
  uint16_t value = 0;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline void load_row(const std::byte* from, BodyDtype dtype, uint32_t k_dim, float* to) {
  if (dtype == BodyDtype::kFp32) {
    std::memcpy(to, from, k_dim * sizeof(float));
    return;
  }
  for (uint32_t d = 0; d < k_dim; ++d) {
    const uint16_t bits = load_u16(from + size_t{2} * d);
    to[d] = dtype == BodyDtype::kFp16 ? half_to_float(bits) : bfloat_to_float(bits);
  }
}

// Nearest even, by the addition that leaves no fraction; |value| < 2^22.
inline float round_to_even(float value) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (value + kMagic) - kMagic;
}

// The tokens that count, and how many.
struct TokenMask {
  const uint8_t* bytes;
  uint32_t count;

  TokenMask(const uint8_t* mask, uint32_t tokens) : bytes(mask), count(tokens) {
    if (mask == nullptr) return;
    count =
        static_cast<uint32_t>(std::count_if(mask, mask + tokens, [](uint8_t b) { return b != 0; }));
    if (count != 0) return;
    bytes = nullptr;
    count = tokens;
  }
  bool holds(uint32_t token) const { return bytes == nullptr || bytes[token] != 0; }
};

// sum / count in fp32. Sums of huge fp32 or bf16 keys may overflow: held to the largest finite one.
inline float held_finite(float value) {
  constexpr float kLargest = 0x1.fffffep+127F;
  return std::clamp(value, -kLargest, kLargest);
}

inline Error invalid_vectors(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

// One record of the default index, or a mean alone (derive_simd.cc). Requires: FloatEnvironment.
struct DeriveJob {
  const KeyRows* keys = nullptr;
  const TokenMask* mask = nullptr;
  uint32_t run_tokens = 0;
  VectorRecordLayout layout;
  std::byte* record = nullptr;
  // Working memory; null for a mean alone.
  float* spread = nullptr;     // [k_dim]
  float* scale = nullptr;      // [k_dim]
  float* residuals = nullptr;  // [run][k_dim]
};
void derive_mean_and_runs(const DeriveJob& job);

// Flat kinds (flat_vectors.cc), as derive_record and check_blob do for one record.
void derive_flat(const KeyRows& keys,
                 const IndexDescriptor& index,
                 const TokenMask& mask,
                 std::byte* record,
                 DeriveScratch& scratch);
Result<void> check_flat(IndexKind kind, uint32_t k_dim, uint32_t runs, const std::byte* record);

}  // namespace skv
