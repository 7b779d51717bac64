// Bounds from sketches and logits of single tiles with Highway, compiled once per instruction set
// as rank_simd.cc is. Bits are those of sketch.cc: sums of integers have no order, and of a logit a
// lane does what it does in flat_simd.cc.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sketch_simd.cc"
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <algorithm>

#include "kernels/rank_math.h"
#include "kernels/rank_simd-inl.h"
#include "kernels/sketch.h"

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

#if SKV_RANK_VECTORS

template <bool kBfloat>
void measure_kind(SketchRun& run) {
  const Floats df;
  const auto magic = hn::Set(df, kRoundMagic);
  FloatVector residuals[kParts];
  FloatVector lengths[kParts];
  for (size_t part = 0; part < kParts; ++part) residuals[part] = lengths[part] = hn::Zero(df);
  for (size_t d = 0; d < run.count; d += 16) {
    SKV_EACH_OF(part, kParts) {
      const size_t at = d + part * kLanes;
      const auto value = load_values<kBfloat>(reinterpret_cast<const std::byte*>(run.values + at));
      const auto held = hn::Clamp(hn::Mul(value, hn::Set(df, run.per_scale)), hn::Set(df, -127.0F),
                                  hn::Set(df, 127.0F));
      const auto steps = hn::Sub(hn::Add(held, magic), magic);
      const auto product = hn::Mul(hn::Set(df, run.scale), steps);
      const auto left = hn::Sub(value, product);
      residuals[part] = hn::MulAdd(left, left, residuals[part]);
      lengths[part] = hn::MulAdd(product, product, lengths[part]);
      const auto bytes = hn::Add(hn::ConvertTo(Ints(), steps), hn::Set(Ints(), 128));
      hn::StoreU(hn::DemoteTo(Bytes(), bytes), Bytes(), run.bytes + at);
    }
  }
  const auto sum = [&df](const FloatVector* sums) {
    float lanes[16];
    for (size_t part = 0; part < kParts; ++part) hn::StoreU(sums[part], df, lanes + part * kLanes);
    return sum_of_lanes(lanes);
  };
  run.residual = sum(residuals);
  run.length = sum(lengths);
}

void measure(SketchRun& run) {
  if (run.bfloat) {
    measure_kind<true>(run);
  } else {
    measure_kind<false>(run);
  }
}

// Queries that are summed at once, as in flat_simd.cc.
constexpr size_t kQueriesAtOnce = kLanes == 16 ? 8 : 2;

// Sums of kQueries queries over one tile, [query][part]: two each of a few queries, which would
// wait for one.
template <size_t kQueries>
HWY_INLINE void sums_of(const SketchJob& job,
                        const std::byte* tile,
                        const std::byte* ahead,
                        size_t first_query,
                        IntVector* sums) {
  constexpr size_t kEach = 2;
  const Ints di;
  const size_t k_dim = job.at.k_dim;
  const int8_t* steps = job.steps + first_query * k_dim;
  IntVector acc[kEach * kQueries * kParts];
  SKV_EACH_OF(q, kQueries) {
    SKV_EACH_OF(i, kEach * kParts) {
      acc[q * kEach * kParts + i] =
          i % kEach == 0 ? hn::Set(di, job.queries[first_query + q].offset) : hn::Zero(di);
    }
  }
  for (size_t d = 0; d < k_dim; d += 8) {
    prefetch_lines<2>(ahead, d * 16);
    SKV_EACH_OF(half, 2) {
      SKV_EACH_OF(part, kParts) {
        const auto values = load_words(tile + d * 16 + half * 64 + part * kLanes * 4);
        SKV_EACH_OF(q, kQueries) {
          auto& sum = acc[kEach * (q * kParts + part) + half % kEach];
          sum = quad_dot(sum, values, steps + q * k_dim + d + 4 * half);
        }
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kParts) {
    sums[i] = acc[kEach * i];
    if constexpr (kEach == 2) sums[i] = hn::Add(sums[i], acc[kEach * i + 1]);
  }
}

template <size_t kQueries>
HWY_NOINLINE void bounds_tile(const SketchJob& job,
                              size_t tile_index,
                              const std::byte* ahead,
                              size_t first_query) {
  const Floats df;
  const std::byte* tile = job.sketch + tile_index * job.at.tile_bytes();
  IntVector sums[kQueries * kParts];
  sums_of<kQueries>(job, tile, ahead, first_query, sums);
  SKV_EACH_OF(part, kParts) {
    const size_t run = tile_index * kTileRuns + part * kLanes;
    const auto scale = bfloats(job.sketch + job.at.scales() + run * 2);
    const auto residual = bfloats(job.sketch + job.at.residuals() + run * 2);
    const auto length = bfloats(job.sketch + job.at.lengths() + run * 2);
    SKV_EACH_OF(q, kQueries) {
      const SketchQuery& of = job.queries[first_query + q];
      const auto error =
          hn::MulAdd(length, hn::Set(df, of.error), hn::Mul(residual, hn::Set(df, of.length)));
      const auto sum = hn::ConvertTo(df, sums[q * kParts + part]);
      const auto bound = hn::MulAdd(sum, hn::Mul(scale, hn::Set(df, of.step)), error);
      float* rows = job.bounds + (first_query + q) * job.peak_stride * kPeakTiles;
      hn::StoreU(bound, df, rows + run);
    }
  }
}

// Of kPeakTiles tiles whose bounds lie row after row: their peaks, and the bounds lane after lane.
void finish_group(const SketchJob& job, size_t group) {
  static_assert(kPeakTiles == 4, "of StoreInterleaved4");
  const Floats df;
  const auto none = hn::Set(df, kLogitNone);
  for (size_t q = 0; q < job.query_count; ++q) {
    const size_t peak = q * job.peak_stride + group * kTileRuns;
    float* bounds = job.bounds + peak * kPeakTiles;
    FloatVector rows[4 * kParts];
    SKV_EACH_OF(i, 4 * kParts) {
      const size_t run = group * kPeakTiles * kTileRuns + i * kLanes;
      rows[i] =
          hn::IfThenElse(first_lanes(job.run_count, run), hn::LoadU(df, bounds + i * kLanes), none);
    }
    SKV_EACH_OF(part, kParts) {
      const auto a = rows[part];
      const auto b = rows[kParts + part];
      const auto c = rows[2 * kParts + part];
      const auto d = rows[3 * kParts + part];
      hn::StoreU(hn::Max(hn::Max(a, b), hn::Max(c, d)), df, job.peaks + peak + part * kLanes);
      hn::StoreInterleaved4(a, b, c, d, df, bounds + part * kLanes * 4);
    }
  }
}

// Tile by tile, which stays in the nearest cache while all queries pass over it.
void bounds(const SketchJob& job) {
  const size_t tile_count = (job.run_count + kTileRuns - 1) / kTileRuns;
  for (size_t tile = 0; tile < tile_count; ++tile) {
    const std::byte* ahead = ahead_of(job.sketch + tile * job.at.tile_bytes(), job.query_count);
    size_t q = 0;
    if constexpr (kQueriesAtOnce == 8) {
      for (; q + 8 <= job.query_count; q += 8) {
        bounds_tile<8>(job, tile, q == 0 ? ahead : nullptr, q);
      }
      for (; q + 4 <= job.query_count; q += 4) bounds_tile<4>(job, tile, nullptr, q);
    }
    for (; q + 2 <= job.query_count; q += 2) bounds_tile<2>(job, tile, nullptr, q);
    if (q < job.query_count) bounds_tile<1>(job, tile, nullptr, q);
    if ((tile + 1) % kPeakTiles == 0 || tile + 1 == tile_count)
      finish_group(job, tile / kPeakTiles);
  }
}

// Pieces lie far from each other: those that come next are asked for while one is read.
template <bool kBfloat>
void logits_kind(const PieceJob& job) {
  constexpr size_t kAhead = 8;
  constexpr size_t kVectors = kPieceRuns < kLanes ? 1 : kPieceRuns / kLanes;
  for (size_t i = 0; i < job.count; ++i) {
    FloatVector dots[kVectors];
    const std::byte* ahead = i + kAhead < job.count ? job.pieces[i + kAhead] : nullptr;
    piece_dots<1, kPieceRuns, kBfloat>(job.pieces[i], job.k_dim, job.spread, ahead, dots);
    SKV_EACH_OF(v, kVectors) {
      hn::StoreU(cleaned(dots[v]), Floats(), job.logits + i * kPieceRuns + v * kLanes);
    }
  }
}

void logits(const PieceJob& job) {
  if (job.kind == IndexKind::kBf16) {
    logits_kind<true>(job);
  } else {
    logits_kind<false>(job);
  }
}

const SketchOps* sketch_ops() {
  static constexpr SketchOps kOps = {measure, bounds, logits};
  return &kOps;
}

#else

const SketchOps* sketch_ops() { return &reference_sketch_ops(); }

#endif  // SKV_RANK_VECTORS

}  // namespace

const SketchOps* target_sketch_ops() { return sketch_ops(); }

}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(target_sketch_ops);

const SketchOps& simd_sketch_ops() { return *HWY_DYNAMIC_DISPATCH(target_sketch_ops)(); }

}  // namespace skv
#endif  // HWY_ONCE
