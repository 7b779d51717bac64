// Flat kinds with Highway, compiled once per instruction set as rank_simd.cc is. Bits are those of
// flat_reference.cc: a lane is a run, floating-point sums run over ascending channels inside it,
// even and odd ones apart; integer sums are exact in any order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/flat_simd.cc"
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "kernels/flat_pages.h"
#include "kernels/rank_math.h"
#include "kernels/rank_ops.h"
#include "kernels/rank_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

#if SKV_RANK_VECTORS

// Queries that are summed at once: as many accumulators as registers hold, two per query and part.
constexpr size_t kQueriesAtOnce = kLanes == 16 ? 8 : 2;

// Where one scan reads: a tile, what is asked for meanwhile (or null), its queries.
struct At {
  const std::byte* tile;
  const std::byte* ahead;
  size_t k_dim;
  const float* first;
  const float* spread;
  const float* second;
  const int8_t* steps;
};

template <size_t kQueries>
HWY_INLINE void min_max_of(const At& at, FloatVector* dots) {
  const Floats df;
  FloatVector acc[2 * kQueries * kParts];
  SKV_EACH_OF(i, 2 * kQueries * kParts) acc[i] = hn::Zero(df);
  for (size_t d = 0; d < at.k_dim; d += 2) {
    prefetch_lines<2>(at.ahead, d * 64);
    SKV_EACH_OF(half, 2) {
      SKV_EACH_OF(part, kParts) {
        const std::byte* row = at.tile + (d + half) * 64 + part * kLanes * 2;
        const auto least = halves(row);
        const auto largest = halves(row + 32);
        SKV_EACH_OF(q, kQueries) {
          const auto below = hn::Set(df, at.second[q * at.k_dim + d + half]);
          const auto above = hn::Set(df, at.first[q * at.k_dim + d + half]);
          auto& sum = acc[(q * kParts + part) * 2 + half];
          sum = hn::MulAdd(above, largest, hn::MulAdd(below, least, sum));
        }
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kParts) dots[i] = hn::Add(acc[2 * i], acc[2 * i + 1]);
}

// Sums of the half widths, the second half of a tile of kBox.
template <size_t kQueries>
HWY_INLINE void widths_of(const At& at, FloatVector* sums) {
  const Floats df;
  FloatVector acc[2 * kQueries * kParts];
  SKV_EACH_OF(i, 2 * kQueries * kParts) acc[i] = hn::Zero(df);
  const size_t widths = FlatAreaLayout::box_widths(static_cast<uint32_t>(at.k_dim));
  for (size_t d = 0; d < at.k_dim; d += 4) {
    prefetch_lines<1>(at.ahead, widths + d * 16);
    SKV_EACH_OF(i, 4) {
      SKV_EACH_OF(part, kParts) {
        const auto* row =
            reinterpret_cast<const uint8_t*>(at.tile + widths + (d + i) * 16 + part * kLanes);
        const auto values = hn::ConvertTo(df, hn::PromoteTo(Ints(), hn::LoadU(Bytes(), row)));
        SKV_EACH_OF(q, kQueries) {
          const auto query = hn::Set(df, at.second[q * at.k_dim + d + i]);
          auto& sum = acc[(q * kParts + part) * 2 + i % 2];
          sum = hn::MulAdd(query, values, sum);
        }
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kParts) sums[i] = hn::Add(acc[2 * i], acc[2 * i + 1]);
}

// Sums of integers, [query][part].
template <size_t kQueries>
HWY_INLINE void store_sums(const IntVector* acc, FloatVector* sums) {
  SKV_EACH_OF(i, kQueries * kParts) sums[i] = hn::ConvertTo(Floats(), acc[i]);
}

// kInt8.
template <size_t kQueries>
HWY_INLINE void byte_sums_of(const At& at, const int32_t* offsets, FloatVector* sums) {
  IntVector acc[kQueries * kParts];
  SKV_EACH_OF(q, kQueries) {
    SKV_EACH_OF(part, kParts) acc[q * kParts + part] = hn::Set(Ints(), offsets[q]);
  }
  for (size_t d = 0; d < at.k_dim; d += 4) {
    prefetch_lines<1>(at.ahead, d * 16);
    SKV_EACH_OF(part, kParts) {
      const auto values = load_words(at.tile + d * 16 + part * kLanes * 4);
      SKV_EACH_OF(q, kQueries) {
        auto& sum = acc[q * kParts + part];
        sum = quad_dot(sum, values, at.steps + q * at.k_dim + d);
      }
    }
  }
  store_sums<kQueries>(acc, sums);
}

// kInt4: a row is eight channels of 16 runs, four in the low halves of the bytes, then four in the
// high ones. Two sums for each query.
template <size_t kQueries>
HWY_INLINE void nibble_sums_of(const At& at, const int32_t* offsets, FloatVector* sums) {
  const Words du;
  const auto nibble = hn::Set(du, 0x0F0F0F0FU);
  IntVector first[kQueries * kParts];
  IntVector second[kQueries * kParts];
  SKV_EACH_OF(q, kQueries) {
    SKV_EACH_OF(part, kParts) {
      first[q * kParts + part] = hn::Set(Ints(), offsets[q]);
      second[q * kParts + part] = hn::Zero(Ints());
    }
  }
  for (size_t d = 0; d < at.k_dim; d += 8) {
    prefetch_lines<1>(at.ahead, d * 8);
    SKV_EACH_OF(part, kParts) {
      const auto words = load_words(at.tile + d * 8 + part * kLanes * 4);
      const auto low = hn::And(words, nibble);
      const auto high = hn::And(hn::ShiftRight<4>(words), nibble);
      SKV_EACH_OF(q, kQueries) {
        const int8_t* from = at.steps + q * at.k_dim + d;
        auto& first_sum = first[q * kParts + part];
        auto& second_sum = second[q * kParts + part];
        first_sum = quad_dot(first_sum, low, from);
        second_sum = quad_dot(second_sum, high, from + 4);
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kParts) first[i] = hn::Add(first[i], second[i]);
  store_sums<kQueries>(first, sums);
}

HWY_INLINE FloatVector scales_of(const FlatJob& job, size_t run) {
  return halves(job.area + run * 2);
}

// Where tiles lie, and what is asked for while they are scanned.
struct Tiles {
  const std::byte* first;
  size_t tile_bytes;
  size_t count;
  const std::byte* next;   // of the page after it, or null
  uint32_t ahead_queries;  // fewer ask for nothing

  const std::byte* at(size_t index) const { return first + index * tile_bytes; }
  const std::byte* ahead(size_t index, size_t query_count) const {
    if (query_count < ahead_queries) return nullptr;
    return ahead_of(first, count * tile_bytes, next, index * tile_bytes);
  }
};

// Logits of tiles [begin, end) for kQueries queries from `first_query` on; `maxima`
// [query][kLanes]. `asks`: for what comes after them, which one of the groups of queries does.
template <IndexKind kKind, bool kNative, size_t kQueries>
HWY_NOINLINE void scan_tiles(const FlatJob& job,
                             const Tiles& tiles,
                             size_t begin,
                             size_t end,
                             size_t first_query,
                             bool asks,
                             float* maxima) {
  const Floats df;
  At at{};
  at.k_dim = job.k_dim;
  at.first = job.queries->first + first_query * at.k_dim;
  at.spread = job.queries->spread + first_query * at.k_dim * kQuerySpread;
  at.second = job.queries->second + first_query * at.k_dim;
  at.steps = job.queries->steps + first_query * at.k_dim;
  const int32_t* offsets = job.queries->offsets + first_query;
  const float* factors = job.queries->factors + first_query;
  float* logits = job.logits + first_query * job.stride;
  FloatVector max[kQueries];
  SKV_EACH_OF(q, kQueries) max[q] = hn::LoadU(df, maxima + (first_query + q) * kLanes);
  for (size_t tile = begin; tile < end; ++tile) {
    at.tile = tiles.at(tile);
    at.ahead = asks ? tiles.ahead(tile, job.query_count) : nullptr;
    FloatVector sums[kQueries * kParts];
    if constexpr (kKind == IndexKind::kInt8) {
      byte_sums_of<kQueries>(at, offsets, sums);
    } else if constexpr (kKind == IndexKind::kInt4) {
      nibble_sums_of<kQueries>(at, offsets, sums);
    } else if constexpr (kKind == IndexKind::kMinMax) {
      min_max_of<kQueries>(at, sums);
    } else if constexpr (kKind == IndexKind::kBf16) {
      pair_dots<kQueries, kTileRuns, kNative>(at.tile, at.k_dim, at.spread, at.ahead, sums);
    } else {
      piece_dots<kQueries, kTileRuns>(at.tile, at.k_dim, at.spread, at.ahead, sums);
    }
    FloatVector widths[kQueries * kParts];
    if constexpr (kKind == IndexKind::kBox) widths_of<kQueries>(at, widths);
    SKV_EACH_OF(part, kParts) {
      const size_t run = tile * kTileRuns + part * kLanes;
      // Lanes behind the page's last run: scanned, never a maximum.
      const auto is_run = first_lanes(job.run_count, run);
      SKV_EACH_OF(q, kQueries) {
        auto logit = sums[q * kParts + part];
        if constexpr (kKind == IndexKind::kInt8 || kKind == IndexKind::kInt4) {
          logit = hn::Mul(logit, hn::Mul(hn::Set(df, factors[q]), scales_of(job, run)));
        } else if constexpr (kKind == IndexKind::kBall) {
          logit = hn::MulAdd(hn::Set(df, factors[q]), scales_of(job, run), logit);
        } else if constexpr (kKind == IndexKind::kBox) {
          logit = hn::MulAdd(widths[q * kParts + part], scales_of(job, run), logit);
        }
        logit = cleaned(logit);
        hn::StoreU(logit, df, logits + q * job.stride + run);
        max[q] = hn::Max(max[q], hn::IfThenElse(is_run, logit, hn::Set(df, kLogitNone)));
      }
    }
  }
  SKV_EACH_OF(q, kQueries) hn::StoreU(max[q], df, maxima + (first_query + q) * kLanes);
}

// A group of queries goes over all tiles where it is the only one. Else tile by tile: a tile stays
// in the nearest cache while all groups pass over it. `kNative`: bfloat_pair_dot.
template <IndexKind kKind, bool kNative = false>
void scan_kind(const FlatJob& job) {
  const FloatEnvironment environment(subnormals_of(kKind));
  constexpr size_t kQueriesMax = 64;
  const Floats df;
  alignas(64) float maxima[kQueriesMax * kLanes];
  for (size_t i = 0; i < job.query_count * kLanes; ++i) maxima[i] = kLogitNone;
  const size_t from = FlatAreaLayout::tiles(kKind, job.run_tokens);
  const Tiles tiles{job.area + from, FlatAreaLayout::tile_bytes(kKind, job.k_dim),
                    (job.run_count + kTileRuns - 1) / kTileRuns,
                    job.next == nullptr ? nullptr : job.next + from,
                    kKind == IndexKind::kInt8 ? kByteAheadQueries : kAheadQueries};
  const bool one_group = job.query_count <= 2 ||
                         (kQueriesAtOnce == 8 && (job.query_count == 4 || job.query_count == 8));
  const size_t step = one_group ? tiles.count : 1;
  for (size_t begin = 0; begin < tiles.count; begin += step) {
    const size_t end = begin + step;
    size_t q = 0;
    if constexpr (kQueriesAtOnce == 8) {
      for (; q + 8 <= job.query_count; q += 8) {
        scan_tiles<kKind, kNative, 8>(job, tiles, begin, end, q, q == 0, maxima);
      }
      for (; q + 4 <= job.query_count; q += 4) {
        scan_tiles<kKind, kNative, 4>(job, tiles, begin, end, q, q == 0, maxima);
      }
    }
    for (; q + 2 <= job.query_count; q += 2) {
      scan_tiles<kKind, kNative, 2>(job, tiles, begin, end, q, q == 0, maxima);
    }
    if (q < job.query_count)
      scan_tiles<kKind, kNative, 1>(job, tiles, begin, end, q, q == 0, maxima);
  }
  for (size_t q = 0; q < job.query_count; ++q) {
    const float max = hn::GetLane(hn::MaxOfLanes(df, hn::LoadU(df, maxima + q * kLanes)));
    job.maxima[q] = std::max(job.maxima[q], max);
  }
}

void scan(const FlatJob& job) {
  switch (job.kind) {
    case IndexKind::kFp16:
    case IndexKind::kKeys:
      return scan_kind<IndexKind::kFp16>(job);
    case IndexKind::kBf16:
      return has_bfloat_dot() ? scan_kind<IndexKind::kBf16, SKV_BFLOAT_DOT != 0>(job)
                              : scan_kind<IndexKind::kBf16>(job);
    case IndexKind::kInt8:
      return scan_kind<IndexKind::kInt8>(job);
    case IndexKind::kInt4:
      return scan_kind<IndexKind::kInt4>(job);
    case IndexKind::kMinMax:
      return scan_kind<IndexKind::kMinMax>(job);
    case IndexKind::kBox:
      return scan_kind<IndexKind::kBox>(job);
    case IndexKind::kBall:
      return scan_kind<IndexKind::kBall>(job);
    case IndexKind::kMeanSpreadRuns:
    case IndexKind::kMean:
      return;
  }
}

// Of kLanes << kLevels logits: the sums of the masses of 1 << kLevels neighbours in each lane.
template <size_t kLevels>
HWY_INLINE FloatVector mass_tree(const float* logits, FloatVector maxima) {
  if constexpr (kLevels == 0) {
    return exp2_of_lanes(hn::Sub(hn::LoadU(Floats(), logits), maxima));
  } else {
    const float* second = logits + (kLanes << (kLevels - 1));
    const auto low = mass_tree<kLevels - 1>(logits, maxima);
    return neighbours(low, mass_tree<kLevels - 1>(second, maxima));
  }
}

// Of `blocks` (a multiple of 16) of 1 << kLevels runs, in place: a block is written behind what
// is still to be read.
template <size_t kLevels>
HWY_NOINLINE float masses_of(float* logits, float max, size_t blocks, float run_tokens) {
  const Floats df;
  const auto maxima = hn::Set(df, max);
  const auto tokens = hn::Set(df, run_tokens);
  FloatVector sums[kParts];
  SKV_EACH_OF(part, kParts) sums[part] = hn::Zero(df);
  for (size_t i = 0; i < blocks; i += 16) {
    SKV_EACH_OF(part, kParts) {
      const size_t block = i + part * kLanes;
      const auto mass = hn::Mul(mass_tree<kLevels>(logits + (block << kLevels), maxima), tokens);
      hn::StoreU(mass, df, logits + block);
      sums[part] = hn::Add(sums[part], mass);
    }
  }
  float lanes[16];
  SKV_EACH_OF(part, kParts) hn::StoreU(sums[part], df, lanes + part * kLanes);
  return sum_of_lanes(lanes);
}

float masses(
    float* logits, float max, uint32_t run_count, uint32_t runs_per_block, float run_tokens) {
  const size_t unit = size_t{16} * runs_per_block;
  const size_t padded = (run_count + unit - 1) / unit * unit;
  std::fill(logits + run_count, logits + padded, kLogitNone);
  const size_t blocks = padded / runs_per_block;
  switch (runs_per_block) {
    case 1:
      return masses_of<0>(logits, max, blocks, run_tokens);
    case 2:
      return masses_of<1>(logits, max, blocks, run_tokens);
    case 4:
      return masses_of<2>(logits, max, blocks, run_tokens);
    case 8:
      return masses_of<3>(logits, max, blocks, run_tokens);
    case 16:
      return masses_of<4>(logits, max, blocks, run_tokens);
    default:
      return masses_of<5>(logits, max, blocks, run_tokens);  // 32: kFlatRoom has room for no more
  }
}

void shares(const ShareJob& job) {
  const Floats df;
  const bool is_mean = job.reduction == RankReduction::kMean;
  const auto per_query = hn::Set(df, 1.0F / static_cast<float>(job.query_count));
  for (size_t i = 0; i < job.count; i += kLanes) {
    auto total = hn::Mul(hn::LoadU(df, job.masses + i), hn::Set(df, job.factors[0]));
    for (size_t q = 1; q < job.query_count; ++q) {
      const auto mass = hn::LoadU(df, job.masses + q * job.stride + i);
      const auto factor = hn::Set(df, job.factors[q]);
      total = is_mean ? hn::MulAdd(mass, factor, total) : hn::Max(total, hn::Mul(mass, factor));
    }
    if (is_mean && job.query_count > 1) total = hn::Mul(total, per_query);
    hn::StoreU(total, df, job.totals + i);
  }
}

const FlatOps* flat_ops() {
  static constexpr FlatOps kOps = {scan, masses, shares};
  return &kOps;
}

#else

const FlatOps* flat_ops() { return &reference_flat_ops(); }

#endif  // SKV_RANK_VECTORS

}  // namespace

const FlatOps* target_flat_ops() { return flat_ops(); }

}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(target_flat_ops);

const FlatOps& simd_flat_ops() { return *HWY_DYNAMIC_DISPATCH(target_flat_ops)(); }

}  // namespace skv
#endif  // HWY_ONCE
