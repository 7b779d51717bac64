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
#include <cstring>

#include "ipc/layout/vectors.h"
#include "kernels/flat_pages.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"

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
// `i` is declared. NOLINTNEXTLINE(bugprone-macro-parentheses)
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
using Shorts = hn::Repartition<int16_t, Floats>;
using Bfloats = hn::Rebind<uint16_t, Words>;
using IntVector = hn::Vec<Ints>;
using ShortVector = hn::Vec<Shorts>;

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

// log_code_factor of kLanes codes. With 16 lanes one permutation looks up the
// power (it takes the low four bits of each code) and one addition sets the exponent: what the
// code's low bits add to the fraction is taken off the table before.
HWY_INLINE FloatVector code_factors(const uint8_t* at) {
  constexpr int kShift = 19;  // a code is sixteenths of an octave, and these bits of an exponent
  static constexpr std::array<uint32_t, 16> kTable = [] {
    std::array<uint32_t, 16> table{};
    for (uint32_t i = 0; i < 16; ++i) {
      const float power = detail::kSixteenthPowers[15 - i];
      table[i] = std::bit_cast<uint32_t>(power) - ((255U / 16) << 23) - (i << kShift);
    }
    return table;
  }();
  const Words du;
  const auto codes = hn::PromoteTo(du, hn::LoadU(Bytes(), at));
  const auto power = table_of_16(kTable.data(), codes);
  const auto bits = hn::Add(power, hn::ShiftLeft<kShift>(codes));
  return hn::BitCast(Floats(), hn::IfThenZeroElse(hn::Eq(codes, hn::Zero(du)), bits));
}

HWY_INLINE FloatVector halves(const std::byte* at) {
  return hn::PromoteTo(Floats(), hn::LoadU(Halves(), reinterpret_cast<const hwy::float16_t*>(at)));
}

// bf16 is the upper half of fp32.
HWY_INLINE FloatVector bfloats(const std::byte* at) {
  const auto bits = hn::LoadU(Bfloats(), reinterpret_cast<const uint16_t*>(at));
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(Words(), bits)));
}
template <bool kBfloat>
HWY_INLINE FloatVector load_values(const std::byte* at) {
  if constexpr (kBfloat) {
    return bfloats(at);
  } else {
    return halves(at);
  }
}

// acc + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] per lane i.
HWY_INLINE IntVector pair_dot(IntVector acc, ShortVector a, ShortVector b) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
  // The target's CPUs have VNNI; Highway 1.0.3 does not let the compiler know.
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
  return acc;
#elif HWY_ARCH_X86
  auto unused = hn::Zero(Ints());
  return hn::ReorderWidenMulAccumulate(Ints(), a, b, acc, unused);
#else
  const Ints di;
  const auto a_pair = hn::BitCast(di, a);
  const auto b_pair = hn::BitCast(di, b);
  const auto low = [](auto v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  acc = hn::Add(acc, hn::Mul(low(a_pair), low(b_pair)));
  return hn::Add(acc, hn::Mul(hn::ShiftRight<16>(a_pair), hn::ShiftRight<16>(b_pair)));
#endif
}

// The four signed bytes at `steps` in every lane.
HWY_INLINE IntVector quad_steps(const int8_t* steps) {
  int32_t four = 0;
  std::memcpy(&four, steps, sizeof four);
  return hn::Set(Ints(), four);
}
// acc + the products of four unsigned bytes of `values` per lane with the four signed ones of
// `steps`.
HWY_INLINE IntVector quad_dot(IntVector acc, WordVector values, IntVector steps) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
  // Both from registers: with the steps from memory, it is slower.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(values.raw), "v"(steps.raw));
  return acc;
#else
  // Bytes 0 and 2, then 1 and 3, as pairs of 16-bit numbers.
  const Shorts ds;
  const auto bytes = hn::BitCast(hn::Repartition<uint16_t, Floats>(), values);
  const auto even = hn::And(bytes, hn::Set(hn::Repartition<uint16_t, Floats>(), 0xFF));
  const auto signs = hn::BitCast(ds, steps);
  acc = pair_dot(acc, hn::BitCast(ds, even), hn::ShiftRight<8>(hn::ShiftLeft<8>(signs)));
  return pair_dot(acc, hn::BitCast(ds, hn::ShiftRight<8>(bytes)), hn::ShiftRight<8>(signs));
#endif
}
HWY_INLINE IntVector quad_dot(IntVector acc, WordVector values, const int8_t* steps) {
  return quad_dot(acc, values, quad_steps(steps));
}

// Lines that are asked for while `kLines` are read, from where they lie one after the other: memory
// sees one stream. Null: none. To the second cache: the first has fewer misses under way at once.
template <size_t kLines>
HWY_INLINE void prefetch_lines(const std::byte* ahead, size_t offset) {
  if (ahead == nullptr) return;
  SKV_EACH_OF(line, kLines) __builtin_prefetch(ahead + offset + line * 64, 0, 2);
}

HWY_INLINE WordVector load_words(const std::byte* at) {
  return hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(at));
}

// Sums of neighbours, of a's lanes first.
HWY_INLINE FloatVector neighbours(FloatVector a, FloatVector b) {
  const Floats df;
  return hn::Add(hn::ConcatEven(df, b, a), hn::ConcatOdd(df, b, a));
}

// AVX512_BF16, of which Highway 1.0.3 knows nothing: what it does is what kBf16 is defined by.
#undef SKV_BFLOAT_DOT
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define SKV_BFLOAT_DOT 1
HWY_INLINE bool has_bfloat_dot() { return __builtin_cpu_supports("avx512bf16") != 0; }
#else
#define SKV_BFLOAT_DOT 0
HWY_INLINE bool has_bfloat_dot() { return false; }
#endif

// Per lane, of pairs of bf16: the high halves' product is added to acc, then the low ones'.
// `kNative`: by one instruction, which flushes subnormals whatever the environment.
template <bool kNative>
HWY_INLINE FloatVector bfloat_pair_dot(FloatVector acc, WordVector a, WordVector b) {
#if SKV_BFLOAT_DOT
  if constexpr (kNative) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
    return acc;
  }
#endif
  const Floats df;
  const auto high = [&](WordVector v) HWY_ATTR {
    return hn::BitCast(df, hn::And(v, hn::Set(Words(), 0xFFFF0000U)));
  };
  const auto low = [&](WordVector v) HWY_ATTR { return hn::BitCast(df, hn::ShiftLeft<16>(v)); };
  acc = hn::MulAdd(high(a), high(b), acc);
  return hn::MulAdd(low(a), low(b), acc);
}

// What a line of a tile of 16-bit values, 4 channels of 8 runs, is to a sum: kVectors vectors.
// fp16: a lane is a channel of a run, as fp32.
struct HalfLine {
  using Values = FloatVector;
  static constexpr size_t kVectors = 8 * 4 / kLanes;
  static HWY_INLINE Values load(const std::byte* line, size_t v) {
    return halves(line + v * kLanes * 2);
  }
  static HWY_INLINE FloatVector add(FloatVector acc, Values values, FloatVector query) {
    return hn::MulAdd(query, values, acc);
  }
};
// bf16: a lane is two channels, with nothing to convert.
template <bool kNative>
struct PairLine {
  using Values = WordVector;
  static constexpr size_t kVectors = 16 / kLanes;
  static HWY_INLINE Values load(const std::byte* line, size_t v) {
    return load_words(line + v * kLanes * 4);
  }
  static HWY_INLINE FloatVector add(FloatVector acc, Values values, FloatVector query) {
    return bfloat_pair_dot<kNative>(acc, values, hn::BitCast(Words(), query));
  }
};

// Sums of kAtOnce pieces that follow each other, for kQueries queries as spread_query leaves them:
// acc [query][piece][Line::kVectors]. `ahead`: what is asked for meanwhile, or null.
template <class Line, size_t kQueries, size_t kAtOnce>
HWY_INLINE void sum_lines(const std::byte* pieces,
                          size_t piece_bytes,
                          size_t k_dim,
                          const float* queries,
                          const std::byte* ahead,
                          size_t ahead_offset,
                          FloatVector* acc) {
  constexpr size_t kVectors = Line::kVectors * kAtOnce;
  const Floats df;
  SKV_EACH_OF(i, kQueries * kVectors) acc[i] = hn::Zero(df);
  // Few rounds of much: the end of a long loop is a surprise to the CPU.
  SKV_UNROLL
  for (size_t two = 0; two < k_dim; two += 8) {
    prefetch_lines<2 * kAtOnce>(ahead, ahead_offset + two * 16 * kAtOnce);
    SKV_EACH_OF(step, 2) {
      const size_t d = two + 4 * step;
      typename Line::Values values[kVectors];
      SKV_EACH_OF(v, kVectors) {
        values[v] =
            Line::load(pieces + v / Line::kVectors * piece_bytes + d * 16, v % Line::kVectors);
      }
      SKV_EACH_OF(q, kQueries) {
        const auto query = hn::LoadU(df, queries + (q * k_dim + d) * kQuerySpread);
        SKV_EACH_OF(v, kVectors) {
          acc[q * kVectors + v] = Line::add(acc[q * kVectors + v], values[v], query);
        }
      }
    }
  }
}

// Dot products of kQueries queries, [query][k_dim / 4][4][4] (kQuerySpread), with kRuns / 8 pieces
// of a tile of fp16 values, [d / 4][8][4] each, to dots[query * (kRuns / kLanes) + part]. A lane
// sums every fourth channel of a run; neighbours are added at the end. Pieces are read from
// beginning to end, which is how memory is fast; a line is two vectors, which share the queries'
// loads. Four queries take two pieces at once, which share them too: what they wait for is asked
// for ahead.
template <size_t kQueries, size_t kRuns>
HWY_INLINE void piece_dots(const std::byte* tile,
                           size_t k_dim,
                           const float* queries,
                           const std::byte* ahead,
                           FloatVector* dots) {
  constexpr size_t kLine = HalfLine::kVectors;
  constexpr size_t kPieces = kRuns / kPieceRuns;
  constexpr size_t kAtOnce = kLanes == 16 && kQueries == 4 ? kPieces : 1;
  constexpr size_t kVectors = kLine * kAtOnce;
  const size_t piece_bytes = kPieceRuns * 2 * k_dim;
  FloatVector pairs[kQueries * kPieces * (kLine / 2)];
  SKV_EACH_OF(group, kPieces / kAtOnce) {
    FloatVector acc[kQueries * kVectors];
    sum_lines<HalfLine, kQueries, kAtOnce>(tile + group * kAtOnce * piece_bytes, piece_bytes, k_dim,
                                           queries, ahead, group * kAtOnce * piece_bytes, acc);
    SKV_EACH_OF(q, kQueries) {
      SKV_EACH_OF(v, kVectors / 2) {
        pairs[q * kPieces * (kLine / 2) + group * (kVectors / 2) + v] =
            neighbours(acc[q * kVectors + 2 * v], acc[q * kVectors + 2 * v + 1]);
      }
    }
  }
  constexpr size_t kParts2 = kPieces * (kLine / 2) / 2;  // vectors of dots per query
  if constexpr (kParts2 == 0) {
    SKV_EACH_OF(q, kQueries) dots[q] = neighbours(pairs[q], pairs[q]);  // the lower half counts
  } else {
    SKV_EACH_OF(i, kQueries * kParts2) dots[i] = neighbours(pairs[2 * i], pairs[2 * i + 1]);
  }
}

// piece_dots of bf16 values and queries, pair by pair, with nothing to convert: a lane has every
// second pair of a run, a line 8 runs. Only eight queries are worth two pieces at once: fewer wait
// for memory, which is fastest in order. Requires: subnormals are flushed.
template <size_t kQueries, size_t kRuns, bool kNative>
HWY_INLINE void pair_dots(const std::byte* tile,
                          size_t k_dim,
                          const float* queries,
                          const std::byte* ahead,
                          FloatVector* dots) {
  constexpr size_t kLine = PairLine<kNative>::kVectors;
  constexpr size_t kPieces = kRuns / kPieceRuns;
  constexpr size_t kAtOnce = kQueries >= 8 ? kPieces : 1;
  constexpr size_t kVectors = kLine * kAtOnce;
  const size_t piece_bytes = kPieceRuns * 2 * k_dim;
  FloatVector sums[kQueries * kPieces * kLine];
  SKV_EACH_OF(group, kPieces / kAtOnce) {
    FloatVector acc[kQueries * kVectors];
    sum_lines<PairLine<kNative>, kQueries, kAtOnce>(tile + group * kAtOnce * piece_bytes,
                                                    piece_bytes, k_dim, queries, ahead,
                                                    group * kAtOnce * piece_bytes, acc);
    SKV_EACH_OF(q, kQueries) {
      SKV_EACH_OF(v, kVectors) {
        sums[q * kPieces * kLine + group * kVectors + v] = acc[q * kVectors + v];
      }
    }
  }
  constexpr size_t kDots = kPieces * kLine / 2;  // vectors of dots per query
  if constexpr (kDots == 0) {
    SKV_EACH_OF(q, kQueries) dots[q] = neighbours(sums[q], sums[q]);  // the lower half counts
  } else {
    SKV_EACH_OF(i, kQueries * kDots) dots[i] = neighbours(sums[2 * i], sums[2 * i + 1]);
  }
}

// The lanes of a vector that begins with `first` of `count` values which are among them.
HWY_INLINE hn::Mask<Floats> first_lanes(size_t count, size_t first) {
  const auto left = static_cast<int32_t>(count) - static_cast<int32_t>(first);
  return hn::RebindMask(Floats(), hn::Lt(hn::Iota(Ints(), 0), hn::Set(Ints(), left)));
}

// What to ask for while the bytes from `offset` of `all` are read, before those from `next`.
HWY_INLINE const std::byte* ahead_of(const std::byte* all,
                                     size_t bytes,
                                     const std::byte* next,
                                     size_t offset) {
  if (offset + kScanAhead < bytes) return all + offset + kScanAhead;
  return (next == nullptr ? all : next) + (offset + kScanAhead - bytes);
}

HWY_INLINE FloatVector cleaned(FloatVector logits) {
  const Floats df;
  const auto counts = hn::Le(hn::Abs(logits), hn::Set(df, kLogitMax));
  return hn::IfThenElse(counts, logits, hn::Set(df, kLogitNone));
}

HWY_INLINE FloatVector exp2_of_lanes(FloatVector x) {
  const Floats df;
  const auto magic = hn::Set(df, kRoundMagic);
  const auto counts = hn::Ge(x, hn::Set(df, kExp2Min));
  const auto rounded = hn::Add(x, magic);  // its low bits are the whole part
  const auto f = hn::Sub(x, hn::Sub(rounded, magic));
  auto p = hn::Set(df, kExp2Coefficients[5]);
  SKV_EACH_OF(i, 5) p = hn::MulAdd(p, f, hn::Set(df, kExp2Coefficients[4 - i]));
  p = hn::MulAdd(p, f, hn::Set(df, 1.0F));
  // To the exponent of p, which times a power of two is: nothing is subnormal here.
  const auto power = hn::ShiftLeft<23>(hn::BitCast(Ints(), rounded));
  return hn::IfThenElseZero(counts, hn::BitCast(df, hn::Add(hn::BitCast(Ints(), p), power)));
}

#endif  // SKV_RANK_VECTORS

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#endif  // include guard
