#include "ipc/layout/body_layout.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <vector>

#include "tests/ipc/example_model.h"

namespace skv {
namespace {

// 30 layers of 3 heads of 64 + 64 dims: SmolLM2-135M in fp16.
ModelDescriptor thirty_layers(BodyDtype dtype) {
  ModelDescriptor model = example_model();
  model.dtype = dtype;
  model.layers.assign(30, model.layers[0]);
  return model;
}

TEST(BodyLayout, WorkedExample) {
  const BodyLayout layout(thirty_layers(BodyDtype::kFp16));
  EXPECT_EQ(layout.block_bytes(0), 2048U);  // 8 tokens x (64 + 64) x 2
  // 32 tokens of a layer: 4 blocks x 3 heads x 2 KiB = 24 KiB; the fewest layers with 64 KiB: 3.
  EXPECT_EQ(layout.chunk_count(), 10U);
  EXPECT_EQ(layout.chunk_layers(0), (LayerRange{0, 3}));
  EXPECT_EQ(layout.chunk_layers(9), (LayerRange{27, 3}));
  EXPECT_EQ(layout.chunk_of(5), 1U);
  EXPECT_EQ(layout.chunk_bytes(0, 4), 3U * 24576U);
  EXPECT_EQ(layout.body_bytes(4), 30U * 24576U);
  // Layer 4 is the second of its chunk; head 2, block 1 of 5.
  EXPECT_EQ(layout.block_offset(4, 2, 1, 5), 5U * 3 * 2048 + (2 * 5 + 1) * 2048U);
}

TEST(BodyLayout, LastChunkMayBeSmaller) {
  const BodyLayout layout(thirty_layers(BodyDtype::kFp32));  // 48 KiB a layer: 2 per chunk
  EXPECT_EQ(layout.chunk_count(), 15U);
  ModelDescriptor odd = thirty_layers(BodyDtype::kFp32);
  odd.layers.pop_back();
  EXPECT_EQ(BodyLayout(odd).chunk_layers(14), (LayerRange{28, 1}));
}

TEST(BodyLayout, ASmallModelIsOneChunk) {
  const BodyLayout layout(example_model());  // 2 x 24 KiB
  EXPECT_EQ(layout.chunk_count(), 1U);
  EXPECT_EQ(layout.chunk_layers(0), (LayerRange{0, 2}));
}

TEST(BodyLayout, StorageIsWholePages) {
  ModelDescriptor model = example_model();
  model.layers[0].kv_heads = 1;
  model.layers[0].k_dim = 8;
  model.layers[0].v_dim = 8;
  model.layers[0].rotary_index = 0xFFFF;
  model.layers.pop_back();
  const BodyLayout layout(model);
  EXPECT_EQ(layout.chunk_bytes(0, 5), 5U * 256U);
  EXPECT_EQ(layout.chunk_storage_bytes(0, 5), 4096U);
  EXPECT_EQ(layout.body_storage_bytes(8), 4096U);
}

// Goal: blocks tile each chunk exactly, in the order [layer][kv_head][block].
TEST(BodyLayout, BlocksTileTheirChunk) {
  EXPECT_TRUE(rc::check("offsets run through without gap", [] {
    ModelDescriptor model = example_model();
    model.block_tokens = *rc::gen::element<uint16_t>(4, 8, 16);
    model.dtype = *rc::gen::element(BodyDtype::kFp32, BodyDtype::kBf16);
    model.layers.assign(*rc::gen::inRange<size_t>(1, 40), model.layers[0]);
    for (LayerDescriptor& layer : model.layers) {
      layer.kv_heads = *rc::gen::inRange<uint16_t>(1, 9);
      layer.k_dim = static_cast<uint16_t>(64 * *rc::gen::inRange(1, 4));
      layer.v_dim = static_cast<uint16_t>(8 * *rc::gen::inRange(1, 9));
    }
    const BodyLayout layout(model);
    const uint32_t blocks = *rc::gen::inRange(2U, 17U);
    uint32_t layer = 0;
    uint64_t whole = 0;
    for (uint32_t chunk = 0; chunk < layout.chunk_count(); ++chunk) {
      uint64_t offset = 0;
      const LayerRange range = layout.chunk_layers(chunk);
      RC_ASSERT(range.first == layer);
      for (; layer < range.end(); ++layer) {
        RC_ASSERT(layout.chunk_of(layer) == chunk);
        for (uint32_t head = 0; head < layout.kv_heads(layer); ++head) {
          for (uint32_t block = 0; block < blocks; ++block) {
            RC_ASSERT(layout.block_offset(layer, head, block, blocks) == offset);
            offset += layout.block_bytes(layer);
          }
        }
      }
      RC_ASSERT(layout.chunk_bytes(chunk, blocks) == offset);
      const uint64_t storage = layout.chunk_storage_bytes(chunk, blocks);
      RC_ASSERT(storage % 4096 == 0 && storage >= offset && storage < offset + 4096);
      // Full groups reach the target, and one layer fewer per group would not (for some group).
      const uint64_t shortest = layout.chunk_bytes(chunk, 32 / layout.block_tokens());
      if (chunk + 1 < layout.chunk_count()) RC_ASSERT(shortest >= kChunkBytesTarget);
      whole += offset;
    }
    RC_ASSERT(layer == layout.layer_count());
    RC_ASSERT(layout.body_bytes(blocks) == whole);
  }));
}

}  // namespace
}  // namespace skv
