// Lanes and scalar functions that the vectorised kernels share: included once per instruction set.
#if defined(SKV_KERNELS_RANK_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SKV_KERNELS_RANK_SIMD_INL_H_
#undef SKV_KERNELS_RANK_SIMD_INL_H_
#else
#define SKV_KERNELS_RANK_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include "ipc/layout/vectors.h"
#include "kernels/rank_math.h"

// Unrolled, so that the accumulators of a block of queries stay in registers: g++ -O2 alone leaves
// them in an array on the stack, twice as slow.
#undef SKV_UNROLL
#undef SKV_EACH_QUERY
#if defined(__clang__)
#define SKV_UNROLL _Pragma("unroll")
#else
#define SKV_UNROLL _Pragma("GCC unroll 4")
#endif
// `q` is declared. NOLINTNEXTLINE(bugprone-macro-parentheses)
#define SKV_EACH_QUERY(q) SKV_UNROLL for (size_t q = 0; q < kQueries; ++q)

// 16 lanes, in vectors of 4, 8 or 16. Without fma, or with vectors whose length is not known when
// compiling, the plain loops run.
#undef SKV_RANK_VECTORS
#if HWY_NATIVE_FMA && !HWY_HAVE_SCALABLE && HWY_TARGET != HWY_SCALAR
#define SKV_RANK_VECTORS 1
#else
#define SKV_RANK_VECTORS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

#if SKV_RANK_VECTORS

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Words = hn::Rebind<uint32_t, Floats>;
using Ints = hn::Rebind<int32_t, Floats>;
using Halves = hn::Rebind<hwy::float16_t, Floats>;
using Bytes = hn::Rebind<uint8_t, Floats>;
using FloatVector = hn::Vec<Floats>;
using WordVector = hn::Vec<Words>;

constexpr size_t kLanes = HWY_MAX_BYTES / 4 < 16 ? HWY_MAX_BYTES / 4 : 16;
constexpr size_t kParts = 16 / kLanes;  // vectors per tile of 16

// 2^(-i / 16) for i = 0..15 in each lane of `index`.
HWY_INLINE FloatVector sixteenth_power(WordVector index) {
  const Floats df;
  const float* table = detail::kSixteenthPowers.data();
  if constexpr (kLanes == 16) {
    return hn::TableLookupLanes(hn::LoadU(df, table),
                                hn::IndicesFromVec(df, hn::BitCast(Ints(), index)));
  } else if constexpr (kLanes == 8) {
    const auto low = hn::And(index, hn::Set(Words(), 7U));
    const auto lanes = hn::IndicesFromVec(df, hn::BitCast(Ints(), low));
    const auto first = hn::TableLookupLanes(hn::LoadU(df, table), lanes);
    const auto second = hn::TableLookupLanes(hn::LoadU(df, table + 8), lanes);
    const auto is_second = hn::Gt(hn::BitCast(Ints(), index), hn::Set(Ints(), 7));
    return hn::IfThenElse(hn::RebindMask(df, is_second), second, first);
  } else {
    return hn::GatherIndex(df, table, hn::BitCast(Ints(), index));
  }
}

// log_code_factor and log_code_square of kLanes codes.
HWY_INLINE FloatVector scaled_down_codes(WordVector codes, FloatVector power, WordVector halvings) {
  const Words du;
  const auto bits = hn::Sub(hn::BitCast(du, power), hn::ShiftLeft<23>(halvings));
  return hn::BitCast(Floats(), hn::IfThenZeroElse(hn::Eq(codes, hn::Zero(du)), bits));
}
HWY_INLINE FloatVector code_factors(const uint8_t* at) {
  const Words du;
  const auto codes = hn::PromoteTo(du, hn::LoadU(Bytes(), at));
  const auto below = hn::Sub(hn::Set(du, 255U), codes);
  return scaled_down_codes(codes, sixteenth_power(hn::And(below, hn::Set(du, 15U))),
                           hn::ShiftRight<4>(below));
}
HWY_INLINE FloatVector code_squares(const uint8_t* at) {
  const Words du;
  const auto codes = hn::PromoteTo(du, hn::LoadU(Bytes(), at));
  const auto below = hn::Sub(hn::Set(du, 255U), codes);
  const auto index = hn::ShiftLeft<1>(hn::And(below, hn::Set(du, 7U)));
  return scaled_down_codes(codes, sixteenth_power(index), hn::ShiftRight<3>(below));
}

HWY_INLINE FloatVector halves(const std::byte* at) {
  return hn::PromoteTo(Floats(), hn::LoadU(Halves(), reinterpret_cast<const hwy::float16_t*>(at)));
}

HWY_INLINE FloatVector cleaned(FloatVector logits) {
  const Floats df;
  const auto counts = hn::Le(hn::Abs(logits), hn::Set(df, kLogitMax));
  return hn::IfThenElse(counts, logits, hn::Set(df, kLogitNone));
}

HWY_INLINE FloatVector exp2_of_lanes(FloatVector x) {
  const Floats df;
  const auto least = hn::Set(df, kExp2Min);
  const auto magic = hn::Set(df, kRoundMagic);
  const auto counts = hn::Ge(x, least);
  x = hn::Max(x, least);
  const auto whole = hn::Sub(hn::Add(x, magic), magic);
  const auto f = hn::Sub(x, whole);
  auto p = hn::Set(df, kExp2Coefficients[5]);
  for (int i = 4; i >= 0; --i) p = hn::MulAdd(p, f, hn::Set(df, kExp2Coefficients[i]));
  p = hn::MulAdd(p, f, hn::Set(df, 1.0F));
  const auto exponent =
      hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(Ints(), whole), hn::Set(Ints(), 127)));
  return hn::IfThenElseZero(counts, hn::Mul(p, hn::BitCast(df, exponent)));
}

#endif  // SKV_RANK_VECTORS

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#endif  // include guard
