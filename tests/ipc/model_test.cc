#include "ipc/identity/model.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "ipc/identity/digest.h"
#include "ipc/types/wire.h"
#include "tests/ipc/example_model.h"

namespace skv {
namespace {

std::string refusal(const ModelDescriptor& model, ErrorCode code) {
  const Result<void> result = validate(model);
  if (result.ok()) return "accepted";
  EXPECT_EQ(result.error().code, code) << result.error().message;
  return result.error().message;
}
std::string invalid(const std::function<void(ModelDescriptor&)>& change) {
  ModelDescriptor model = example_model();
  change(model);
  return refusal(model, ErrorCode::kInvalidArgument);
}
std::string unsupported(const std::function<void(ModelDescriptor&)>& change) {
  ModelDescriptor model = example_model();
  change(model);
  return refusal(model, ErrorCode::kUnsupported);
}

Result<ModelDescriptor> decode(const std::vector<uint8_t>& bytes) {
  return decode_model(bytes.data(), bytes.size());
}

TEST(Model, ExampleIsServed) { EXPECT_TRUE(validate(example_model()).ok()); }

TEST(Model, TensorParallelRanksAreServed) {
  ModelDescriptor model = example_model();
  model.tp_size = 4;
  model.tp_rank = 3;
  model.first_kv_head = 6;
  EXPECT_TRUE(validate(model).ok());
}

TEST(Model, EveryLimitIsNamed) {
  using M = ModelDescriptor;
  EXPECT_EQ(invalid([](M& m) { m.weights_id = ""; }),
            "model: weights_id length is 0, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.weights_id.assign(257, 'x'); }),
            "model: weights_id length is 257, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.dtype = static_cast<BodyDtype>(5); }),
            "model: dtype is 5, allowed are 0 to 4");
  EXPECT_EQ(invalid([](M& m) { m.k_state = static_cast<KState>(3); }),
            "model: k_state is 3, allowed are 0 to 2");
  EXPECT_EQ(invalid([](M& m) { m.block_tokens = 12; }),
            "model: block_tokens is 12, it must divide 32");
  EXPECT_EQ(invalid([](M& m) { m.block_tokens = 0; }),
            "model: block_tokens is 0, it must divide 32");
  EXPECT_EQ(invalid([](M& m) { m.tp_rank = 1; }), "model: tp_rank is 1, tp_size is 1");
  EXPECT_EQ(invalid([](M& m) { m.tp_size = 0; }), "model: tp_rank is 0, tp_size is 0");
  EXPECT_EQ(invalid([](M& m) { m.layers.clear(); }),
            "model: layers count is 0, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.layers.resize(257, m.layers[0]); }),
            "model: layers count is 257, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.layers[1].layer_class = static_cast<LayerClass>(9); }),
            "model: layers[1].layer_class is 9, allowed are 0 to 4");
  EXPECT_EQ(invalid([](M& m) { m.layers[1].kv_heads = 0; }),
            "model: layers[1].kv_heads is 0, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.layers[1].kv_heads = 257; }),
            "model: layers[1].kv_heads is 257, allowed are 1 to 256");
  EXPECT_EQ(invalid([](M& m) { m.layers[0].queries_per_kv_head = 65; }),
            "model: layers[0].queries_per_kv_head is 65, allowed are 1 to 64");
  EXPECT_EQ(invalid([](M& m) { m.layers[0].k_dim = 100; }),
            "model: layers[0].k_dim is 100, allowed are 8 to 1024, a multiple of 8");
  EXPECT_EQ(invalid([](M& m) { m.layers[0].v_dim = 1032; }),
            "model: layers[0].v_dim is 1032, allowed are 8 to 1024, a multiple of 8");
  EXPECT_EQ(invalid([](M& m) { m.layers[0].v_dim = 0; }),
            "model: layers[0].v_dim is 0, allowed are 8 to 1024, a multiple of 8");
  for (const float wrong : {0.0F, -1.0F, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(invalid([wrong](M& m) { m.layers[0].softmax_scale = wrong; }),
              "model: layers[0].softmax_scale must be finite and above 0");
  }
  EXPECT_EQ(invalid([](M& m) { m.layers[0].logit_cap = -1.0F; }),
            "model: layers[0].logit_cap must be finite and not negative");
  EXPECT_EQ(invalid([](M& m) { m.layers[0].rotary_index = 1; }),
            "model: layers[0].rotary_index is 1, rotary_tables has 1");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].offset = 8; }),
            "model: layers[0].rotary_index: its table reaches to dimension 72, k_dim is 64");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables.resize(17, m.rotary_tables[0]); }),
            "model: rotary_tables count is 17, allowed are 0 to 16");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].dims = 63; }),
            "model: rotary_tables[0].dims is 63, allowed are 2 to 1024, even");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].offset = 0xFFFFFFFF; }),
            "model: rotary_tables[0].offset is 4294967295, allowed are 0 to 1024");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].pairing = static_cast<RotaryPairing>(3); }),
            "model: rotary_tables[0].pairing is 3, allowed are 0 to 2");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].pairing = RotaryPairing::kNone; }),
            "model: rotary_tables[0].pairing is none");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].attention_factor = 0.0F; }),
            "model: rotary_tables[0].attention_factor must be finite and above 0");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].frequencies.pop_back(); }),
            "model: rotary_tables[0].frequencies has 31 values, dims / 2 is 32");
  EXPECT_EQ(invalid([](M& m) { m.rotary_tables[0].frequencies[3] = std::nanf(""); }),
            "model: rotary_tables[0].frequencies has a value not finite");
}

TEST(Model, WhatIsNotServedIsRefusedByName) {
  using M = ModelDescriptor;
  EXPECT_EQ(unsupported([](M& m) { m.dtype = BodyDtype::kFp8E4m3; }),
            "model: dtype fp8 is not supported, fp32, fp16 and bf16 are");
  EXPECT_EQ(unsupported([](M& m) { m.dtype = BodyDtype::kFp8E5m2; }),
            "model: dtype fp8 is not supported, fp32, fp16 and bf16 are");
  EXPECT_EQ(unsupported([](M& m) { m.block_tokens = 2; }),
            "model: block_tokens 2 is not supported, 4, 8 and 16 are");
  EXPECT_EQ(unsupported([](M& m) { m.block_tokens = 32; }),
            "model: block_tokens 32 is not supported, 4, 8 and 16 are");
  EXPECT_EQ(unsupported([](M& m) { m.k_state = KState::kPreRope; }),
            "model: k_state pre-rope is not supported, post-rope is");
  EXPECT_EQ(unsupported([](M& m) { m.k_state = KState::kLatent; }),
            "model: k_state latent is not supported, post-rope is");
  EXPECT_EQ(unsupported([](M& m) {
              m.v_is_view_of_k = true;
              m.layers[0].v_dim = 0;
            }),
            "model: v_is_view_of_k is not supported");
  EXPECT_EQ(unsupported([](M& m) { m.layers[1].layer_class = LayerClass::kSlidingWindow; }),
            "model: layers[1].layer_class 'sliding window' is not supported, full is");
  EXPECT_EQ(unsupported([](M& m) { m.layers[0].layer_class = LayerClass::kLinear; }),
            "model: layers[0].layer_class 'linear' is not supported, full is");
  EXPECT_EQ(unsupported([](M& m) { m.layers[0].logit_cap = 50.0F; }),
            "model: layers[0].logit_cap is not supported, 0 (none) is");
  for (const uint16_t served : {4, 8, 16}) {
    EXPECT_EQ(unsupported([served](M& m) { m.block_tokens = served; }), "accepted");
  }
  for (const BodyDtype served : {BodyDtype::kFp32, BodyDtype::kFp16, BodyDtype::kBf16}) {
    EXPECT_EQ(unsupported([served](M& m) { m.dtype = served; }), "accepted");
  }
}

TEST(Model, AnEncodingThatNoMessageHoldsIsRefused) {
  ModelDescriptor model = example_model();
  model.layers[0].k_dim = model.layers[1].k_dim = 1024;
  model.rotary_tables.resize(16);
  for (RotaryTable& table : model.rotary_tables) {
    table.dims = 1024;
    table.pairing = RotaryPairing::kHalfSplit;
    table.frequencies.assign(512, 1.0F);
  }
  EXPECT_EQ(refusal(model, ErrorCode::kTooLarge).substr(0, 23), "model: the encoding has");
}

TEST(Model, EncodingRoundTrips) {
  const std::vector<uint8_t> bytes = encode(example_model());
  const Result<ModelDescriptor> decoded = decode(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(encode(decoded.value()), bytes);
  EXPECT_EQ(decoded.value().weights_id, example_model().weights_id);
  EXPECT_EQ(decoded.value().layers.size(), 2U);
  EXPECT_EQ(decoded.value().layers[1].softmax_scale, 0.125F);
  EXPECT_EQ(decoded.value().rotary_tables[0].frequencies,
            example_model().rotary_tables[0].frequencies);
  EXPECT_EQ(fingerprint(decoded.value()), fingerprint(example_model()));
}

TEST(Model, EveryTruncationIsRefused) {
  const std::vector<uint8_t> bytes = encode(example_model());
  for (size_t length = 0; length < bytes.size(); ++length) {
    const Result<ModelDescriptor> decoded = decode_model(bytes.data(), length);
    ASSERT_FALSE(decoded.ok()) << length;
    EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Model, EveryFlippedByteIsRefusedOrExact) {
  std::vector<uint8_t> bytes = encode(example_model());
  for (size_t at = 0; at < bytes.size(); ++at) {
    const uint8_t right = bytes[at];
    for (int wrong = 0; wrong < 256; ++wrong) {
      bytes[at] = static_cast<uint8_t>(wrong);
      const Result<ModelDescriptor> decoded = decode(bytes);
      if (!decoded.ok()) continue;
      EXPECT_EQ(encode(decoded.value()), bytes) << at;
      (void)validate(decoded.value()).ok();  // whatever it says, it must not crash
    }
    bytes[at] = right;
  }
}

TEST(Model, AnotherEncodingVersionIsRefusedByName) {
  std::vector<uint8_t> bytes = encode(example_model());
  bytes[4] = 2;
  const Result<ModelDescriptor> decoded = decode(bytes);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(decoded.error().message, "model: encoding version 2 is not supported, 1 is");
}

// Goal: two models whose bodies could differ never share a fingerprint; what only changes how
// scores are computed does.
TEST(Model, FingerprintCoversWhatDeterminesBodies) {
  using M = ModelDescriptor;
  std::set<Digest> seen{fingerprint(example_model())};
  const std::function<void(M&)> different[] = {
      [](M& m) { m.weights_id += "x"; },
      [](M& m) { m.dtype = BodyDtype::kBf16; },
      [](M& m) { m.block_tokens = 16; },
      [](M& m) { m.tp_size = 2; },
      [](M& m) { m.tp_size = 2, m.tp_rank = 1; },
      [](M& m) { m.first_kv_head = 3; },
      [](M& m) { m.v_is_view_of_k = true; },
      [](M& m) { m.k_state = KState::kPreRope; },
      [](M& m) { m.layers.pop_back(); },
      [](M& m) { m.layers[0].layer_class = LayerClass::kSlidingWindow; },
      [](M& m) { m.layers[0].kv_heads = 2; },
      [](M& m) { m.layers[0].k_dim = 128; },
      [](M& m) { m.layers[0].v_dim = 128; },
      [](M& m) { m.layers[0].shared_layer = 1; },
      [](M& m) { m.layers[0].sliding_window = 512; },
      [](M& m) { m.layers[0].rotary_index = 0xFFFF; },
      [](M& m) { m.layers[1].rotary_index = 0xFFFF; },
      [](M& m) { m.rotary_tables[0].dims = 32; },
      [](M& m) { m.rotary_tables[0].offset = 2; },
      [](M& m) { m.rotary_tables[0].pairing = RotaryPairing::kInterleaved; },
      [](M& m) { m.rotary_tables[0].attention_factor = 1.5F; },
      [](M& m) { m.rotary_tables[0].frequencies[31] *= 1.0001F; },
  };
  for (const auto& change : different) {
    M model = example_model();
    change(model);
    EXPECT_TRUE(seen.insert(fingerprint(model)).second);
  }
  const std::function<void(M&)> same[] = {
      [](M& m) { m.layers[0].softmax_scale = 1.0F; },
      [](M& m) { m.layers[0].logit_cap = 30.0F; },
      [](M& m) { m.layers[0].queries_per_kv_head = 1; },
      [](M& m) { m.rotary_tables.push_back(m.rotary_tables[0]); },
      [](M& m) {
        m.rotary_tables.push_back(m.rotary_tables[0]);
        m.layers[1].rotary_index = 1;
      },
  };
  for (const auto& change : same) {
    M model = example_model();
    change(model);
    EXPECT_EQ(fingerprint(model), fingerprint(example_model()));
  }
}

TEST(Digest, KnownSha256) {
  const std::string_view text = "abc";
  const Digest digest =
      sha256(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  EXPECT_EQ(hex(digest), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// Goal: each kind of digest depends on each of its parts, and no kind equals another on the same
// parts.
TEST(Digest, EveryPartMatters) {
  const Digest a = root_digest(8);
  const Digest b = root_digest(16);
  std::set<Digest> seen{a, b};
  const std::vector<uint32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<uint32_t> other = tokens;
  other[7] = 9;
  EXPECT_TRUE(seen.insert(next_digest(a, tokens, Digest{})).second);
  EXPECT_TRUE(seen.insert(next_digest(b, tokens, Digest{})).second);
  EXPECT_TRUE(seen.insert(next_digest(a, other, Digest{})).second);
  EXPECT_TRUE(seen.insert(next_digest(a, tokens, a)).second);
  for (int part = 0; part < 4; ++part) {
    SentenceKeyParts sentence{a, a, a, 32};
    BoundaryKeyParts boundary{a, a, a, 32};
    if (part == 1) sentence.space_salt = boundary.space_salt = b;
    if (part == 2) sentence.fingerprint = boundary.fingerprint = b;
    if (part == 3) sentence.end_digest = boundary.prefix_digest = b;
    EXPECT_TRUE(seen.insert(sentence_key(sentence)).second);
    EXPECT_TRUE(seen.insert(boundary_key(boundary)).second);
  }
  EXPECT_TRUE(seen.insert(sentence_key({a, a, a, 40})).second);
  EXPECT_TRUE(seen.insert(boundary_key({a, a, a, 40})).second);
}

}  // namespace
}  // namespace skv
