#include "ipc/identity/model.h"

#include <cmath>
#include <span>
#include <string_view>

#include "ipc/identity/digest.h"
#include "ipc/types/wire.h"

namespace skv {

// The canonical encoding, one list for both directions (docs/protocol.md "Model descriptor").
template <typename Archive>
void wire_fields(Archive& archive, RotaryTable& table) {
  archive("dims, offset, pairing, attention_factor, frequencies", table.dims, table.offset,
          table.pairing, table.attention_factor, table.frequencies);
}

template <typename Archive>
void wire_fields(Archive& archive, LayerDescriptor& layer) {
  archive(
      "layer_class, kv_heads, queries_per_kv_head, k_dim, v_dim, shared_layer, sliding_window, "
      "softmax_scale, logit_cap, rotary_index",
      layer.layer_class, layer.kv_heads, layer.queries_per_kv_head, layer.k_dim, layer.v_dim,
      layer.shared_layer, layer.sliding_window, layer.softmax_scale, layer.logit_cap,
      layer.rotary_index);
}

template <typename Archive>
void wire_fields(Archive& archive, ModelDescriptor& model) {
  archive(
      "weights_id, dtype, block_tokens, tp_rank, tp_size, first_kv_head, v_is_view_of_k, k_state, "
      "rotary_tables, layers",
      model.weights_id, model.dtype, model.block_tokens, model.tp_rank, model.tp_size,
      model.first_kv_head, model.v_is_view_of_k, model.k_state, model.rotary_tables, model.layers);
}

namespace {

constexpr uint32_t kModelMagic = 0x4D564B53;  // "SKVM"
constexpr uint16_t kModelEncodingVersion = 1;
constexpr std::string_view kFingerprintTag = digest_tag("skv.model.1");
constexpr uint32_t kWeightsIdBytesMax = 256;

Error invalid(std::string why) {
  return Error{ErrorCode::kInvalidArgument, "model: " + std::move(why)};
}
Error unsupported(std::string why) {
  return Error{ErrorCode::kUnsupported, "model: " + std::move(why)};
}

std::string in_layer(size_t layer, std::string_view field) {
  return "layers[" + std::to_string(layer) + "]." + std::string(field);
}

std::string out_of_range(std::string_view field, uint64_t value, uint64_t low, uint64_t high) {
  return std::string(field) + " is " + std::to_string(value) + ", allowed are " +
         std::to_string(low) + " to " + std::to_string(high);
}

bool is_positive(float value) { return std::isfinite(value) && value > 0.0F; }

// A value that came through a cast or the wire may be none of the enumerators.
template <typename Enum>
Result<void> check_enum(std::string_view field, Enum value, Enum last) {
  if (value <= last) return {};
  return invalid(out_of_range(field, static_cast<uint64_t>(value), 0, static_cast<uint64_t>(last)));
}

Result<void> check_rotary_table(const RotaryTable& table, const std::string& name) {
  if (table.dims < 2 || table.dims > kHeadDimMax || table.dims % 2 != 0) {
    return invalid(out_of_range(name + ".dims", table.dims, 2, kHeadDimMax) + ", even");
  }
  if (table.offset > kHeadDimMax) {
    return invalid(out_of_range(name + ".offset", table.offset, 0, kHeadDimMax));
  }
  if (Result<void> known =
          check_enum(name + ".pairing", table.pairing, RotaryPairing::kInterleaved);
      !known.ok()) {
    return known;
  }
  if (table.pairing == RotaryPairing::kNone) return invalid(name + ".pairing is none");
  if (!is_positive(table.attention_factor)) {
    return invalid(name + ".attention_factor must be finite and above 0");
  }
  if (table.frequencies.size() != table.dims / 2) {
    return invalid(name + ".frequencies has " + std::to_string(table.frequencies.size()) +
                   " values, dims / 2 is " + std::to_string(table.dims / 2));
  }
  for (const float frequency : table.frequencies) {
    if (!std::isfinite(frequency)) return invalid(name + ".frequencies has a value not finite");
  }
  return {};
}

Result<void> check_dim(const std::string& field, uint32_t dim) {
  if (dim >= 8 && dim <= kHeadDimMax && dim % 8 == 0) return {};
  return invalid(out_of_range(field, dim, 8, kHeadDimMax) + ", a multiple of 8");
}

Result<void> check_rotary_index(const ModelDescriptor& model, size_t index) {
  const LayerDescriptor& layer = model.layers[index];
  if (layer.rotary_index == 0xFFFF) return {};
  if (layer.rotary_index >= model.rotary_tables.size()) {
    return invalid(in_layer(index, "rotary_index") + " is " + std::to_string(layer.rotary_index) +
                   ", rotary_tables has " + std::to_string(model.rotary_tables.size()));
  }
  const RotaryTable& table = model.rotary_tables[layer.rotary_index];
  if (table.offset + table.dims > layer.k_dim) {
    return invalid(in_layer(index, "rotary_index") + ": its table reaches to dimension " +
                   std::to_string(table.offset + table.dims) + ", k_dim is " +
                   std::to_string(layer.k_dim));
  }
  return {};
}

// Full layers only: other classes have their own rules, which come with their support.
Result<void> check_full_layer(const ModelDescriptor& model, size_t index) {
  const LayerDescriptor& layer = model.layers[index];
  if (layer.kv_heads < 1 || layer.kv_heads > kKvHeadsMax) {
    return invalid(out_of_range(in_layer(index, "kv_heads"), layer.kv_heads, 1, kKvHeadsMax));
  }
  if (layer.queries_per_kv_head < 1 || layer.queries_per_kv_head > kQueriesPerKvHeadMax) {
    return invalid(out_of_range(in_layer(index, "queries_per_kv_head"), layer.queries_per_kv_head,
                                1, kQueriesPerKvHeadMax));
  }
  if (Result<void> k_dim = check_dim(in_layer(index, "k_dim"), layer.k_dim); !k_dim.ok()) {
    return k_dim;
  }
  if (!model.v_is_view_of_k) {
    if (Result<void> v_dim = check_dim(in_layer(index, "v_dim"), layer.v_dim); !v_dim.ok()) {
      return v_dim;
    }
  }
  if (!is_positive(layer.softmax_scale)) {
    return invalid(in_layer(index, "softmax_scale") + " must be finite and above 0");
  }
  if (!std::isfinite(layer.logit_cap) || layer.logit_cap < 0.0F) {
    return invalid(in_layer(index, "logit_cap") + " must be finite and not negative");
  }
  return check_rotary_index(model, index);
}

Result<void> check_whole_model(const ModelDescriptor& model) {
  if (model.weights_id.empty() || model.weights_id.size() > kWeightsIdBytesMax) {
    return invalid(
        out_of_range("weights_id length", model.weights_id.size(), 1, kWeightsIdBytesMax));
  }
  if (Result<void> known = check_enum("dtype", model.dtype, BodyDtype::kFp8E5m2); !known.ok()) {
    return known;
  }
  if (Result<void> known = check_enum("k_state", model.k_state, KState::kLatent); !known.ok()) {
    return known;
  }
  if (model.block_tokens < 1 || kSentenceTokensMin % model.block_tokens != 0) {
    return invalid("block_tokens is " + std::to_string(model.block_tokens) + ", it must divide " +
                   std::to_string(kSentenceTokensMin));
  }
  if (model.tp_size < 1 || model.tp_rank >= model.tp_size) {
    return invalid("tp_rank is " + std::to_string(model.tp_rank) + ", tp_size is " +
                   std::to_string(model.tp_size));
  }
  if (model.rotary_tables.size() > kRotaryTablesMax) {
    return invalid(
        out_of_range("rotary_tables count", model.rotary_tables.size(), 0, kRotaryTablesMax));
  }
  if (model.layers.empty() || model.layers.size() > kLayersMax) {
    return invalid(out_of_range("layers count", model.layers.size(), 1, kLayersMax));
  }
  return {};
}

// What is right and not served. Each is refused by the name of its field.
Result<void> check_support(const ModelDescriptor& model) {
  if (model.dtype == BodyDtype::kFp8E4m3 || model.dtype == BodyDtype::kFp8E5m2) {
    return unsupported("dtype fp8 is not supported, fp32, fp16 and bf16 are");
  }
  if (model.block_tokens != 4 && model.block_tokens != 8 && model.block_tokens != 16) {
    return unsupported("block_tokens " + std::to_string(model.block_tokens) +
                       " is not supported, 4, 8 and 16 are");
  }
  if (model.k_state != KState::kPostRope) {
    return unsupported(std::string("k_state ") +
                       (model.k_state == KState::kPreRope ? "pre-rope" : "latent") +
                       " is not supported, post-rope is");
  }
  if (model.v_is_view_of_k) return unsupported("v_is_view_of_k is not supported");
  for (size_t index = 0; index < model.layers.size(); ++index) {
    const LayerDescriptor& layer = model.layers[index];
    if (layer.layer_class != LayerClass::kFull) {
      constexpr std::string_view kNames[] = {"full", "sliding window", "linear", "shares KV",
                                             "shares index"};
      return unsupported(in_layer(index, "layer_class") + " '" +
                         std::string(kNames[static_cast<size_t>(layer.layer_class)]) +
                         "' is not supported, full is");
    }
    if (layer.logit_cap != 0.0F) {
      return unsupported(in_layer(index, "logit_cap") + " is not supported, 0 (none) is");
    }
  }
  return {};
}

// SHA-256 of the table's encoding, so that the order and number of tables do not matter.
Digest rotary_digest(const ModelDescriptor& model, const LayerDescriptor& layer) {
  if (layer.rotary_index >= model.rotary_tables.size()) return Digest{};
  std::vector<uint8_t> bytes;
  WireWriter(bytes).put(model.rotary_tables[layer.rotary_index]);
  return sha256(bytes);
}

}  // namespace

uint32_t dtype_bytes(BodyDtype dtype) {
  switch (dtype) {
    case BodyDtype::kFp32:
      return 4;
    case BodyDtype::kFp16:
    case BodyDtype::kBf16:
      return 2;
    case BodyDtype::kFp8E4m3:
    case BodyDtype::kFp8E5m2:
      return 1;
  }
  return 0;
}

Result<void> validate(const ModelDescriptor& model) {
  if (Result<void> whole = check_whole_model(model); !whole.ok()) return whole;
  for (size_t table = 0; table < model.rotary_tables.size(); ++table) {
    const std::string name = "rotary_tables[" + std::to_string(table) + "]";
    if (Result<void> right = check_rotary_table(model.rotary_tables[table], name); !right.ok()) {
      return right;
    }
  }
  for (size_t index = 0; index < model.layers.size(); ++index) {
    const LayerClass layer_class = model.layers[index].layer_class;
    if (Result<void> known =
            check_enum(in_layer(index, "layer_class"), layer_class, LayerClass::kSharesIndex);
        !known.ok()) {
      return known;
    }
    if (layer_class != LayerClass::kFull) continue;
    if (Result<void> right = check_full_layer(model, index); !right.ok()) return right;
  }
  if (const size_t bytes = encode(model).size(); bytes > kItemsMax) {
    return Error{ErrorCode::kTooLarge, "model: the encoding has " + std::to_string(bytes) +
                                           " bytes, allowed are " + std::to_string(kItemsMax)};
  }
  return check_support(model);
}

Digest fingerprint(const ModelDescriptor& model) {
  std::vector<uint8_t> bytes(kFingerprintTag.begin(), kFingerprintTag.end());
  WireWriter writer(bytes);
  writer.put(model.weights_id);
  writer.put(model.dtype);
  writer.put(model.block_tokens);
  // Rank and size beside the head range: an engine that leaves first_kv_head at 0 on every rank
  // must not be served another rank's bytes.
  writer.put(model.tp_rank);
  writer.put(model.tp_size);
  writer.put(model.first_kv_head);
  writer.put(model.v_is_view_of_k);
  writer.put(model.k_state);
  writer.put(static_cast<uint32_t>(model.layers.size()));
  for (const LayerDescriptor& layer : model.layers) {
    writer.put(layer.layer_class);
    writer.put(layer.kv_heads);
    writer.put(layer.k_dim);
    writer.put(layer.v_dim);
    writer.put(layer.shared_layer);
    writer.put(layer.sliding_window);
    writer.put(rotary_digest(model, layer));
  }
  return sha256(bytes);
}

std::vector<uint8_t> encode(const ModelDescriptor& model) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kModelMagic);
  writer.put(kModelEncodingVersion);
  writer.put(model);
  return bytes;
}

Result<ModelDescriptor> decode_model(const uint8_t* data, size_t bytes) {
  WireReader reader(std::span<const uint8_t>(data, bytes));
  uint32_t magic = 0;
  uint16_t version = 0;
  reader("magic, version", magic, version);
  if (!reader.failed() && magic != kModelMagic) return invalid("the encoding has a wrong magic");
  if (!reader.failed() && version != kModelEncodingVersion) {
    return unsupported("encoding version " + std::to_string(version) + " is not supported, " +
                       std::to_string(kModelEncodingVersion) + " is");
  }
  ModelDescriptor model;
  if (!reader.failed()) reader.get(model);
  if (Result<void> whole = reader.finish(); !whole.ok()) return invalid(whole.error().message);
  return model;
}

}  // namespace skv
