// Flat kinds with Highway, compiled once per instruction set as rank_simd.cc is. Bits are those of
// flat_reference.cc: a lane is a run, floating-point sums run over ascending dimensions inside it,
// integer sums are exact in any order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/flat_simd.cc"
#include <hwy/cache_control.h>
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

using Shorts = hn::Repartition<int16_t, Floats>;
using SignedBytes = hn::Rebind<int8_t, Shorts>;
using Bfloats = hn::Rebind<uint16_t, Words>;
using IntVector = hn::Vec<Ints>;
using ShortVector = hn::Vec<Shorts>;

// Queries that are summed at once, and tiles beside each other: as many accumulators as registers
// hold, so that a chain of dependent sums never waits for itself.
constexpr size_t kQueriesAtOnce = kLanes == 16 ? 8 : 4;
constexpr size_t tiles_at_once(size_t queries) {
  if (kLanes != 16) return queries == 1 ? 2 : 1;
  return queries == 8 ? 2 : 4;
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

// Where one scan reads: the first of its tiles, its queries.
struct At {
  const std::byte* tiles;
  size_t tile_bytes;
  size_t k_dim;
  const float* first;
  const float* second;
  const int16_t* steps;
  bool prefetch;  // the tiles behind these
};

// Each kind: one step reads kRow bytes of every tile. A unit is kLanes runs of a tile.

template <size_t kUnits>
HWY_INLINE const std::byte* row_of(const At& at, size_t unit, size_t offset) {
  return at.tiles + unit / kParts * at.tile_bytes + offset;
}
// Asks for as many lines of the tiles behind these as a step reads of these, in the order in which
// they lie in memory: what memory sees is one stream, whatever the number of tiles beside each
// other.
template <size_t kUnits>
HWY_INLINE void prefetch_rows(const At& at, size_t offset) {
  constexpr size_t kTiles = kUnits / kParts;
  if (!at.prefetch) return;
  const std::byte* next = at.tiles + kTiles * (at.tile_bytes + offset);
  SKV_EACH_OF(line, kTiles) hwy::Prefetch(next + line * 64);
}

template <bool kBfloat>
HWY_INLINE FloatVector load_values(const std::byte* at) {
  if constexpr (kBfloat) {
    const auto bits = hn::LoadU(Bfloats(), reinterpret_cast<const uint16_t*>(at));
    return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(Words(), bits)));
  } else {
    return halves(at);
  }
}

// kFp16, kBf16, kKeys, kBall.
template <size_t kQueries, size_t kUnits, bool kBfloat>
HWY_INLINE void dots_of(const At& at, FloatVector* dots) {
  const Floats df;
  FloatVector acc[kQueries * kUnits];
  SKV_EACH_OF(i, kQueries * kUnits) acc[i] = hn::Zero(df);
  for (size_t d = 0; d < at.k_dim; d += 2) {
    prefetch_rows<kUnits>(at, d * 32);
    SKV_EACH_OF(half, 2) {
      FloatVector values[kUnits];
      SKV_EACH_OF(u, kUnits) {
        values[u] =
            load_values<kBfloat>(row_of<kUnits>(at, u, (d + half) * 32 + u % kParts * kLanes * 2));
      }
      SKV_EACH_OF(q, kQueries) {
        const auto query = hn::Set(df, at.first[q * at.k_dim + d + half]);
        SKV_EACH_OF(u, kUnits) {
          acc[q * kUnits + u] = hn::MulAdd(query, values[u], acc[q * kUnits + u]);
        }
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kUnits) dots[i] = acc[i];
}

template <size_t kQueries, size_t kUnits>
HWY_INLINE void min_max_of(const At& at, FloatVector* dots) {
  const Floats df;
  FloatVector acc[kQueries * kUnits];
  SKV_EACH_OF(i, kQueries * kUnits) acc[i] = hn::Zero(df);
  for (size_t d = 0; d < at.k_dim; ++d) {
    prefetch_rows<kUnits>(at, d * 64);
    FloatVector least[kUnits];
    FloatVector largest[kUnits];
    SKV_EACH_OF(u, kUnits) {
      const std::byte* row = row_of<kUnits>(at, u, d * 64 + u % kParts * kLanes * 2);
      least[u] = halves(row);
      largest[u] = halves(row + 32);
    }
    SKV_EACH_OF(q, kQueries) {
      const auto below = hn::Set(df, at.second[q * at.k_dim + d]);
      const auto above = hn::Set(df, at.first[q * at.k_dim + d]);
      SKV_EACH_OF(u, kUnits) {
        auto& sum = acc[q * kUnits + u];
        sum = hn::MulAdd(above, largest[u], hn::MulAdd(below, least[u], sum));
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kUnits) dots[i] = acc[i];
}

// Sums of the half widths, the second half of a tile of kBox.
template <size_t kQueries, size_t kUnits>
HWY_INLINE void widths_of(const At& at, FloatVector* sums) {
  const Floats df;
  FloatVector acc[kQueries * kUnits];
  SKV_EACH_OF(i, kQueries * kUnits) acc[i] = hn::Zero(df);
  const size_t widths = FlatAreaLayout::box_widths(static_cast<uint32_t>(at.k_dim));
  for (size_t d = 0; d < at.k_dim; ++d) {
    prefetch_rows<kUnits>(at, widths + d * 16);
    FloatVector values[kUnits];
    SKV_EACH_OF(u, kUnits) {
      const auto* row = reinterpret_cast<const uint8_t*>(
          row_of<kUnits>(at, u, widths + d * 16 + u % kParts * kLanes));
      values[u] = hn::ConvertTo(df, hn::PromoteTo(Ints(), hn::LoadU(Bytes(), row)));
    }
    SKV_EACH_OF(q, kQueries) {
      const auto query = hn::Set(df, at.second[q * at.k_dim + d]);
      SKV_EACH_OF(u, kUnits) {
        acc[q * kUnits + u] = hn::MulAdd(query, values[u], acc[q * kUnits + u]);
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kUnits) sums[i] = acc[i];
}

// Channels 2i and 2i + 1 of query q, in every lane.
HWY_INLINE ShortVector step_pair(const At& at, size_t q, size_t channel) {
  int32_t pair = 0;
  std::memcpy(&pair, at.steps + q * at.k_dim + channel, sizeof pair);
  return hn::BitCast(Shorts(), hn::Set(Ints(), pair));
}

// kInt8: a row is two channels of 16 runs.
template <size_t kQueries, size_t kUnits>
HWY_INLINE void byte_sums_of(const At& at, FloatVector* sums) {
  IntVector acc[kQueries * kUnits];
  SKV_EACH_OF(i, kQueries * kUnits) acc[i] = hn::Zero(Ints());
  for (size_t d = 0; d < at.k_dim; d += 4) {
    prefetch_rows<kUnits>(at, d * 16);
    SKV_EACH_OF(half, 2) {
      ShortVector values[kUnits];
      SKV_EACH_OF(u, kUnits) {
        const auto* row = reinterpret_cast<const int8_t*>(
            row_of<kUnits>(at, u, d * 16 + half * 32 + u % kParts * kLanes * 2));
        values[u] = hn::PromoteTo(Shorts(), hn::LoadU(SignedBytes(), row));
      }
      SKV_EACH_OF(q, kQueries) {
        const auto query = step_pair(at, q, d + 2 * half);
        SKV_EACH_OF(u, kUnits) {
          acc[q * kUnits + u] = pair_dot(acc[q * kUnits + u], values[u], query);
        }
      }
    }
  }
  SKV_EACH_OF(i, kQueries * kUnits) sums[i] = hn::ConvertTo(Floats(), acc[i]);
}

// Nibbles i and i + 4 of each word, as a pair of 16-bit numbers.
template <size_t kIndex>
HWY_INLINE ShortVector nibble_pair(WordVector words) {
  const auto shorts = hn::BitCast(Shorts(), words);
  return hn::ShiftRight<12>(hn::ShiftLeft<12 - 4 * kIndex>(shorts));
}
template <size_t kIndex, size_t kQueries, size_t kUnits>
HWY_INLINE void add_nibbles(const At& at, size_t d, const WordVector* words, IntVector* acc) {
  ShortVector values[kUnits];
  SKV_EACH_OF(u, kUnits) values[u] = nibble_pair<kIndex>(words[u]);
  SKV_EACH_OF(q, kQueries) {
    const auto query = step_pair(at, q, d + 2 * kIndex);
    SKV_EACH_OF(u, kUnits) acc[q * kUnits + u] = pair_dot(acc[q * kUnits + u], values[u], query);
  }
}

// kInt4: a row is eight channels of 16 runs.
template <size_t kQueries, size_t kUnits>
HWY_INLINE void nibble_sums_of(const At& at, FloatVector* sums) {
  IntVector acc[kQueries * kUnits];
  SKV_EACH_OF(i, kQueries * kUnits) acc[i] = hn::Zero(Ints());
  for (size_t d = 0; d < at.k_dim; d += 8) {
    prefetch_rows<kUnits>(at, d * 8);
    WordVector words[kUnits];
    SKV_EACH_OF(u, kUnits) {
      words[u] = hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(
                                        row_of<kUnits>(at, u, d * 8 + u % kParts * kLanes * 4)));
    }
    add_nibbles<0, kQueries, kUnits>(at, d, words, acc);
    add_nibbles<1, kQueries, kUnits>(at, d, words, acc);
    add_nibbles<2, kQueries, kUnits>(at, d, words, acc);
    add_nibbles<3, kQueries, kUnits>(at, d, words, acc);
  }
  SKV_EACH_OF(i, kQueries * kUnits) sums[i] = hn::ConvertTo(Floats(), acc[i]);
}

HWY_INLINE FloatVector scales_of(const FlatJob& job, size_t run) {
  return halves(job.area + run * 2);
}

// Logits of kTiles tiles for kQueries queries; `maxima` [query][kLanes].
template <IndexKind kKind, size_t kQueries, size_t kTiles>
HWY_NOINLINE void scan_group(
    const FlatJob& job, At at, size_t first_tile, size_t first_query, float* maxima) {
  constexpr size_t kUnits = kTiles * kParts;
  const Floats df;
  at.tiles += first_tile * at.tile_bytes;
  at.first += first_query * at.k_dim;
  at.second += first_query * at.k_dim;
  at.steps += first_query * at.k_dim;
  FloatVector sums[kQueries * kUnits];
  if constexpr (kKind == IndexKind::kInt8) {
    byte_sums_of<kQueries, kUnits>(at, sums);
  } else if constexpr (kKind == IndexKind::kInt4) {
    nibble_sums_of<kQueries, kUnits>(at, sums);
  } else if constexpr (kKind == IndexKind::kMinMax) {
    min_max_of<kQueries, kUnits>(at, sums);
  } else {
    dots_of<kQueries, kUnits, kKind == IndexKind::kBf16>(at, sums);
  }
  FloatVector widths[kQueries * kUnits];
  if constexpr (kKind == IndexKind::kBox) widths_of<kQueries, kUnits>(at, widths);
  SKV_EACH_OF(u, kUnits) {
    const size_t run = first_tile * kTileRuns + u * kLanes;
    // Lanes behind the page's last run: scanned, never a maximum.
    const auto left = static_cast<int32_t>(job.run_count) - static_cast<int32_t>(run);
    const auto is_run = hn::Lt(hn::Iota(Ints(), 0), hn::Set(Ints(), left));
    SKV_EACH_OF(q, kQueries) {
      const size_t query = first_query + q;
      auto logit = sums[q * kUnits + u];
      if constexpr (kKind == IndexKind::kInt8 || kKind == IndexKind::kInt4) {
        const auto factor = hn::Set(df, job.queries->factors[query]);
        logit = hn::Mul(logit, hn::Mul(factor, scales_of(job, run)));
      } else if constexpr (kKind == IndexKind::kBall) {
        logit = hn::MulAdd(hn::Set(df, job.queries->factors[query]), scales_of(job, run), logit);
      } else if constexpr (kKind == IndexKind::kBox) {
        logit = hn::MulAdd(widths[q * kUnits + u], scales_of(job, run), logit);
      }
      logit = cleaned(logit);
      hn::StoreU(logit, df, job.logits + query * job.stride + run);
      const auto counted =
          hn::IfThenElse(hn::RebindMask(df, is_run), logit, hn::Set(df, kLogitNone));
      float* max = maxima + query * kLanes;
      hn::StoreU(hn::Max(hn::LoadU(df, max), counted), df, max);
    }
  }
}

// All tiles for kQueries queries from first_query on, group by group.
template <IndexKind kKind, size_t kQueries>
HWY_INLINE void scan_tiles(const FlatJob& job,
                           const At& at,
                           size_t first_tile,
                           size_t tile_count,
                           size_t first_query,
                           float* maxima) {
  constexpr size_t kTiles = tiles_at_once(kQueries);
  size_t tile = 0;
  for (; tile + kTiles <= tile_count; tile += kTiles) {
    scan_group<kKind, kQueries, kTiles>(job, at, first_tile + tile, first_query, maxima);
  }
  for (; tile < tile_count; ++tile) {
    scan_group<kKind, kQueries, 1>(job, at, first_tile + tile, first_query, maxima);
  }
}

// Tiles in groups that stay in the nearest cache while all queries pass over them.
template <IndexKind kKind>
void scan_kind(const FlatJob& job) {
  constexpr size_t kQueriesMax = 64;
  constexpr size_t kGroupTiles = 4;
  const Floats df;
  float maxima[kQueriesMax * kLanes];
  for (size_t i = 0; i < job.query_count * kLanes; ++i) maxima[i] = kLogitNone;
  At at{};
  at.tiles = job.area + FlatAreaLayout::tiles(kKind, job.run_tokens);
  at.tile_bytes = FlatAreaLayout::tile_bytes(kKind, job.k_dim);
  at.k_dim = job.k_dim;
  at.first = job.queries->first;
  at.second = job.queries->second;
  at.steps = job.queries->steps;
  const size_t tile_count = (job.run_count + kTileRuns - 1) / kTileRuns;
  for (size_t tile = 0; tile < tile_count; tile += kGroupTiles) {
    const size_t count = std::min(kGroupTiles, tile_count - tile);
    size_t q = 0;
    at.prefetch = true;
    const auto done = [&](size_t queries) {
      q += queries;
      at.prefetch = false;
    };
    if constexpr (kQueriesAtOnce == 8) {
      for (; q + 8 <= job.query_count; done(8)) {
        scan_tiles<kKind, 8>(job, at, tile, count, q, maxima);
      }
    }
    for (; q + 4 <= job.query_count; done(4)) {
      scan_tiles<kKind, 4>(job, at, tile, count, q, maxima);
    }
    for (; q + 2 <= job.query_count; done(2)) {
      scan_tiles<kKind, 2>(job, at, tile, count, q, maxima);
    }
    if (q < job.query_count) scan_tiles<kKind, 1>(job, at, tile, count, q, maxima);
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
      return scan_kind<IndexKind::kBf16>(job);
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

float masses(
    float* logits, float max, uint32_t run_count, uint32_t runs_per_block, float run_tokens) {
  constexpr size_t kChunk = 512;  // runs: stays in the nearest cache through all its steps
  const Floats df;
  const auto maxima = hn::Set(df, max);
  const auto tokens = hn::Set(df, run_tokens);
  FloatVector sums[kParts];
  for (size_t part = 0; part < kParts; ++part) sums[part] = hn::Zero(df);
  const size_t unit = size_t{16} * runs_per_block;
  const size_t padded = (run_count + unit - 1) / unit * unit;
  std::fill(logits + run_count, logits + padded, kLogitNone);
  float* to = logits;
  for (size_t first = 0; first < padded; first += kChunk) {
    const size_t count = std::min(kChunk, padded - first);
    float* chunk = logits + first;
    for (size_t i = 0; i < count; i += kLanes) {
      hn::StoreU(exp2_of_lanes(hn::Sub(hn::LoadU(df, chunk + i), maxima)), df, chunk + i);
    }
    size_t blocks = count;
    for (uint32_t width = runs_per_block; width > 1; width /= 2) halve(chunk, blocks /= 2);
    for (size_t i = 0; i < blocks; i += 16, to += 16) {
      for (size_t part = 0; part < kParts; ++part) {
        const auto mass = hn::Mul(hn::LoadU(df, chunk + i + part * kLanes), tokens);
        hn::StoreU(mass, df, to + part * kLanes);
        sums[part] = hn::Add(sums[part], mass);
      }
    }
  }
  float lanes[16];
  for (size_t part = 0; part < kParts; ++part) {
    hn::StoreU(sums[part], df, lanes + part * kLanes);
  }
  return sum_of_lanes(lanes);
}

void first_share(const float* masses, float factor, size_t count, float* totals) {
  const Floats df;
  const auto factors = hn::Set(df, factor);
  for (size_t i = 0; i < count; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(df, masses + i), factors), df, totals + i);
  }
}

const FlatOps* flat_ops() {
  static constexpr FlatOps kOps = {scan, masses, first_share};
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
