// Lanes and scalar functions that the vectorised kernels share: included once per instruction set.
#if defined(SKV_KERNELS_RANK_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SKV_KERNELS_RANK_SIMD_INL_H_
#undef SKV_KERNELS_RANK_SIMD_INL_H_
#else
#define SKV_KERNELS_RANK_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <bit>

#include "ipc/layout/vectors.h"
#include "kernels/rank_math.h"

// Unrolled, so that the accumulators of a block of queries stay in registers: g++ -O2 alone leaves
// them in an array on the stack, twice as slow.
#undef SKV_UNROLL
#undef SKV_EACH_QUERY
#undef SKV_EACH_OF
#undef SKV_UNROLL_ALL
#if defined(__clang__)
#define SKV_UNROLL _Pragma("unroll")
#define SKV_UNROLL_ALL _Pragma("unroll")
#else
#define SKV_UNROLL _Pragma("GCC unroll 4")
#define SKV_UNROLL_ALL _Pragma("GCC unroll 16")
#endif
#define SKV_EACH_OF(i, count) SKV_UNROLL_ALL for (size_t i = 0; i < (count); ++i)
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

// table[index % 16] in each lane.
HWY_INLINE WordVector table_of_16(const uint32_t* table, WordVector index) {
  const Words du;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  return WordVector{_mm512_permutexvar_epi32(index.raw, hn::LoadU(du, table).raw)};
#else
  const auto low = hn::And(index, hn::Set(du, kLanes == 8 ? 7U : 15U));
  if constexpr (kLanes == 8) {
    const auto lanes = hn::IndicesFromVec(du, low);
    const auto first = hn::TableLookupLanes(hn::LoadU(du, table), lanes);
    const auto second = hn::TableLookupLanes(hn::LoadU(du, table + 8), lanes);
    return hn::IfThenElse(hn::TestBit(index, hn::Set(du, 8U)), second, first);
  } else {
    return hn::GatherIndex(du, table, hn::BitCast(Ints(), low));
  }
#endif
}

// log_code_factor and log_code_square of kLanes codes. With 16 lanes one permutation looks up the
// power (it takes the low four bits of each code) and one addition sets the exponent: what the
// code's low bits add to the fraction is taken off the table before.
template <uint32_t kStepsPerOctave>
HWY_INLINE FloatVector code_values(const uint8_t* at) {
  constexpr uint32_t kLowBits = kStepsPerOctave - 1;
  constexpr int kShift = kStepsPerOctave == 16 ? 19 : 20;
  static constexpr std::array<uint32_t, 16> kTable = [] {
    std::array<uint32_t, 16> table{};
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t low = i & kLowBits;
      const float power = detail::kSixteenthPowers[(kLowBits - low) * (16 / kStepsPerOctave)];
      table[i] =
          std::bit_cast<uint32_t>(power) - ((255U / kStepsPerOctave) << 23) - (low << kShift);
    }
    return table;
  }();
  const Words du;
  const auto codes = hn::PromoteTo(du, hn::LoadU(Bytes(), at));
  const auto power = table_of_16(kTable.data(), codes);
  const auto bits = hn::Add(power, hn::ShiftLeft<kShift>(codes));
  return hn::BitCast(Floats(), hn::IfThenZeroElse(hn::Eq(codes, hn::Zero(du)), bits));
}
HWY_INLINE FloatVector code_factors(const uint8_t* at) { return code_values<16>(at); }
HWY_INLINE FloatVector code_squares(const uint8_t* at) { return code_values<8>(at); }

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

// Neighbours' sums, in place. Reads and writes up to the next multiple of kLanes of them.
HWY_INLINE void halve(float* values, size_t count) {
  const Floats df;
  for (size_t i = 0; i < count; i += kLanes) {
    const auto low = hn::LoadU(df, values + 2 * i);
    const auto high = hn::LoadU(df, values + 2 * i + kLanes);
    hn::StoreU(hn::Add(hn::ConcatEven(df, high, low), hn::ConcatOdd(df, high, low)), df,
               values + i);
  }
}

#endif  // SKV_RANK_VECTORS

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#endif  // include guard
