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

// Sums, [query][tile][part]: several each where few would wait for one.
template <size_t kQueries, size_t kTiles>
HWY_INLINE void sums_of(const SketchJob& job,
                        const std::byte* tile,
                        const std::byte* ahead,
                        size_t first_query,
                        IntVector* sums) {
  constexpr size_t kSums = kQueries * kTiles * kParts;
  constexpr size_t kEach = kSums < 4 ? 2 : 1;
  const Ints di;
  const size_t k_dim = job.at.k_dim;
  const size_t tile_bytes = job.at.tile_bytes();
  const int8_t* steps = job.steps + first_query * k_dim;
  IntVector acc[kEach * kSums];
  SKV_EACH_OF(q, kQueries) {
    const auto offset = hn::Set(di, job.queries[first_query + q].offset);
    SKV_EACH_OF(i, kTiles * kParts) acc[q * kTiles * kParts + i] = offset;
  }
  if constexpr (kEach == 2) {
    SKV_EACH_OF(i, kSums) acc[kSums + i] = hn::Zero(di);
  }
  for (size_t d = 0; d < k_dim; d += 8) {
    prefetch_lines<2 * kTiles>(ahead, d * 16 * kTiles);
    SKV_EACH_OF(half, 2) {
      WordVector values[kTiles * kParts];
      SKV_EACH_OF(i, kTiles * kParts) {
        values[i] = load_words(tile + i / kParts * tile_bytes + d * 16 + half * 64 +
                               i % kParts * kLanes * 4);
      }
      SKV_EACH_OF(q, kQueries) {
        const auto four = quad_steps(steps + q * k_dim + d + 4 * half);
        SKV_EACH_OF(i, kTiles * kParts) {
          auto& sum = acc[half % kEach * kSums + q * kTiles * kParts + i];
          sum = quad_dot(sum, values[i], four);
        }
      }
    }
  }
  SKV_EACH_OF(i, kSums) {
    sums[i] = acc[i];
    if constexpr (kEach == 2) sums[i] = hn::Add(sums[i], acc[kSums + i]);
  }
}

template <size_t kQueries, size_t kTiles>
HWY_NOINLINE void bounds_of(const SketchJob& job,
                            size_t first_tile,
                            const std::byte* ahead,
                            size_t first_query) {
  const Floats df;
  const std::byte* tile = job.sketch + first_tile * job.at.tile_bytes();
  const std::byte* tile_sides = job.sketch + job.at.sides() + first_tile * SketchLayout::kSideBytes;
  float* bounds = job.bounds + first_query * job.stride + first_tile * kTileRuns;
  IntVector sums[kQueries * kTiles * kParts];
  sums_of<kQueries, kTiles>(job, tile, ahead, first_query, sums);
  SKV_EACH_OF(i, kTiles * kParts) {
    const std::byte* sides =
        tile_sides + i / kParts * SketchLayout::kSideBytes + i % kParts * kLanes * 2;
    const auto scale = bfloats(sides + SketchLayout::kScales);
    const auto residual = bfloats(sides + SketchLayout::kResiduals);
    const auto length = bfloats(sides + SketchLayout::kLengths);
    SKV_EACH_OF(q, kQueries) {
      const SketchQuery& of = job.queries[first_query + q];
      const auto error =
          hn::MulAdd(length, hn::Set(df, of.error), hn::Mul(residual, hn::Set(df, of.length)));
      const auto sum = hn::ConvertTo(df, sums[q * kTiles * kParts + i]);
      const auto bound = hn::MulAdd(sum, hn::Mul(scale, hn::Set(df, of.step)), error);
      hn::StoreU(bound, df, bounds + q * job.stride + i * kLanes);
    }
  }
}

// Some tiles for all queries, while they are in the nearest cache.
template <size_t kTiles>
HWY_INLINE void bounds_of_all(const SketchJob& job, size_t tile, const std::byte* ahead) {
  size_t q = 0;
  const auto next = [&](size_t queries) {
    q += queries;
    ahead = nullptr;
  };
  if constexpr (kLanes == 16) {
    for (; q + 8 <= job.query_count; next(8)) bounds_of<8, kTiles>(job, tile, ahead, q);
    for (; q + 4 <= job.query_count; next(4)) bounds_of<4, kTiles>(job, tile, ahead, q);
  }
  for (; q + 2 <= job.query_count; next(2)) bounds_of<2, kTiles>(job, tile, ahead, q);
  if (q < job.query_count) bounds_of<1, kTiles>(job, tile, ahead, q);
}

// Arguments are passed in registers: read back from memory that was just written, they would wait
// for the lines of the tile before.
void bounds(const SketchJob& job) {
  constexpr size_t kTilesAtOnce = 2;
  const bool many = job.query_count >= kByteAheadQueries;
  const size_t tile_bytes = job.at.tile_bytes();
  const size_t tile_count = (job.run_count + kTileRuns - 1) / kTileRuns;
  const auto ahead = [&](size_t tile) {
    return many ? ahead_of(job.sketch, tile_count * tile_bytes, job.next, tile * tile_bytes)
                : nullptr;
  };
  size_t tile = 0;
  // A few queries wait for memory, which is fastest in order, and asked for by nobody else.
  if (kLanes == 16 && many) {
    for (; tile + kTilesAtOnce <= tile_count; tile += kTilesAtOnce) {
      bounds_of_all<kTilesAtOnce>(job, tile, ahead(tile));
    }
  }
  for (; tile < tile_count; ++tile) bounds_of_all<1>(job, tile, ahead(tile));
}

// Pieces lie far from each other: those that come next are asked for while one is read.
// `kNative`: bfloat_pair_dot.
template <IndexKind kKind, bool kNative = false>
HWY_NOINLINE void logits_kind(const PieceJob& job) {
  constexpr size_t kAhead = 8;
  constexpr size_t kVectors = kPieceRuns < kLanes ? 1 : kPieceRuns / kLanes;
  for (size_t i = 0; i < job.count; ++i) {
    FloatVector dots[kVectors];
    const std::byte* ahead = i + kAhead < job.count ? job.pieces[i + kAhead] : nullptr;
    if constexpr (kKind == IndexKind::kBf16) {
      pair_dots<1, kPieceRuns, kNative>(job.pieces[i], job.k_dim, job.spread, ahead, dots);
    } else {
      piece_dots<1, kPieceRuns>(job.pieces[i], job.k_dim, job.spread, ahead, dots);
    }
    SKV_EACH_OF(v, kVectors) {
      hn::StoreU(cleaned(dots[v]), Floats(), job.logits + i * kPieceRuns + v * kLanes);
    }
  }
}

void logits(const PieceJob& job) {
  const FloatEnvironment environment(subnormals_of(job.kind));
  if (job.kind != IndexKind::kBf16) return logits_kind<IndexKind::kFp16>(job);
  return has_bfloat_dot() ? logits_kind<IndexKind::kBf16, SKV_BFLOAT_DOT != 0>(job)
                          : logits_kind<IndexKind::kBf16>(job);
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
