#include "ipc/layout/body_layout.h"

#include <algorithm>

#include "ipc/types/check.h"

namespace skv {
namespace {

constexpr uint32_t kGroupTokens = kSentenceTokensMin;  // a chunk is sized for the shortest sentence

uint64_t round_up_to_page(uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// The fewest layers per group such that every whole group reaches the target. All layers if none
// does.
uint32_t layers_per_chunk(const std::vector<uint64_t>& layer_bytes) {
  const auto layer_count = static_cast<uint32_t>(layer_bytes.size());
  for (uint32_t group = 1; group < layer_count; ++group) {
    bool enough = true;
    for (uint32_t first = 0; first + group <= layer_count && enough; first += group) {
      uint64_t sum = 0;
      for (uint32_t layer = first; layer < first + group; ++layer) sum += layer_bytes[layer];
      enough = sum >= kChunkBytesTarget;
    }
    if (enough) return group;
  }
  return layer_count;
}

}  // namespace

BodyLayout::BodyLayout(const ModelDescriptor& model)
    : block_tokens_(model.block_tokens), element_bytes_(dtype_bytes(model.dtype)) {
  SKV_CHECK(!model.layers.empty() && block_tokens_ > 0 && element_bytes_ > 0,
            "a body layout needs a valid model");
  std::vector<uint64_t> group_bytes;
  for (const LayerDescriptor& from : model.layers) {
    Layer layer{};
    layer.kv_heads = from.kv_heads;
    layer.k_dim = from.k_dim;
    layer.v_dim = from.v_dim;
    layer.block_bytes =
        block_tokens_ * (static_cast<uint32_t>(from.k_dim) + from.v_dim) * element_bytes_;
    layer.bytes_per_block = static_cast<uint64_t>(layer.block_bytes) * layer.kv_heads;
    layers_.push_back(layer);
    group_bytes.push_back(layer.bytes_per_block * (kGroupTokens / block_tokens_));
  }
  const uint32_t group = layers_per_chunk(group_bytes);
  for (uint32_t first = 0; first < layers_.size(); first += group) {
    const uint32_t count = std::min(group, static_cast<uint32_t>(layers_.size()) - first);
    uint64_t before = 0;
    for (uint32_t layer = first; layer < first + count; ++layer) {
      layers_[layer].chunk = static_cast<uint32_t>(chunks_.size());
      layers_[layer].before_in_chunk = before;
      before += layers_[layer].bytes_per_block;
    }
    chunks_.push_back(LayerRange{first, count});
  }
}

uint32_t BodyLayout::layer_count() const { return static_cast<uint32_t>(layers_.size()); }
uint32_t BodyLayout::block_tokens() const { return block_tokens_; }
uint32_t BodyLayout::kv_heads(uint32_t layer) const { return layers_[layer].kv_heads; }
uint32_t BodyLayout::k_dim(uint32_t layer) const { return layers_[layer].k_dim; }
uint32_t BodyLayout::v_dim(uint32_t layer) const { return layers_[layer].v_dim; }
uint32_t BodyLayout::element_bytes() const { return element_bytes_; }
uint32_t BodyLayout::block_bytes(uint32_t layer) const { return layers_[layer].block_bytes; }

uint32_t BodyLayout::block_bytes_max() const {
  uint32_t most = 0;
  for (const Layer& layer : layers_) most = std::max(most, layer.block_bytes);
  return most;
}

uint32_t BodyLayout::chunk_count() const { return static_cast<uint32_t>(chunks_.size()); }
uint32_t BodyLayout::chunk_of(uint32_t layer) const { return layers_[layer].chunk; }
LayerRange BodyLayout::chunk_layers(uint32_t chunk) const { return chunks_[chunk]; }

uint64_t BodyLayout::chunk_bytes(uint32_t chunk, uint32_t blocks) const {
  const Layer& last = layers_[chunks_[chunk].end() - 1];
  return (last.before_in_chunk + last.bytes_per_block) * blocks;
}

uint64_t BodyLayout::chunk_storage_bytes(uint32_t chunk, uint32_t blocks) const {
  return round_up_to_page(chunk_bytes(chunk, blocks));
}

uint64_t BodyLayout::body_bytes(uint32_t blocks) const {
  uint64_t sum = 0;
  for (uint32_t chunk = 0; chunk < chunk_count(); ++chunk) sum += chunk_bytes(chunk, blocks);
  return sum;
}

uint64_t BodyLayout::body_storage_bytes(uint32_t blocks) const {
  uint64_t sum = 0;
  for (uint32_t chunk = 0; chunk < chunk_count(); ++chunk) {
    sum += chunk_storage_bytes(chunk, blocks);
  }
  return sum;
}

uint64_t BodyLayout::block_offset(uint32_t layer,
                                  uint32_t head,
                                  uint32_t block,
                                  uint32_t blocks) const {
  const Layer& at = layers_[layer];
  return at.before_in_chunk * blocks +
         (static_cast<uint64_t>(head) * blocks + block) * at.block_bytes;
}

}  // namespace skv
