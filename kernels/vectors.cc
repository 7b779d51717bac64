#include "kernels/vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "ipc/layout/half.h"
#include "ipc/types/check.h"
#include "kernels/derive.h"
#include "kernels/float_environment.h"

namespace skv {
namespace {

Result<void> check_record(const VectorsLayout& vectors,
                          uint32_t layer,
                          uint32_t blocks,
                          const std::byte* record) {
  const uint32_t k_dim = vectors.k_dim(layer);
  const VectorRecordLayout layout = vectors.record(layer, blocks);
  const IndexKind kind = vectors.index().kind;
  if (is_flat(kind)) return check_flat(kind, k_dim, vectors.runs(blocks), record);
  for (uint32_t d = 0; d < k_dim; ++d) {
    if (!half_is_finite(load_u16(record + size_t{2} * d))) {
      return invalid_vectors("channel " + std::to_string(d) + ": mean is not finite");
    }
  }
  if (kind == IndexKind::kMean) return {};
  for (const uint32_t at : {layout.scale_m, layout.spread_m}) {
    const uint16_t half = load_u16(record + at);
    if (!half_is_finite(half) || (half & 0x8000U) != 0) {
      return invalid_vectors(std::string(at == layout.scale_m ? "scale_m" : "spread_m") +
                             ": not a finite number >= 0");
    }
  }
  for (uint32_t at = layout.tiles; at < layout.bytes; ++at) {
    const auto pair = static_cast<uint32_t>(record[at]);
    if ((pair & 0xFU) == 8U || (pair >> 4) == 8U) {
      return invalid_vectors("residual -8 at byte " + std::to_string(at) + " of the record");
    }
  }
  return {};
}

}  // namespace

void derive_record(const KeyRows& keys,
                   const IndexDescriptor& index,
                   const uint8_t* token_mask,
                   std::span<std::byte> record,
                   DeriveScratch& scratch) {
  const uint32_t tokens = keys.block_count * keys.block_tokens;
  SKV_CHECK(tokens != 0 && keys.block_tokens % index.run_tokens == 0, "runs divide blocks");
  const VectorRecordLayout layout = VectorRecordLayout::of(
      index.kind, keys.k_dim, run_count(keys.block_count, keys.block_tokens, index.run_tokens));
  SKV_CHECK(record.size() == layout.bytes, "record size");

  const FloatEnvironment environment;
  const TokenMask mask(token_mask, tokens);
  if (is_flat(index.kind)) {
    derive_flat(keys, index, mask, record.data(), scratch);
    return;
  }
  DeriveJob job;
  job.keys = &keys;
  job.mask = &mask;
  job.run_tokens = index.run_tokens;
  job.layout = layout;
  job.record = record.data();
  if (index.kind != IndexKind::kMean) {
    const size_t residuals = size_t{tokens / index.run_tokens} * keys.k_dim;
    if (scratch.residuals.size() < residuals) scratch.residuals.resize(residuals);
    if (scratch.channels.size() < size_t{2} * keys.k_dim) {
      scratch.channels.resize(size_t{2} * keys.k_dim);
    }
    job.spread = scratch.channels.data();
    job.scale = job.spread + keys.k_dim;
    job.residuals = scratch.residuals.data();
  }
  derive_mean_and_runs(job);
}

void derive_layers(const BodyLayout& body,
                   const VectorsLayout& vectors,
                   const DeriveChunk& task,
                   std::span<std::byte> blob,
                   DeriveScratch& scratch) {
  SKV_CHECK(blob.size() == vectors.blob_bytes(task.blocks), "blob size");
  for (uint32_t layer = task.layers.first; layer < task.layers.end(); ++layer) {
    KeyRows keys;
    keys.row_stride = size_t{body.k_dim(layer)} * body.element_bytes();
    keys.dtype = task.dtype;
    keys.block_count = task.blocks;
    keys.block_tokens = body.block_tokens();
    keys.k_dim = body.k_dim(layer);
    const uint32_t bytes = vectors.record(layer, task.blocks).bytes;
    const uint64_t first = vectors.offset(layer, 0, task.blocks);
    for (uint32_t head = 0; head < body.kv_heads(layer); ++head) {
      keys.blocks = task.chunk + body.block_offset(layer, head, 0, task.blocks);
      keys.block_stride = body.block_bytes(layer);
      derive_record(keys, vectors.index(), task.token_mask,
                    blob.subspan(first + uint64_t{head} * bytes, bytes), scratch);
    }
  }
}

Result<void> check_blob(const VectorsLayout& vectors,
                        uint32_t blocks,
                        std::span<const std::byte> blob) {
  const uint64_t expected = vectors.blob_bytes(blocks);
  if (blob.size() != expected) {
    return invalid_vectors("vectors of " + std::to_string(blocks) + " blocks are " +
                           std::to_string(expected) + " bytes, not " + std::to_string(blob.size()));
  }
  const std::byte* record = blob.data();
  for (uint32_t layer = 0; layer < vectors.layer_count(); ++layer) {
    for (uint32_t head = 0; head < vectors.kv_heads(layer); ++head) {
      const Result<void> checked = check_record(vectors, layer, blocks, record);
      if (!checked.ok()) {
        return invalid_vectors("vectors: layer " + std::to_string(layer) + ", kv head " +
                               std::to_string(head) + ", " + checked.error().message);
      }
      record += vectors.record(layer, blocks).bytes;
    }
  }
  return {};
}

}  // namespace skv
