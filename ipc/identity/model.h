#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ipc/types/ids.h"
#include "ipc/types/result.h"

namespace skv {

enum class BodyDtype : uint8_t { kFp32 = 0, kFp16 = 1, kBf16 = 2, kFp8E4m3 = 3, kFp8E5m2 = 4 };
enum class LayerClass : uint8_t {
  kFull = 0,
  kSlidingWindow = 1,
  kLinear = 2,
  kSharesKv = 3,
  kSharesIndex = 4
};
enum class KState : uint8_t { kPostRope = 0, kPreRope = 1, kLatent = 2 };
enum class RotaryPairing : uint8_t { kNone = 0, kHalfSplit = 1, kInterleaved = 2 };

// One applied rotary table. `frequencies` is as applied (after any scaling), dims / 2 values.
struct RotaryTable {
  uint32_t dims = 0;
  uint32_t offset = 0;
  RotaryPairing pairing = RotaryPairing::kNone;
  float attention_factor = 1.0F;
  std::vector<float> frequencies;
};

struct LayerDescriptor {
  LayerClass layer_class = LayerClass::kFull;
  uint16_t kv_heads = 0;
  uint16_t queries_per_kv_head = 0;
  uint16_t k_dim = 0;
  uint16_t v_dim = 0;
  uint16_t shared_layer = 0;    // kSharesKv, kSharesIndex: whose
  uint32_t sliding_window = 0;  // kSlidingWindow: tokens
  float softmax_scale = 0.0F;
  float logit_cap = 0.0F;          // 0: none
  uint16_t rotary_index = 0xFFFF;  // into ModelDescriptor::rotary_tables; 0xFFFF: none
};

// All that an engine declares about its KV (docs/architecture.md "Model"). In the ABI, on the wire
// and in the superblock-adjacent model table of the NVMe store; complete from the start, so that
// support can grow without a new format.
struct ModelDescriptor {
  std::string weights_id;  // 1..256 bytes: whatever makes two sets of weights distinct
  BodyDtype dtype = BodyDtype::kFp16;
  uint16_t block_tokens = 8;
  uint16_t tp_rank = 0;
  uint16_t tp_size = 1;
  uint16_t first_kv_head = 0;  // of the whole model; kv_heads of a layer counts this rank's
  bool v_is_view_of_k = false;
  KState k_state = KState::kPostRope;
  std::vector<RotaryTable> rotary_tables;
  std::vector<LayerDescriptor> layers;
};

inline constexpr uint32_t kLayersMax = 256;
inline constexpr uint32_t kKvHeadsMax = 256;
inline constexpr uint32_t kHeadDimMax = 1024;  // a multiple of 8
inline constexpr uint32_t kQueriesPerKvHeadMax = 64;
inline constexpr uint32_t kRotaryTablesMax = 16;
inline constexpr uint32_t kSentenceTokensMin = 32;
inline constexpr uint32_t kSentenceTokensMax = 64;

uint32_t dtype_bytes(BodyDtype dtype);

// kInvalidArgument with the field and the limit for what can never be right; kUnsupported, by name,
// for what this version does not serve (anything but full layers, post-rope keys,
// fp32/fp16/bf16...).
Result<void> validate(const ModelDescriptor& model);

// SHA-256 over the canonical encoding of what determines the bytes of bodies: weights id, dtype,
// block_tokens, heads, dims, rotary facts, k_state; not softmax scale, logit cap or query heads.
Digest fingerprint(const ModelDescriptor& model);

// The canonical little-endian encoding of the whole descriptor (docs/protocol.md), as on the wire
// and on disk.
std::vector<uint8_t> encode(const ModelDescriptor& model);
Result<ModelDescriptor> decode_model(const uint8_t* data, size_t bytes);

// How a context's sentences are ranked. Not part of the fingerprint.
enum class IndexKind : uint8_t {
  kMeanSpreadRuns = 0,  // mean, spread, scale per channel; int4 residual per run (the default)
  kMean = 1,            // mean alone (plain SentenceKV)
  // Flat kinds: what stands for one run after the other (ipc/layout/vectors.h), all read at every
  // step. The run's mean, in
  kFp16 = 2,
  kBf16 = 3,
  kInt8 = 4,  // with a scale per run
  kInt4 = 5,
  // Upper bounds of the run's logits:
  kMinMax = 6,  // smallest and largest key, channel by channel
  kBox = 7,     // the same as centre and half width of 8 bits
  kBall = 8,    // mean and largest distance from it
  kKeys = 9,    // the run's own key that is nearest to its mean
};
inline constexpr IndexKind kIndexKindLast = IndexKind::kKeys;
constexpr bool is_flat(IndexKind kind) { return kind >= IndexKind::kFp16; }
// A kind as received. run_tokens has to divide block_tokens as well.
constexpr bool is_index_kind(uint32_t kind) {
  return kind <= static_cast<uint32_t>(kIndexKindLast);
}

struct IndexDescriptor {
  IndexKind kind = IndexKind::kMeanSpreadRuns;
  uint8_t run_tokens = 2;
  friend bool operator==(const IndexDescriptor&, const IndexDescriptor&) = default;
};

}  // namespace skv
