// The inner loops of rank with Highway: this file is compiled once per instruction set, the best
// one that the CPU has is chosen at run time. Bits are those of rank_reference.cc: every lane does
// the same operations in the same order, only several lanes at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rank_simd.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "ipc/layout/half.h"
#include "ipc/layout/vectors.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"
#include "kernels/rank_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

#if SKV_RANK_VECTORS

// --- coarse ---

// kQueries queries against one part (kLanes sentences) of kTiles tiles that follow each other.
template <size_t kQueries, size_t kTiles, bool kSpread>
HWY_INLINE void coarse_part(const CoarseJob& job,
                            const std::byte* tile,
                            const std::byte* ahead,
                            size_t part,
                            uint32_t first_query,
                            size_t at) {
  const Floats df;
  const size_t k_dim = job.k_dim;
  const size_t lane = part * kLanes;
  const size_t tile_bytes = RankAreaLayout::coarse_tile_bytes(job.kind, job.k_dim);
  const float* query = job.query + first_query * k_dim;
  FloatVector dots[kQueries * kTiles];
  SKV_EACH_OF(i, kQueries * kTiles) dots[i] = hn::Zero(df);
  const std::byte* means = tile + lane * 2;
  for (size_t two = 0; two < k_dim; two += 2) {
    if (ahead != nullptr) {
      SKV_EACH_OF(t, kTiles) prefetch_lines<1>(ahead, t * tile_bytes + two * 32);
    }
    SKV_EACH_OF(i, 2) {
      const size_t d = two + i;
      FloatVector mean[kTiles];
      SKV_EACH_OF(t, kTiles) mean[t] = halves(means + t * tile_bytes + d * 32);
      SKV_EACH_QUERY(q) {
        const auto value = hn::Set(df, query[q * k_dim + d]);
        SKV_EACH_OF(t, kTiles) {
          auto& dot = dots[q * kTiles + t];
          dot = hn::MulAdd(value, mean[t], dot);
        }
      }
    }
  }
  SKV_EACH_OF(t, kTiles) {
    const size_t to = at + t * kTileSentences + lane;
    SKV_EACH_QUERY(q) {
      hn::StoreU(dots[q * kTiles + t], df, job.mean_dots + (first_query + q) * job.stride + to);
    }
  }
  if constexpr (kSpread) {
    const int8_t* steps = job.square_steps + first_query * k_dim;
    const std::byte* squares = tile + RankAreaLayout::squares(job.k_dim);
    IntVector sums[kQueries * kTiles];
    SKV_EACH_OF(i, kQueries * kTiles) sums[i] = hn::Zero(Ints());
    for (size_t d = 0; d < k_dim; d += 4) {
      if (ahead != nullptr) {
        SKV_EACH_OF(t, kTiles) {
          prefetch_lines<1>(ahead, RankAreaLayout::squares(job.k_dim) + t * tile_bytes + d * 16);
        }
      }
      WordVector words[kTiles];
      SKV_EACH_OF(t, kTiles) words[t] = load_words(squares + t * tile_bytes + d * 16 + lane * 4);
      SKV_EACH_QUERY(q) {
        int32_t four = 0;
        std::memcpy(&four, steps + q * k_dim + d, sizeof four);
        const auto of_query = hn::Set(Ints(), four);
        SKV_EACH_OF(t, kTiles) {
          auto& sum = sums[q * kTiles + t];
          sum = quad_dot(sum, words[t], of_query);
        }
      }
    }
    SKV_EACH_OF(t, kTiles) {
      const size_t to = at + t * kTileSentences + lane;
      const auto m = halves(tile + t * tile_bytes + RankAreaLayout::spread_m(job.k_dim) + lane * 2);
      const auto m_square = hn::Mul(m, m);
      SKV_EACH_QUERY(q) {
        const size_t of = (first_query + q) * job.stride + to;
        const auto variance = hn::Mul(hn::ConvertTo(df, sums[q * kTiles + t]),
                                      hn::Set(df, job.square_values[first_query + q]));
        const auto logit = hn::MulAdd(hn::Mul(variance, m_square), hn::Set(df, kHalfLn2),
                                      hn::LoadU(df, job.mean_dots + of));
        hn::StoreU(cleaned(logit), df, job.coarse + of);
      }
    }
  }
}

template <size_t kTiles, bool kSpread>
HWY_NOINLINE void coarse_queries(const CoarseJob& job, uint32_t first_tile) {
  const size_t tile_bytes = RankAreaLayout::coarse_tile_bytes(job.kind, job.k_dim);
  const std::byte* tile = job.area + first_tile * tile_bytes;
  const std::byte* ahead = job.next == nullptr ? nullptr : job.next + first_tile * tile_bytes;
  const size_t at = size_t{first_tile} * kTileSentences;
  for (size_t part = 0; part < kParts; ++part) {
    uint32_t q = 0;
    for (; q + 4 <= job.query_count; q += 4) {
      coarse_part<4, kTiles, kSpread>(job, tile, ahead, part, q, at);
      ahead = nullptr;
    }
    const uint32_t left = job.query_count - q;
    if (left == 3) coarse_part<3, kTiles, kSpread>(job, tile, ahead, part, q, at);
    if (left == 2) coarse_part<2, kTiles, kSpread>(job, tile, ahead, part, q, at);
    if (left == 1) coarse_part<1, kTiles, kSpread>(job, tile, ahead, part, q, at);
    ahead = nullptr;
  }
}

template <bool kSpread>
void coarse_tiles(const CoarseJob& job) {
  // As many tiles beside each other as there are registers for their sums.
  constexpr uint32_t kTiles = kLanes == 16 ? 4 : 2;
  uint32_t tile = 0;
  for (; tile + kTiles <= job.tile_count; tile += kTiles)
    coarse_queries<kTiles, kSpread>(job, tile);
  if constexpr (kTiles > 2) {
    for (; tile + 2 <= job.tile_count; tile += 2) coarse_queries<2, kSpread>(job, tile);
  }
  for (; tile < job.tile_count; ++tile) coarse_queries<1, kSpread>(job, tile);
}

void coarse(const CoarseJob& job) {
  if (job.square_steps != nullptr) {
    coarse_tiles<true>(job);
  } else {
    coarse_tiles<false>(job);
  }
}

// --- fine ---

// A vector of query steps as vectors of residuals meet them: each four channels as often as there
// are runs in a lane group, which is what a shuffle of bytes inside its 16 does. `rounded` holds
// the steps in the low bytes.
HWY_INLINE IntVector steps_of(FloatVector rounded) {
  const hn::Repartition<uint8_t, Floats> d8;
  alignas(16) static constexpr uint8_t kLowBytes[16] = {0, 4, 8, 12, 0, 4, 8, 12,
                                                        0, 4, 8, 12, 0, 4, 8, 12};
  return hn::BitCast(Ints(),
                     hn::TableLookupBytes(hn::BitCast(d8, rounded), hn::LoadDup128(d8, kLowBytes)));
}

// The queries of one call of fine_queries times the scales of a sentence, in steps: vectors
// [vector of channels][query], and what a run's sum begins with, for residuals that are stored as
// residual + 8.
template <size_t kQueries>
struct StepQueries {
  alignas(64) int32_t steps[kQueries * kHeadDimMax];
  IntVector offsets[kQueries];
  float values[kQueries];  // of a step
};

template <size_t kQueries>
HWY_INLINE void make_steps(const FineJob& job,
                           const float* scales,
                           uint32_t first_query,
                           StepQueries<kQueries>& to) {
  const Floats df;
  const size_t padded = padded_to_line(job.k_dim);
  const float* queries = job.query_lines + first_query * padded;
  FloatVector largest[kQueries];
  SKV_EACH_QUERY(q) largest[q] = hn::Zero(df);
  for (size_t d = 0; d < padded; d += kLanes) {
    const auto scale = hn::Load(df, scales + d);
    SKV_EACH_QUERY(q) {
      const auto scaled = hn::Mul(hn::LoadU(df, queries + q * padded + d), scale);
      largest[q] = hn::Max(largest[q], hn::Abs(scaled));
    }
  }
  FloatVector per_step[kQueries];
  IntVector offsets[kQueries];  // beside `to`, so that they stay in registers
  SKV_EACH_QUERY(q) {
    offsets[q] = hn::Zero(Ints());
    const float max = hn::GetLane(hn::MaxOfLanes(df, largest[q]));
    const bool any = max >= kStepsMin;
    per_step[q] = hn::Set(df, any ? static_cast<float>(kQuerySteps) / max : 0.0F);
    to.values[q] = any ? max / static_cast<float>(kQuerySteps) : 0.0F;
    if (!(std::fabs(job.scale_m) <= std::numeric_limits<float>::max())) {
      to.values[q] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  const auto magic = hn::Set(df, kRoundMagic);
  const auto eights = hn::Set(Words(), 0x08080808U);
  int32_t* steps = to.steps;
  for (size_t d = 0; d < padded; d += kLanes) {
    const auto scale = hn::Load(df, scales + d);
    SKV_EACH_QUERY(q) {
      const auto scaled = hn::Mul(hn::LoadU(df, queries + q * padded + d), scale);
      const auto step = steps_of(hn::Add(hn::Mul(scaled, per_step[q]), magic));
      hn::Store(step, Ints(), steps);
      steps += kLanes;
      offsets[q] = quad_dot(offsets[q], eights, step);
    }
  }
  SKV_EACH_QUERY(q) to.offsets[q] = hn::Neg(offsets[q]);
}

// Sums over the groups of channels: from kQuads vectors of [group][run] vectors of runs.
template <size_t kQuads>
HWY_INLINE void sums_of_runs(const IntVector* acc, IntVector* sums) {
  const Ints di;
  if constexpr (kLanes == 16) {
    // Groups 0 and 1, then 2 and 3: [a, b, a, b], then [a, b, c, d].
    const auto halves_of = [](IntVector a, IntVector b) HWY_ATTR {
      return hn::Add(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
    };
    const auto ab = halves_of(acc[0], acc[1 % kQuads]);
    const auto cd = halves_of(acc[2 % kQuads], acc[3 % kQuads]);
    sums[0] = hn::Add(hn::ConcatLowerLower(di, cd, ab), hn::ConcatUpperUpper(di, cd, ab));
  } else if constexpr (kLanes == 8) {
    for (size_t i = 0; i < kQuads; i += 2) {
      const auto a = acc[i];
      const auto b = acc[(i + 1) % kQuads];
      sums[i / 2] = hn::Add(hn::ConcatLowerLower(di, b, a), hn::ConcatUpperUpper(di, b, a));
    }
  } else {
    for (size_t i = 0; i < kQuads; ++i) sums[i] = acc[i];
  }
}

// Logits of kQuads * 4 runs.
template <size_t kQueries, size_t kQuads>
HWY_INLINE void fine_quads(const FineJob& job,
                           const std::byte* quads,
                           const StepQueries<kQueries>& queries,
                           uint32_t first_query,
                           float* logits) {
  const Floats df;
  const size_t bytes = quad_bytes(job.k_dim);
  const auto nibble = hn::Set(Words(), 0x0F0F0F0FU);
  IntVector acc[kQueries * kQuads];
  SKV_EACH_OF(i, kQuads) { SKV_EACH_QUERY(q) acc[q * kQuads + i] = queries.offsets[q]; }
  // As far into the next sentence as this is into its own.
  const std::byte* next = job.next + (quads - job.fine);
  const int32_t* steps = queries.steps;
  for (size_t line = 0; line < bytes; line += 64) {
    SKV_EACH_OF(i, kQuads) prefetch_lines<1>(next, i * bytes + line);
    SKV_EACH_OF(part, kParts) {
      WordVector low[kQuads];
      WordVector high[kQuads];
      SKV_EACH_OF(i, kQuads) {
        const auto words = load_words(quads + i * bytes + line + part * kLanes * 4);
        low[i] = hn::And(words, nibble);
        high[i] = hn::And(hn::ShiftRight<4>(words), nibble);
      }
      const int32_t* from = steps + part * kQueries * kLanes;
      SKV_EACH_QUERY(q) {
        const auto low_steps = hn::Load(Ints(), from + q * kLanes);
        const auto high_steps = hn::Load(Ints(), from + q * kLanes + kQueries * 16);
        SKV_EACH_OF(i, kQuads) {
          auto& sum = acc[q * kQuads + i];
          sum = quad_dot(sum, low[i], low_steps);
          sum = quad_dot(sum, high[i], high_steps);
        }
      }
    }
    steps += kQueries * 32;
  }
  constexpr size_t kVectors = (kQuads * kQuadRuns + kLanes - 1) / kLanes;
  SKV_EACH_QUERY(q) {
    IntVector sums[kVectors];
    sums_of_runs<kQuads>(acc + q * kQuads, sums);
    const auto mean_dot = hn::Set(df, job.mean_dots[(first_query + q) * job.mean_stride]);
    const auto value = hn::Set(df, queries.values[q]);
    SKV_EACH_OF(v, kVectors) {
      const auto logit = cleaned(hn::MulAdd(hn::ConvertTo(df, sums[v]), value, mean_dot));
      hn::StoreU(logit, df, logits + (first_query + q) * job.logit_stride + v * kLanes);
    }
  }
}

template <size_t kQueries>
HWY_NOINLINE void fine_queries(const FineJob& job, const float* scales, uint32_t first_query) {
  StepQueries<kQueries> queries;
  make_steps<kQueries>(job, scales, first_query, queries);
  constexpr uint32_t kQuadsAtOnce = kLanes == 16 ? 4 : 2;
  const uint32_t count = stored_runs(job.runs) / kQuadRuns;
  const std::byte* quads = job.fine + job.k_dim;
  float* logits = job.logits;
  uint32_t left = count;
  const auto take = [&](uint32_t taken) {
    left -= taken;
    quads += size_t{taken} * quad_bytes(job.k_dim);
    logits += size_t{taken} * kQuadRuns;
  };
  for (; left >= kQuadsAtOnce; take(kQuadsAtOnce)) {
    fine_quads<kQueries, kQuadsAtOnce>(job, quads, queries, first_query, logits);
  }
  if constexpr (kQuadsAtOnce == 4) {
    if (left == 3) fine_quads<kQueries, 3>(job, quads, queries, first_query, logits);
    if (left == 2) fine_quads<kQueries, 2>(job, quads, queries, first_query, logits);
  }
  if (left == 1) fine_quads<kQueries, 1>(job, quads, queries, first_query, logits);
}

void fine(const FineJob& job) {
  const Floats df;
  // Scales in the order of lines. Behind the channels of a shorter last line are other bytes, whose
  // scales meet queries of 0.
  alignas(64) float scales[kHeadDimMax];
  // As long as this sentence is, its loops ask for the next one; what that has more, here.
  for (size_t at = job.k_dim * RankAreaLayout::fine_units(job.runs); at < job.next_bytes;
       at += 64) {
    prefetch_lines<1>(job.next, at);
  }
  const auto m = hn::Set(df, job.scale_m);
  const auto* codes = reinterpret_cast<const uint8_t*>(job.fine);
  for (size_t line = 0; line < job.k_dim; line += kLineChannels) {
    if (line % 64 == 0) prefetch_lines<1>(job.next, line);
    const size_t half = HWY_MIN(job.k_dim - line, size_t{kLineChannels}) / 2;
    for (size_t part = 0; part < kParts; ++part) {
      const uint8_t* from = codes + line + part * kLanes;
      float* to = scales + line + part * kLanes;
      hn::Store(hn::Mul(m, code_factors(from)), df, to);
      hn::Store(hn::Mul(m, code_factors(from + half)), df, to + 16);
    }
  }
  uint32_t q = 0;
  for (; q + 4 <= job.query_count; q += 4) fine_queries<4>(job, scales, q);
  const uint32_t left = job.query_count - q;
  if (left == 3) fine_queries<3>(job, scales, q);
  if (left == 2) fine_queries<2>(job, scales, q);
  if (left == 1) fine_queries<1>(job, scales, q);
}

// --- arrays ---

float max_of(const float* values, size_t count) {
  const Floats df;
  auto maxima = hn::Set(df, kLogitNone);
  for (size_t i = 0; i < count; i += kLanes) maxima = hn::Max(maxima, hn::LoadU(df, values + i));
  return hn::GetLane(hn::MaxOfLanes(df, maxima));
}

float weigh(const float* logits, const float* counts, float max, size_t count, float* to) {
  const Floats df;
  FloatVector sums[kParts];
  for (size_t part = 0; part < kParts; ++part) sums[part] = hn::Zero(df);
  for (size_t i = 0; i < count; i += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t at = i + part * kLanes;
      const auto weight = exp2_of_lanes(hn::Sub(hn::LoadU(df, logits + at), hn::Set(df, max)));
      hn::StoreU(weight, df, to + at);
      sums[part] = hn::MulAdd(hn::LoadU(df, counts + at), weight, sums[part]);
    }
  }
  float lanes[16];
  for (size_t part = 0; part < kParts; ++part) {
    hn::StoreU(sums[part], df, lanes + part * kLanes);
  }
  return sum_of_lanes(lanes);
}

void add(const float* weights, float factor, RankReduction reduction, size_t count, float* totals) {
  const Floats df;
  const auto factors = hn::Set(df, factor);
  for (size_t i = 0; i < count; i += kLanes) {
    const auto weight = hn::LoadU(df, weights + i);
    const auto total = hn::LoadU(df, totals + i);
    hn::StoreU(reduction == RankReduction::kMean ? hn::MulAdd(weight, factors, total)
                                                 : hn::Max(total, hn::Mul(weight, factors)),
               df, totals + i);
  }
}

const RankOps* ops() {
  static constexpr RankOps kOps = {coarse, fine, max_of, weigh, add};
  return &kOps;
}

#else

const RankOps* ops() { return &reference_ops(); }

#endif  // SKV_RANK_VECTORS

}  // namespace

const RankOps* target_ops() { return ops(); }
const char* target_name() { return SKV_RANK_VECTORS ? hwy::TargetName(HWY_TARGET) : "reference"; }

}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(target_ops);
HWY_EXPORT(target_name);

const RankOps& simd_ops() { return *HWY_DYNAMIC_DISPATCH(target_ops)(); }
const char* rank_target() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

}  // namespace skv
#endif  // HWY_ONCE
