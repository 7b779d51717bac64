#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "ipc/layout/half.h"
#include "kernels/rank.h"
#include "kernels/rank_pages.h"
#include "kernels/vectors.h"

namespace skv::synthetic {

// Contexts made from a seed, with their keys kept, so that a test can say what attention truly
// does.

struct Shape {
  uint32_t k_dim = 64;
  uint32_t block_tokens = 8;
  uint32_t run_tokens = 2;
  IndexKind kind = IndexKind::kMeanSpreadRuns;
  uint32_t heads = 1;
  uint32_t layers = 1;
};

inline ModelDescriptor model_of(const Shape& shape) {
  ModelDescriptor model;
  model.weights_id = "synthetic";
  model.dtype = BodyDtype::kFp32;
  model.block_tokens = static_cast<uint16_t>(shape.block_tokens);
  for (uint32_t i = 0; i < shape.layers; ++i) {
    LayerDescriptor layer;
    layer.kv_heads = static_cast<uint16_t>(shape.heads);
    layer.queries_per_kv_head = 4;
    layer.k_dim = layer.v_dim = static_cast<uint16_t>(shape.k_dim);
    layer.softmax_scale = 1.0F / std::sqrt(static_cast<float>(shape.k_dim));
    model.layers.push_back(layer);
  }
  return model;
}
inline IndexDescriptor index_of(const Shape& shape) {
  return {shape.kind, static_cast<uint8_t>(shape.run_tokens)};
}

// SplitMix64: the same numbers on every machine.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  // Sum of four uniform numbers: near enough to normal, variance 1, never beyond 3.5.
  float normal() {
    const uint64_t z = next();
    const auto sum = static_cast<int32_t>((z & 0xFFFF) + ((z >> 16) & 0xFFFF) +
                                          ((z >> 32) & 0xFFFF) + (z >> 48)) -
                     2 * 0xFFFF;
    return static_cast<float>(sum) * 0x1.bb67aep-16F;  // sqrt(3) / 65536
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }

 private:
  uint64_t state_;
};

// One layer, one head; the same keys for each head if the shape has several.
struct Context {
  Shape shape;
  std::vector<uint32_t> block_counts;    // per sentence
  std::vector<std::vector<float>> keys;  // per sentence: [token][k_dim]
  std::vector<std::vector<std::byte>> blobs;
  std::unique_ptr<VectorPages> pages;

  uint32_t sentence_count() const { return static_cast<uint32_t>(keys.size()); }
  RankView view() const { return pages->view(0, 0); }
};

inline std::vector<std::byte> blob_of(const Shape& shape,
                                      uint32_t blocks,
                                      const std::vector<float>& keys) {
  const VectorsLayout layout(model_of(shape), index_of(shape));
  std::vector<std::byte> blob(layout.blob_bytes(blocks));
  KeyRows rows;
  rows.blocks = reinterpret_cast<const std::byte*>(keys.data());
  rows.row_stride = size_t{shape.k_dim} * 4;
  rows.block_stride = rows.row_stride * shape.block_tokens;
  rows.dtype = BodyDtype::kFp32;
  rows.block_count = blocks;
  rows.block_tokens = shape.block_tokens;
  rows.k_dim = shape.k_dim;
  DeriveScratch scratch;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t head = 0; head < shape.heads; ++head) {
      derive_record(rows, layout.index(), nullptr,
                    std::span(blob).subspan(layout.offset(layer, head, blocks),
                                            layout.record(layer, blocks).bytes),
                    scratch);
    }
  }
  return blob;
}

inline std::unique_ptr<VectorPages> empty_pages(const Shape& shape) {
  return std::make_unique<VectorPages>(
      std::make_shared<RankPageLayout>(VectorsLayout(model_of(shape), index_of(shape))));
}

inline void append(Context& context, uint32_t blocks, std::vector<float> keys) {
  context.block_counts.push_back(blocks);
  context.blobs.push_back(blob_of(context.shape, blocks, keys));
  context.keys.push_back(std::move(keys));
  context.pages->append(blocks, context.blobs.back());
}

// Sentences of 32..64 tokens. Keys have a drifting mean, sentences their own topic, tokens a little
// noise, neighbours much in common: roughly what keys of a real model look like.
inline Context random_context(const Shape& shape, uint32_t sentences, uint64_t seed) {
  Context context;
  context.shape = shape;
  context.pages = empty_pages(shape);
  Noise noise(seed);
  std::vector<float> base(shape.k_dim);
  for (float& value : base) value = 2.0F * noise.normal();
  const uint32_t blocks_min = 32 / shape.block_tokens;
  const uint32_t blocks_max = 64 / shape.block_tokens;
  for (uint32_t i = 0; i < sentences; ++i) {
    const uint32_t blocks = blocks_min + noise.below(blocks_max - blocks_min + 1);
    const uint32_t tokens = blocks * shape.block_tokens;
    std::vector<float> topic(shape.k_dim);
    for (uint32_t d = 0; d < shape.k_dim; ++d) {
      base[d] += 0.05F * noise.normal();
      topic[d] = 0.8F * noise.normal();
    }
    std::vector<float> keys(size_t{tokens} * shape.k_dim);
    std::vector<float> local(shape.k_dim, 0.0F);
    for (uint32_t token = 0; token < tokens; ++token) {
      for (uint32_t d = 0; d < shape.k_dim; ++d) {
        local[d] = 0.85F * local[d] + 0.5F * noise.normal();
        keys[size_t{token} * shape.k_dim + d] = base[d] + topic[d] + local[d];
      }
    }
    append(context, blocks, std::move(keys));
  }
  return context;
}

inline std::vector<float> random_queries(uint32_t count, uint32_t k_dim, uint64_t seed) {
  Noise noise(seed);
  std::vector<float> queries(size_t{count} * k_dim);
  for (float& value : queries) value = 1.2F * noise.normal();
  return queries;
}

// --- oracles, in double precision ---

struct OracleScores {
  std::vector<double> blocks;  // share of attention mass, mean over the queries
};

inline OracleScores shares_of(const std::vector<std::vector<double>>& block_mass_per_query) {
  OracleScores scores;
  for (const std::vector<double>& masses : block_mass_per_query) {
    double total = 0.0;
    for (const double mass : masses) total += mass;
    scores.blocks.resize(masses.size(), 0.0);
    for (size_t i = 0; i < masses.size(); ++i) {
      scores.blocks[i] += masses[i] / total / static_cast<double>(block_mass_per_query.size());
    }
  }
  return scores;
}

// Attention as it is: softmax over all tokens' keys.
inline OracleScores true_attention(const Context& context,
                                   const std::vector<float>& queries,
                                   double softmax_scale) {
  const uint32_t d_count = context.shape.k_dim;
  std::vector<std::vector<double>> masses(queries.size() / d_count);
  for (size_t q = 0; q < masses.size(); ++q) {
    for (uint32_t s = 0; s < context.sentence_count(); ++s) {
      for (uint32_t block = 0; block < context.block_counts[s]; ++block) {
        double mass = 0.0;
        for (uint32_t t = 0; t < context.shape.block_tokens; ++t) {
          const size_t token = size_t{block} * context.shape.block_tokens + t;
          double dot = 0.0;
          for (uint32_t d = 0; d < d_count; ++d) {
            dot += double{queries[q * d_count + d]} * double{context.keys[s][token * d_count + d]};
          }
          mass += std::exp(dot * softmax_scale);
        }
        masses[q].push_back(mass);
      }
    }
  }
  return shares_of(masses);
}

// What a record says, decoded by the text of ipc/layout/vectors.h and nothing else.
inline double decoded_half(std::span<const std::byte> record, uint32_t at) {
  return double{half_to_float(static_cast<uint16_t>(static_cast<uint32_t>(record[at]) |
                                                    static_cast<uint32_t>(record[at + 1]) << 8))};
}
inline std::vector<double> decoded_scales(const Shape& shape, std::span<const std::byte> record) {
  const double scale_m = decoded_half(record, 2 * shape.k_dim);
  std::vector<double> scales(shape.k_dim);
  for (uint32_t d = 0; d < shape.k_dim; ++d) {
    const auto code = static_cast<int>(record[size_t{3} * shape.k_dim + 4 + d]);
    scales[d] = code == 0 ? 0.0 : scale_m * std::exp2((code - 255) / 16.0);
  }
  return scales;
}
inline int decoded_residual(const Shape& shape,
                            uint32_t blocks,
                            std::span<const std::byte> record,
                            uint32_t run,
                            uint32_t d) {
  const uint32_t d_count = shape.k_dim;
  const uint32_t runs = blocks * shape.block_tokens / shape.run_tokens;
  const uint32_t tiles = 4 * d_count + 4;
  const uint32_t first_run = run / 16 * 16;
  const uint32_t width = std::min(16U, (runs + 3) / 4 * 4 - first_run);
  const uint32_t lane = run - first_run;
  const auto byte =
      static_cast<int>(record[tiles + d_count * first_run / 2 + d * width / 2 + lane / 2]);
  const int residual = lane % 2 == 0 ? byte & 15 : byte >> 4;
  return residual > 7 ? residual - 16 : residual;
}
inline std::vector<double> decoded_run(const Shape& shape,
                                       uint32_t blocks,
                                       std::span<const std::byte> record,
                                       uint32_t run) {
  const std::vector<double> scales = decoded_scales(shape, record);
  std::vector<double> key(shape.k_dim);
  for (uint32_t d = 0; d < shape.k_dim; ++d) {
    key[d] =
        decoded_half(record, 2 * d) + scales[d] * decoded_residual(shape, blocks, record, run, d);
  }
  return key;
}

// What the default index estimates when everything is scanned finely.
inline OracleScores estimated_attention(const Context& context,
                                        const std::vector<float>& queries,
                                        double softmax_scale) {
  const Shape& shape = context.shape;
  const uint32_t d_count = shape.k_dim;
  std::vector<std::vector<double>> masses(queries.size() / d_count);
  for (uint32_t s = 0; s < context.sentence_count(); ++s) {
    const uint32_t runs_per_block = shape.block_tokens / shape.run_tokens;
    for (uint32_t block = 0; block < context.block_counts[s]; ++block) {
      std::vector<double> mass(masses.size(), 0.0);
      for (uint32_t i = 0; i < runs_per_block; ++i) {
        const std::vector<double> key = decoded_run(shape, context.block_counts[s],
                                                    context.blobs[s], block * runs_per_block + i);
        for (size_t q = 0; q < masses.size(); ++q) {
          double dot = 0.0;
          for (uint32_t d = 0; d < d_count; ++d) dot += double{queries[q * d_count + d]} * key[d];
          mass[q] += shape.run_tokens * std::exp(dot * softmax_scale);
        }
      }
      for (size_t q = 0; q < masses.size(); ++q) masses[q].push_back(mass[q]);
    }
  }
  return shares_of(masses);
}

inline RankQuery query_of(const std::vector<float>& queries, const Shape& shape) {
  return {queries.data(), static_cast<uint32_t>(queries.size() / shape.k_dim),
          1.0F / std::sqrt(static_cast<float>(shape.k_dim))};
}

}  // namespace skv::synthetic
