#include "tests/bench/rank_world.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "ipc/layout/half.h"
#include "kernels/flat_pages.h"
#include "kernels/vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace skv::bench {
namespace {

uint64_t next(uint64_t& state) {
  state += 0x9E3779B97F4A7C15U;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}
// Near enough to normal, variance 1.
float normal(uint64_t& state) {
  const uint64_t z = next(state);
  const auto sum =
      static_cast<int32_t>((z & 0xFFFF) + ((z >> 16) & 0xFFFF) + ((z >> 32) & 0xFFFF) + (z >> 48)) -
      2 * 0xFFFF;
  return static_cast<float>(sum) * 0x1.bb67aep-16F;
}

ModelDescriptor model_of(const RankShape& shape) {
  ModelDescriptor model;
  model.weights_id = "bench";
  model.block_tokens = static_cast<uint16_t>(shape.block_tokens);
  LayerDescriptor layer;
  layer.kv_heads = static_cast<uint16_t>(shape.heads);
  layer.queries_per_kv_head = 4;
  layer.k_dim = layer.v_dim = static_cast<uint16_t>(shape.k_dim);
  layer.softmax_scale = 0.0883883476F;
  model.layers.push_back(layer);
  // Pages as large as a model's, so that they lie in huge pages of memory; not filled, not ranked.
  if (!is_flat(shape.kind)) model.layers.push_back(layer);
  return model;
}

void derive_into(const RankShape& shape,
                 const VectorsLayout& layout,
                 uint32_t blocks,
                 const std::vector<float>& keys,
                 std::span<std::byte> record,
                 DeriveScratch& scratch) {
  KeyRows rows;
  rows.blocks = reinterpret_cast<const std::byte*>(keys.data());
  rows.row_stride = size_t{shape.k_dim} * 4;
  rows.block_stride = rows.row_stride * shape.block_tokens;
  rows.dtype = BodyDtype::kFp32;
  rows.block_count = blocks;
  rows.block_tokens = shape.block_tokens;
  rows.k_dim = shape.k_dim;
  derive_record(rows, layout.index(), nullptr, record, scratch);
}

std::vector<std::byte> random_blob(const RankShape& shape,
                                   const VectorsLayout& layout,
                                   uint32_t blocks,
                                   uint64_t seed) {
  std::vector<std::byte> blob(layout.blob_bytes(blocks));
  const uint32_t tokens = blocks * shape.block_tokens;
  std::vector<float> keys(size_t{tokens} * shape.k_dim);
  DeriveScratch scratch;
  for (uint32_t head = 0; head < shape.heads; ++head) {
    for (float& key : keys) key = normal(seed);
    const uint64_t at = layout.offset(0, head, blocks);
    const auto record = std::span(blob).subspan(at, layout.record(0, blocks).bytes);
    derive_into(shape, layout, blocks, keys, record, scratch);
  }
  return blob;
}

// --- loops that read ---

uint64_t read_plain(const std::byte* from, uint64_t bytes) {
  uint64_t sums[8] = {};
  for (uint64_t at = 0; at + 64 <= bytes; at += 64) {
    uint64_t words[8];
    std::memcpy(words, from + at, sizeof words);
    for (int i = 0; i < 8; ++i) sums[i] += words[i];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t sum_of(const __m512i* sums) {
  uint64_t words[32];
  for (int i = 0; i < 4; ++i) _mm512_storeu_si512(words + 8 * i, sums[i]);
  uint64_t sum = 0;
  for (const uint64_t word : words) sum += word;
  return sum;
}
__attribute__((target("avx512f"))) uint64_t read_wide(const std::byte* from, uint64_t bytes) {
  __m512i sums[4] = {};
  uint64_t at = 0;
  for (; at + 256 <= bytes; at += 256) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(from + at + i * 64));
    }
  }
  uint64_t sum = read_plain(from + at, bytes - at);
  return sum + sum_of(sums);
}
// The same with `kAhead` bytes asked for ahead.
template <uint64_t kAhead>
__attribute__((target("avx512f"))) uint64_t read_ahead(const std::byte* from, uint64_t bytes) {
  __m512i sums[4] = {};
  uint64_t at = 0;
  for (; at + 256 <= bytes; at += 256) {
    for (int i = 0; i < 4; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(from) + at + kAhead + i * 64, _MM_HINT_T0);
      sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(from + at + i * 64));
    }
  }
  uint64_t sum = read_plain(from + at, bytes - at);
  return sum + sum_of(sums);
}
// Four streams, 4 KiB apart.
__attribute__((target("avx512f"))) uint64_t read_streams(const std::byte* from, uint64_t bytes) {
  __m512i sums[4] = {};
  uint64_t at = 0;
  for (; at + 16384 <= bytes; at += 16384) {
    for (uint64_t line = 0; line < 4096; line += 64) {
      for (int i = 0; i < 4; ++i) {
        const std::byte* here = from + at + i * 4096 + line;
        _mm_prefetch(reinterpret_cast<const char*>(here) + 16384, _MM_HINT_T0);
        sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(here));
      }
    }
  }
  uint64_t sum = read_plain(from + at, bytes - at);
  return sum + sum_of(sums);
}
#endif

struct Loop {
  const char* name;
  uint64_t (*read)(const std::byte* from, uint64_t bytes);
};
const std::vector<Loop>& loops() {
  static const std::vector<Loop> list = [] {
    std::vector<Loop> found = {{"plain", read_plain}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
      found.push_back({"512 bits", read_wide});
      found.push_back({"512 bits, 1 KiB ahead", read_ahead<1024>});
      found.push_back({"512 bits, 4 KiB ahead", read_ahead<4096>});
      found.push_back({"512 bits, 4 streams", read_streams});
    }
#endif
    return found;
  }();
  return list;
}

}  // namespace

const char* name_of(IndexKind kind) {
  switch (kind) {
    case IndexKind::kMeanSpreadRuns:
      return "mean+spread+int4 runs";
    case IndexKind::kMean:
      return "mean";
    case IndexKind::kFp16:
      return "fp16";
    case IndexKind::kBf16:
      return "bf16";
    case IndexKind::kInt8:
      return "int8";
    case IndexKind::kInt4:
      return "int4";
    case IndexKind::kMinMax:
      return "min/max";
    case IndexKind::kBox:
      return "box";
    case IndexKind::kBall:
      return "ball";
    case IndexKind::kKeys:
      return "keys";
  }
  return "?";
}

std::unique_ptr<VectorPages> random_pages(const RankShape& shape, uint32_t vectors) {
  const VectorsLayout layout(model_of(shape), {shape.kind, static_cast<uint8_t>(shape.run_tokens)});
  auto pages = std::make_unique<VectorPages>(std::make_shared<RankPageLayout>(layout));
  const uint32_t blocks = 64 / shape.block_tokens;
  std::vector<std::vector<std::byte>> blobs;
  for (uint64_t i = 0; i < 4; ++i) blobs.push_back(random_blob(shape, layout, blocks, i + 1));
  const uint32_t sentences = vectors / (64 / shape.run_tokens);
  for (uint32_t i = 0; i < sentences; ++i) pages->append(blocks, blobs[i % blobs.size()]);
  return pages;
}

std::unique_ptr<VectorPages> topical_pages(const RankShape& shape, uint32_t tokens) {
  const VectorsLayout layout(model_of(shape), {shape.kind, static_cast<uint8_t>(shape.run_tokens)});
  auto pages = std::make_unique<VectorPages>(std::make_shared<RankPageLayout>(layout));
  const uint32_t blocks = 64 / shape.block_tokens;
  std::vector<float> keys(size_t{64} * shape.k_dim);
  std::vector<float> topic(shape.k_dim);
  std::vector<float> local(shape.k_dim);
  std::vector<std::byte> blob(layout.blob_bytes(blocks));
  DeriveScratch scratch;
  uint64_t seed = 3;
  for (uint32_t first = 0; first < tokens; first += 64) {
    for (float& value : topic) value = 0.8F * normal(seed);
    std::fill(local.begin(), local.end(), 0.0F);
    for (uint32_t token = 0; token < 64; ++token) {
      for (uint32_t d = 0; d < shape.k_dim; ++d) {
        local[d] = 0.85F * local[d] + 0.5F * normal(seed);
        keys[size_t{token} * shape.k_dim + d] = topic[d] + local[d];
      }
    }
    derive_into(shape, layout, blocks, keys, std::span(blob).first(layout.record(0, blocks).bytes),
                scratch);
    pages->append(blocks, blob);
  }
  return pages;
}

std::vector<float> random_queries(uint32_t count, uint32_t k_dim, uint64_t seed) {
  std::vector<float> queries(size_t{count} * k_dim);
  for (float& value : queries) value = normal(seed);
  return queries;
}

uint64_t scanned_bytes(const VectorPages& pages) {
  const RankView view = pages.view(0, 0);
  const uint64_t runs = uint64_t{view.end_block} * view.block_tokens / view.run_tokens;
  if (is_flat(view.kind))
    return runs * (FlatAreaLayout::lane_bytes(view.kind, view.k_dim) +
                   (FlatAreaLayout::has_scale(view.kind) ? 2 : 0));
  const uint64_t tiles = (uint64_t{view.sentence_count} + 15) / 16;
  return tiles * 32 * view.k_dim +
         uint64_t{view.sentence_count} * view.k_dim *
             RankAreaLayout::fine_units(static_cast<uint32_t>(runs / view.sentence_count));
}

StreamingRead::StreamingRead(const VectorPages& pages) {
  const uint64_t per_head = scanned_bytes(pages);
  const uint32_t heads = pages.layout().vectors().kv_heads(0);
  const uint32_t page_count = (pages.sentence_count() + kPageSentences - 1) / kPageSentences;
  for (uint32_t head = 0; head < heads; ++head) {
    const RankView view = pages.view(0, head);
    for (uint32_t page = 0; page < page_count; ++page) {
      const uint64_t sentences =
          std::min(kPageSentences, view.sentence_count - page * kPageSentences);
      pieces_.push_back({view.pages[page] + view.area_offset,
                         per_head * sentences / view.sentence_count / 64 * 64});
    }
  }
  double fastest = 1e9;
  for (int loop = 0; loop < static_cast<int>(loops().size()); ++loop) {
    for (int round = 0; round < 3; ++round) {
      const double begin = thread_seconds();
      volatile uint64_t sum = read_with(loop);
      (void)sum;
      const double seconds = thread_seconds() - begin;
      if (seconds >= fastest) continue;
      fastest = seconds;
      best_ = loop;
    }
  }
}

const char* StreamingRead::loop_name() const { return loops()[static_cast<size_t>(best_)].name; }

uint64_t StreamingRead::read_with(int loop) const {
  uint64_t sum = 0;
  for (const Piece& piece : pieces_) {
    sum += loops()[static_cast<size_t>(loop)].read(piece.from, piece.bytes);
  }
  return sum;
}

double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace skv::bench
