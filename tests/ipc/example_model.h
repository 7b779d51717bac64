#pragma once

#include <cstdio>
#include <span>
#include <string>

#include "ipc/identity/model.h"

namespace skv {

// The model of the test vectors in docs/protocol.md: two layers, 3 kv heads of 64 dimensions. The
// frequencies are powers of two, so that any implementation gets the same bits.
inline ModelDescriptor example_model() {
  ModelDescriptor model;
  model.weights_id = "example/two-layers";
  model.dtype = BodyDtype::kFp16;
  model.block_tokens = 8;
  RotaryTable table;
  table.dims = 64;
  table.pairing = RotaryPairing::kHalfSplit;
  float frequency = 1.0F;
  for (uint32_t i = 0; i < 32; ++i, frequency *= 0.5F) table.frequencies.push_back(frequency);
  model.rotary_tables.push_back(table);
  LayerDescriptor layer;
  layer.kv_heads = 3;
  layer.queries_per_kv_head = 3;
  layer.k_dim = 64;
  layer.v_dim = 64;
  layer.softmax_scale = 0.125F;
  layer.rotary_index = 0;
  model.layers.assign(2, layer);
  return model;
}

inline std::string hex(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}
inline std::string hex(const Digest& digest) { return hex(std::span(digest.bytes)); }

}  // namespace skv
