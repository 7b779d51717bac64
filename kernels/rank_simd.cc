// The inner loops of rank with Highway: this file is compiled once per instruction set, the best
// one that the CPU has is chosen at run time. Bits are those of rank_reference.cc: every lane does
// the same operations in the same order, only several lanes at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rank_simd.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <cstring>

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
HWY_INLINE void coarse_part(
    const CoarseJob& job, const std::byte* tile, size_t part, uint32_t first_query, size_t at) {
  const Floats df;
  const size_t k_dim = job.k_dim;
  const size_t lane = part * kLanes;
  const size_t tile_bytes = RankAreaLayout::coarse_tile_bytes(job.kind, job.k_dim);
  const float* query = job.query + first_query * k_dim;
  const float* square = kSpread ? job.query_square + first_query * k_dim : nullptr;
  FloatVector dots[kQueries * kTiles];
  FloatVector variances[kQueries * kTiles];
  SKV_EACH_OF(i, kQueries * kTiles) dots[i] = variances[i] = hn::Zero(df);
  const std::byte* means = tile + lane * 2;
  const auto* codes =
      reinterpret_cast<const uint8_t*>(tile) + RankAreaLayout::spread_codes(job.k_dim) + lane;
  for (size_t d = 0; d < k_dim; ++d) {
    FloatVector mean[kTiles];
    FloatVector factor[kTiles];
    SKV_EACH_OF(t, kTiles) {
      mean[t] = halves(means + t * tile_bytes + d * 32);
      if constexpr (kSpread) factor[t] = code_squares(codes + t * tile_bytes + d * 16);
    }
    SKV_EACH_QUERY(q) {
      const auto value = hn::Set(df, query[q * k_dim + d]);
      SKV_EACH_OF(t, kTiles) {
        dots[q * kTiles + t] = hn::MulAdd(value, mean[t], dots[q * kTiles + t]);
      }
      if constexpr (kSpread) {
        const auto squared = hn::Set(df, square[q * k_dim + d]);
        SKV_EACH_OF(t, kTiles) {
          variances[q * kTiles + t] = hn::MulAdd(squared, factor[t], variances[q * kTiles + t]);
        }
      }
    }
  }
  SKV_EACH_OF(t, kTiles) {
    const size_t to = at + t * kTileSentences + lane;
    SKV_EACH_QUERY(q) {
      hn::StoreU(dots[q * kTiles + t], df, job.mean_dots + (first_query + q) * job.stride + to);
    }
    if constexpr (kSpread) {
      const std::byte* m_at =
          tile + t * tile_bytes + RankAreaLayout::spread_m(job.k_dim) + lane * 2;
      const auto m = halves(m_at);
      const auto m_square = hn::Mul(m, m);
      SKV_EACH_QUERY(q) {
        const auto logit = hn::MulAdd(hn::Mul(variances[q * kTiles + t], m_square),
                                      hn::Set(df, kHalfLn2), dots[q * kTiles + t]);
        hn::StoreU(cleaned(logit), df, job.coarse + (first_query + q) * job.stride + to);
      }
    }
  }
}

template <size_t kTiles, bool kSpread>
void coarse_queries(const CoarseJob& job, const std::byte* tile, size_t at) {
  for (size_t part = 0; part < kParts; ++part) {
    uint32_t q = 0;
    for (; q + 4 <= job.query_count; q += 4)
      coarse_part<4, kTiles, kSpread>(job, tile, part, q, at);
    const uint32_t left = job.query_count - q;
    if (left == 3) coarse_part<3, kTiles, kSpread>(job, tile, part, q, at);
    if (left == 2) coarse_part<2, kTiles, kSpread>(job, tile, part, q, at);
    if (left == 1) coarse_part<1, kTiles, kSpread>(job, tile, part, q, at);
  }
}

template <bool kSpread>
void coarse_tiles(const CoarseJob& job) {
  const size_t tile_bytes = RankAreaLayout::coarse_tile_bytes(job.kind, job.k_dim);
  // Two tiles beside each other where there are registers for their sums.
  constexpr uint32_t kTiles = kLanes == 16 ? 2 : 1;
  uint32_t tile = 0;
  for (; tile + kTiles <= job.tile_count; tile += kTiles) {
    coarse_queries<kTiles, kSpread>(job, job.area + tile * tile_bytes,
                                    size_t{tile} * kTileSentences);
  }
  for (; tile < job.tile_count; ++tile) {
    coarse_queries<1, kSpread>(job, job.area + tile * tile_bytes, size_t{tile} * kTileSentences);
  }
}

void coarse(const CoarseJob& job) {
  if (job.query_square != nullptr) {
    coarse_tiles<true>(job);
  } else {
    coarse_tiles<false>(job);
  }
}

// --- fine ---

// A row of residuals is 8 bytes, the lower four bytes the runs 0..7, the upper four the runs 8..15
// (a narrower tile leaves lanes that nobody reads). Broadcast, they alternate from lane to lane; a
// shift per lane brings the lane's nibble to the bottom, where a table makes it a number. So lane j
// (of the tile) holds run j / 2 + 8 * (j % 2), and the runs are put in order once per tile.
HWY_INLINE WordVector nibble_shifts(size_t part) {
  const Words du;
  const auto lane = hn::Iota(du, static_cast<uint32_t>(part * kLanes));
  return hn::ShiftLeft<2>(hn::ShiftRight<1>(lane));
}

HWY_INLINE FloatVector residuals_of(WordVector words, WordVector shifts) {
  const Floats df;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  alignas(64) static constexpr float kResiduals[16] = {0,  1,  2,  3,  4,  5,  6,  7,
                                                       -8, -7, -6, -5, -4, -3, -2, -1};
  const auto shifted = hn::Shr(words, shifts);
  return FloatVector{_mm512_permutexvar_ps(shifted.raw, hn::Load(df, kResiduals).raw)};
#else
  const auto top = hn::Shl(words, hn::Sub(hn::Set(Words(), 28U), shifts));
  return hn::ConvertTo(df, hn::ShiftRight<28>(hn::BitCast(Ints(), top)));
#endif
}

constexpr size_t run_of_lane(size_t lane) { return lane / 2 + 8 * (lane % 2); }
alignas(64) constexpr int32_t kLaneOfRun[16] = {0, 2, 4, 6, 8, 10, 12, 14,
                                                1, 3, 5, 7, 9, 11, 13, 15};

// Adds up kQueries queries over one part of kTiles tiles; logits go to `logits`
// [query][kSentenceTokensMax], in order of runs. The last tile's rows may be shorter.
template <size_t kQueries, size_t kTiles>
HWY_INLINE void fine_part(const FineJob& job,
                          const std::byte* tile,
                          size_t last_row_bytes,
                          size_t part,
                          uint32_t first_query,
                          float* logits) {
  const Floats df;
  const hn::Repartition<uint64_t, Floats> d64;
  const size_t k_dim = job.k_dim;
  const float* scaled = job.query_scale + first_query * k_dim;
  const auto shifts = nibble_shifts(part);
  FloatVector dots[kQueries * kTiles];
  SKV_EACH_OF(i, kQueries * kTiles) dots[i] = hn::Zero(df);
  // As far into the next sentence as this is into its own.
  const std::byte* next = job.next + (tile - job.fine);
  for (size_t d = 0; d < k_dim; ++d) {
    if (d % 4 == 0) hwy::Prefetch(next + d * kTiles * (kTileRuns / 2));
    FloatVector residuals[kTiles];
    SKV_EACH_OF(t, kTiles) {
      const size_t row_bytes = t + 1 < kTiles ? kTileRuns / 2 : last_row_bytes;
      uint64_t row = 0;
      std::memcpy(&row, tile + t * (kTileRuns / 2) * k_dim + d * row_bytes, sizeof row);
      residuals[t] = residuals_of(hn::BitCast(Words(), hn::Set(d64, row)), shifts);
    }
    SKV_EACH_QUERY(q) {
      const auto query = hn::Set(df, scaled[q * k_dim + d]);
      SKV_EACH_OF(t, kTiles) {
        dots[q * kTiles + t] = hn::MulAdd(query, residuals[t], dots[q * kTiles + t]);
      }
    }
  }
  SKV_EACH_QUERY(q) {
    const float mean_dot = job.mean_dots[(first_query + q) * job.mean_stride];
    SKV_EACH_OF(t, kTiles) {
      const auto logit = cleaned(hn::Add(dots[q * kTiles + t], hn::Set(df, mean_dot)));
      float* to = logits + q * kSentenceTokensMax + t * kTileRuns;
      if constexpr (kLanes == 16) {
        hn::StoreU(hn::TableLookupLanes(logit, hn::SetTableIndices(df, kLaneOfRun)), df, to);
      } else {
        float lanes[kLanes];
        hn::StoreU(logit, df, lanes);
        for (size_t lane = 0; lane < kLanes; ++lane) {
          to[run_of_lane(part * kLanes + lane)] = lanes[lane];
        }
      }
    }
  }
}

// Largest logit, then masses: neighbours are added first, so a block's sum is a tree of its runs.
void finish_sentence(const FineJob& job, uint32_t query, float* logits) {
  const Floats df;
  const size_t padded = (job.runs + 15) / 16 * 16;
  for (size_t run = job.runs; run < padded; ++run) logits[run] = kLogitNone;
  auto maxima = hn::Set(df, kLogitNone);
  for (size_t run = 0; run < padded; run += kLanes) {
    maxima = hn::Max(maxima, hn::LoadU(df, logits + run));
  }
  float lanes[kLanes];
  hn::StoreU(maxima, df, lanes);
  float max = lanes[0];
  for (size_t lane = 1; lane < kLanes; ++lane) max = lanes[lane] > max ? lanes[lane] : max;
  job.sentence_max[query * job.max_stride] = max;
  for (size_t run = 0; run < padded; run += kLanes) {
    hn::StoreU(exp2_of_lanes(hn::Sub(hn::LoadU(df, logits + run), hn::Set(df, max))), df,
               logits + run);
  }
  float* sums = job.block_sums + query * job.sum_stride;
  uint32_t count = job.runs;
  for (uint32_t width = job.runs_per_block; width > 1; width /= 2) halve(logits, count /= 2);
  for (uint32_t block = 0; block < count; ++block) sums[block] = logits[block] * job.run_tokens;
}

template <size_t kQueries>
void fine_queries(const FineJob& job, uint32_t first_query) {
  float logits[kQueries * kSentenceTokensMax];
  const std::byte* tiles = job.fine + job.k_dim;
  uint32_t first_run = 0;
  // Two tiles beside each other: twice the sums that do not wait for each other.
  for (; first_run + kTileRuns < job.runs; first_run += 2 * kTileRuns) {
    const std::byte* tile = tiles + VectorRecordLayout::tile_offset(job.k_dim, first_run);
    const size_t row_bytes = VectorRecordLayout::tile_width(job.runs, first_run + kTileRuns) / 2;
    for (size_t part = 0; part < kParts; ++part) {
      fine_part<kQueries, 2>(job, tile, row_bytes, part, first_query, logits + first_run);
    }
  }
  if (first_run < job.runs) {
    const std::byte* tile = tiles + VectorRecordLayout::tile_offset(job.k_dim, first_run);
    const size_t row_bytes = VectorRecordLayout::tile_width(job.runs, first_run) / 2;
    for (size_t part = 0; part < kParts; ++part) {
      fine_part<kQueries, 1>(job, tile, row_bytes, part, first_query, logits + first_run);
    }
  }
  for (uint32_t q = 0; q < kQueries; ++q) {
    finish_sentence(job, first_query + q, logits + q * kSentenceTokensMax);
  }
}

void fine(const FineJob& job) {
  const Floats df;
  const auto m = hn::Set(df, job.scale_m);
  const auto* codes = reinterpret_cast<const uint8_t*>(job.fine);
  // k_dim is a multiple of 8; a vector of 16 may write 8 floats into the next query's row, which
  // comes after it, or past the last row, which has room (RankScratch::reserve).
  //
  // Descending, so that what is written past a row's end is written again, by its owner, after it.
  for (size_t d = (job.k_dim - 1) / kLanes * kLanes + kLanes; d != 0;) {
    d -= kLanes;
    const auto scale = hn::Mul(m, code_factors(codes + d));
    for (uint32_t q = 0; q < job.query_count; ++q) {
      const size_t at = size_t{q} * job.k_dim + d;
      hn::StoreU(hn::Mul(hn::LoadU(df, job.query + at), scale), df, job.query_scale + at);
    }
  }
  uint32_t q = 0;
  for (; q + 4 <= job.query_count; q += 4) fine_queries<4>(job, q);
  const uint32_t left = job.query_count - q;
  if (left == 3) fine_queries<3>(job, q);
  if (left == 2) fine_queries<2>(job, q);
  if (left == 1) fine_queries<1>(job, q);
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
