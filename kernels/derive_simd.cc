// Derivation of the default index and of means with Highway, compiled once per instruction set.
//
// A lane is a channel: no sum runs across lanes and nothing is fused, so every target writes the
// same bytes. Keys are read where they lie, once per pass; a vector of channels of a sentence's
// keys stays in the first level cache between the passes.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/derive_simd.cc"
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "kernels/derive.h"

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr uint32_t kChannelsMax = 16;  // of one vector

template <class D>
HWY_INLINE hn::Vec<D> held(D df, hn::Vec<D> value) {
  const auto largest = hn::Set(df, std::numeric_limits<float>::max());
  return hn::Min(hn::Max(value, hn::Neg(largest)), largest);
}

// Exact; infinity and NaN stay what they are. Needs subnormals (FloatEnvironment).
template <class D>
HWY_INLINE hn::Vec<D> from_halves(D df, hn::Vec<hn::RebindToUnsigned<D>> bits) {
  const hn::RebindToUnsigned<D> du;
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFU));
  const auto scaled = hn::Mul(hn::BitCast(df, hn::ShiftLeft<13>(magnitude)), hn::Set(df, 0x1p112F));
  const auto beyond = hn::Ge(scaled, hn::Set(df, 65536.0F));
  const auto exponent = hn::BitCast(df, hn::Set(du, 0x7F800000U));
  const auto value = hn::Or(scaled, hn::IfThenElseZero(beyond, exponent));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000U)));
  return hn::Or(value, hn::BitCast(df, sign));
}

template <class D, BodyDtype kDtype>
HWY_INLINE hn::Vec<D> load_keys(D df, const std::byte* at) {
  if constexpr (kDtype == BodyDtype::kFp32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(at));
  } else {
    const hn::Rebind<uint16_t, D> d16;
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at)));
    if constexpr (kDtype == BodyDtype::kBf16) return hn::BitCast(df, hn::ShiftLeft<16>(bits));
    return from_halves(df, bits);
  }
}

// Mean, spread, residuals and their largest, channel by channel.
template <class D, BodyDtype kDtype>
void find_statistics(D df, const DeriveJob& job) {
  const KeyRows& keys = *job.keys;
  const uint32_t tokens = keys.block_count * keys.block_tokens;
  const uint32_t runs = tokens / job.run_tokens;
  const auto count = hn::Set(df, static_cast<float>(job.mask->count));
  const auto zero = hn::Zero(df);
  for (uint32_t d = 0; d < keys.k_dim; d += static_cast<uint32_t>(hn::Lanes(df))) {
    const auto key_at = [&](uint32_t token) HWY_ATTR {
      const std::byte* row = keys.blocks + token / keys.block_tokens * keys.block_stride +
                             token % keys.block_tokens * keys.row_stride;
      return load_keys<D, kDtype>(df, row + size_t{d} * (kDtype == BodyDtype::kFp32 ? 4 : 2));
    };
    auto sum = zero;
    auto nothing = zero;  // NaN where some key is not finite
    for (uint32_t token = 0; token < tokens; ++token) {
      if (!job.mask->holds(token)) continue;
      const auto key = key_at(token);
      nothing = hn::Or(nothing, hn::Sub(key, key));
      sum = hn::Add(sum, key);
    }
    const auto bad = hn::IsNaN(nothing);
    sum = hn::IfThenZeroElse(bad, sum);
    alignas(64) float lanes[kChannelsMax];
    hn::Store(hn::Div(held(df, sum), count), df, lanes);
    alignas(64) uint8_t bad_bits[8] = {};
    hn::StoreMaskBits(df, bad, bad_bits);
    for (uint32_t lane = 0; lane < hn::Lanes(df); ++lane) {
      const uint16_t half = float_to_half(lanes[lane]);
      lanes[lane] = half_to_float(half);
      const bool is_bad = (bad_bits[lane / 8] >> (lane % 8) & 1) != 0;
      store_u16(job.record + size_t{2} * (d + lane), is_bad ? kHalfNan : half);
    }
    if (job.residuals == nullptr) continue;

    const auto mean = hn::Load(df, lanes);
    auto squares = zero;
    for (uint32_t token = 0; token < tokens; ++token) {
      if (!job.mask->holds(token)) continue;
      const auto off = hn::Sub(hn::IfThenZeroElse(bad, key_at(token)), mean);
      squares = hn::Add(squares, hn::Mul(off, off));
    }
    hn::StoreU(hn::Sqrt(hn::Div(held(df, squares), count)), df, job.spread + d);

    auto largest = zero;
    for (uint32_t run = 0; run < runs; ++run) {
      auto residual = zero;
      uint32_t of_run = 0;
      for (uint32_t token = run * job.run_tokens; token < (run + 1) * job.run_tokens; ++token) {
        if (!job.mask->holds(token)) continue;
        residual = hn::Add(residual, hn::IfThenZeroElse(bad, key_at(token)));
        ++of_run;
      }
      if (of_run > 0) {
        const auto run_mean = hn::Div(held(df, residual), hn::Set(df, static_cast<float>(of_run)));
        residual = held(df, hn::Sub(run_mean, mean));
        largest = hn::Max(largest, hn::Abs(residual));
      }
      hn::StoreU(residual, df, job.residuals + size_t{run} * keys.k_dim + d);
    }
    hn::StoreU(hn::Div(largest, hn::Set(df, 7.0F)), df, job.scale + d);
  }
}

constexpr std::array<float, 256> kCodeFactors = [] {
  std::array<float, 256> factors{};
  for (uint32_t c = 0; c < 256; ++c) factors[c] = log_code_factor(static_cast<uint8_t>(c));
  return factors;
}();

// Writes m and the codes of `values` (finite, >= 0): the smallest code whose value, made larger by
// half a step, reaches the wanted one, so the nearest in ratio; 0 for 0, 255 where none does.
// Returns m.
template <class D>
float write_codes(D df, const float* values, uint32_t k_dim, std::byte* m_at, std::byte* codes_at) {
  constexpr float kHalfStep = 0x1.059b0ep+0F;  // 2^(1/32)
  float largest = 0.0F;
  for (uint32_t d = 0; d < k_dim; ++d) largest = std::max(largest, values[d]);
  const uint16_t m_half = float_to_half_up(largest);
  const float m = half_to_float(m_half);
  store_u16(m_at, m_half);
  alignas(64) float reaches[256];  // ascending
  for (uint32_t c = 0; c < 256; c += static_cast<uint32_t>(hn::Lanes(df))) {
    const auto value = hn::Mul(hn::Set(df, m), hn::LoadU(df, kCodeFactors.data() + c));
    hn::Store(hn::Mul(value, hn::Set(df, kHalfStep)), df, reaches + c);
  }
  const hn::RebindToSigned<D> di;
  for (uint32_t d = 0; d < k_dim; d += static_cast<uint32_t>(hn::Lanes(df))) {
    const auto wanted = hn::LoadU(df, values + d);
    auto below = hn::Zero(di);  // the last of the codes from 1 on that do not reach it
    for (int32_t step = 128; step > 0; step /= 2) {
      const auto code = hn::Add(below, hn::Set(di, step));
      const auto is = hn::Lt(hn::GatherIndex(df, reaches, code), wanted);
      below = hn::Add(below, hn::IfThenElseZero(hn::RebindMask(di, is), hn::Set(di, step)));
    }
    const auto code = hn::Min(hn::Add(below, hn::Set(di, 1)), hn::Set(di, 255));
    const auto any = hn::RebindMask(di, hn::Gt(wanted, hn::Zero(df)));
    const hn::Rebind<uint8_t, D> d8;
    hn::StoreU(hn::DemoteTo(d8, hn::IfThenElseZero(any, code)), d8,
               reinterpret_cast<uint8_t*>(codes_at) + d);
  }
  return m;
}

// The int4 tiles: 16 runs of a channel are one word of 64 bits, run i in bits 4 i and up.
template <class D>
void write_tiles(D df, const DeriveJob& job, float m) {
  const hn::RebindToSigned<D> di;
  const hn::RebindToUnsigned<D> du;
  const uint32_t k_dim = job.keys->k_dim;
  const uint32_t runs = job.keys->block_count * job.keys->block_tokens / job.run_tokens;
  const auto seven = hn::Set(df, 7.0F);
  const auto magic = hn::Set(df, 12582912.0F);  // round_to_even
  for (uint32_t first = 0; first < runs; first += kTileRuns) {
    const uint32_t row_bytes = VectorRecordLayout::tile_width(runs, first) / 2;
    std::byte* tile = job.record + job.layout.tiles + VectorRecordLayout::tile_offset(k_dim, first);
    for (uint32_t d = 0; d < k_dim; d += static_cast<uint32_t>(hn::Lanes(df))) {
      alignas(64) float scales[kChannelsMax];
      for (uint32_t lane = 0; lane < hn::Lanes(df); ++lane) {
        scales[lane] =
            m * kCodeFactors[static_cast<size_t>(job.record[job.layout.scale_codes + d + lane])];
      }
      const auto scale = hn::Load(df, scales);
      const auto counts = hn::Gt(scale, hn::Zero(df));
      alignas(64) uint32_t words[2][kChannelsMax];
      for (uint32_t half = 0; half < 2; ++half) {
        auto word = hn::Zero(du);
        const uint32_t begin = first + 8 * half;
        for (uint32_t run = begin; run < std::min(begin + 8, runs); ++run) {
          const auto residual = hn::LoadU(df, job.residuals + size_t{run} * k_dim + d);
          auto steps = hn::IfThenElseZero(counts, hn::Div(residual, scale));
          steps = hn::Min(hn::Max(steps, hn::Neg(seven)), seven);
          const auto code = hn::ConvertTo(di, hn::Sub(hn::Add(steps, magic), magic));
          const auto nibble = hn::And(hn::BitCast(du, code), hn::Set(du, 0xFU));
          word = hn::Or(word, hn::ShiftLeftSame(nibble, static_cast<int>(4 * (run - begin))));
        }
        hn::Store(word, du, words[half]);
      }
      for (uint32_t lane = 0; lane < hn::Lanes(df); ++lane) {
        const uint64_t row = words[0][lane] | uint64_t{words[1][lane]} << 32;
        std::memcpy(tile + size_t{d + lane} * row_bytes, &row, row_bytes);
      }
    }
  }
}

template <class D>
void derive_with(D df, const DeriveJob& job) {
  switch (job.keys->dtype) {
    case BodyDtype::kFp32:
      find_statistics<D, BodyDtype::kFp32>(df, job);
      break;
    case BodyDtype::kFp16:
      find_statistics<D, BodyDtype::kFp16>(df, job);
      break;
    default:
      find_statistics<D, BodyDtype::kBf16>(df, job);
      break;
  }
  if (job.residuals == nullptr) return;
  const uint32_t k_dim = job.keys->k_dim;
  const VectorRecordLayout& at = job.layout;
  write_codes(df, job.spread, k_dim, job.record + at.spread_m, job.record + at.spread_codes);
  const float m =
      write_codes(df, job.scale, k_dim, job.record + at.scale_m, job.record + at.scale_codes);
  write_tiles(df, job, m);
}

// Dimensions are a multiple of 8.
void derive_target(const DeriveJob& job) {
  const hn::CappedTag<float, kChannelsMax> wide;
  if (job.keys->k_dim % hn::Lanes(wide) == 0) return derive_with(wide, job);
  derive_with(hn::CappedTag<float, 8>(), job);
}

}  // namespace

void derive_on_target(const DeriveJob& job) { derive_target(job); }

}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(derive_on_target);

void derive_mean_and_runs(const DeriveJob& job) { HWY_DYNAMIC_DISPATCH(derive_on_target)(job); }

}  // namespace skv
#endif  // HWY_ONCE
