#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ipc/identity/model.h"
#include "ipc/layout/body_layout.h"
#include "ipc/layout/vectors.h"
#include "ipc/types/result.h"

namespace skv {

// Makes a sentence's semantic vectors from its keys, and checks those that a client made.
//
// The result is a function of the keys' bits alone: fp32, tokens ascending, no fused operation, no
// dependence on CPU or thread. Record layout: ipc/layout/vectors.h.
//
//   mean      mean of the keys, rounded to fp16
//   spread    sqrt(mean((k - mean)^2)), mean as rounded
//   scale     largest |residual| / 7, over the residuals of all runs
//   residual  round(((mean of the run's keys) - mean) / scale), nearest even, held in -7..7
// A log code is the one nearest in ratio; m is the largest value rounded up to fp16. So a residual
// overshoots 7 steps by at most 7 * (2^(1/32) - 1) = 0.153 before it is held.
//
// Keys that are not finite: the channel's mean is kHalfNan, its codes and residuals 0, and the
// record scores mass 0 against every query. Means beyond fp16 saturate at 65504.

// K rows of one (sentence, layer, kv head), borrowed. Row t of block b begins at
// blocks + b * block_stride + t * row_stride and holds k_dim elements.
struct KeyRows {
  const std::byte* blocks = nullptr;
  size_t block_stride = 0;             // bytes
  size_t row_stride = 0;               // bytes
  BodyDtype dtype = BodyDtype::kFp16;  // fp32, fp16 or bf16
  uint32_t block_count = 0;
  uint32_t block_tokens = 0;
  uint32_t k_dim = 0;
};

// Working memory; grows to the largest k_dim seen, then allocates no more. One thread at a time.
struct DeriveScratch {
  std::vector<float> rows;       // [token][k_dim]
  std::vector<float> residuals;  // [run][k_dim]
  std::vector<float> channels;   // some arrays of [k_dim]
};

// Writes the record of `keys` to `record`, of VectorRecordLayout::bytes. `token_mask`, if not null:
// one byte per token of the sentence, 0 leaves the token out of every statistic; a run without
// tokens gets residual 0, a mask that leaves no token at all counts as none.
void derive_record(const KeyRows& keys,
                   const IndexDescriptor& index,
                   const uint8_t* token_mask,
                   std::span<std::byte> record,
                   DeriveScratch& scratch);

// The same for all heads of `layers`, which lie in one chunk of a body.
struct DeriveChunk {
  const std::byte* chunk = nullptr;  // the chunk's first byte
  LayerRange layers;                 // within one chunk of `body`
  uint32_t blocks = 0;               // of the sentence
  BodyDtype dtype = BodyDtype::kFp16;
  const uint8_t* token_mask = nullptr;
};
// `blob` is the whole sentence's, of vectors.blob_bytes(blocks); only the records of the layers are
// written.
void derive_layers(const BodyLayout& body,
                   const VectorsLayout& vectors,
                   const DeriveChunk& task,
                   std::span<std::byte> blob,
                   DeriveScratch& scratch);

// What a client puts: the size must be that of `blocks`, each mean and m finite, each m >= 0, no
// residual -8. kInvalidArgument names layer, head, channel or the two sizes.
Result<void> check_blob(const VectorsLayout& vectors,
                        uint32_t blocks,
                        std::span<const std::byte> blob);

}  // namespace skv
