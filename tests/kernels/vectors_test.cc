#include "kernels/vectors.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>

#include "ipc/layout/half.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

using synthetic::Shape;

uint16_t half_at(std::span<const std::byte> record, size_t at) {
  uint16_t half = 0;
  std::memcpy(&half, record.data() + at, sizeof half);
  return half;
}

std::vector<float> noisy_keys(const Shape& shape, uint32_t tokens, uint64_t seed, float size) {
  synthetic::Noise noise(seed);
  std::vector<float> keys(size_t{tokens} * shape.k_dim);
  for (float& key : keys) key = size * noise.normal() + 3.0F * size;
  return keys;
}

// The record of one head by KeyRows over `bytes`, in any dtype.
std::vector<std::byte> record_of(const Shape& shape,
                                 uint32_t blocks,
                                 BodyDtype dtype,
                                 const std::byte* bytes,
                                 const uint8_t* mask = nullptr) {
  const IndexDescriptor index = synthetic::index_of(shape);
  KeyRows rows;
  rows.blocks = bytes;
  rows.row_stride = size_t{shape.k_dim} * dtype_bytes(dtype);
  rows.block_stride = rows.row_stride * shape.block_tokens;
  rows.dtype = dtype;
  rows.block_count = blocks;
  rows.block_tokens = shape.block_tokens;
  rows.k_dim = shape.k_dim;
  std::vector<std::byte> record(
      VectorRecordLayout::of(index.kind, shape.k_dim,
                             run_count(blocks, shape.block_tokens, shape.run_tokens))
          .bytes);
  DeriveScratch scratch;
  derive_record(rows, index, mask, record, scratch);
  return record;
}
std::vector<std::byte> record_of(const Shape& shape,
                                 uint32_t blocks,
                                 const std::vector<float>& keys,
                                 const uint8_t* mask = nullptr) {
  return record_of(shape, blocks, BodyDtype::kFp32, reinterpret_cast<const std::byte*>(keys.data()),
                   mask);
}

// Goal: sizes and offsets of the documented example, and of a blob with two kinds of layers.
TEST(VectorsLayout, SizesOfTheExample) {
  const VectorRecordLayout at = VectorRecordLayout::of(IndexKind::kMeanSpreadRuns, 128, 20);
  EXPECT_EQ(at.scale_m, 256U);
  EXPECT_EQ(at.spread_m, 258U);
  EXPECT_EQ(at.spread_codes, 260U);
  EXPECT_EQ(at.scale_codes, 388U);
  EXPECT_EQ(at.tiles, 516U);
  EXPECT_EQ(at.bytes, 1796U);
  // 0.25 d + (4 d + 4) / n bytes per token at 2 tokens per run.
  EXPECT_EQ(at.bytes, 32U * 40U + 4U * 128U + 4U);

  ModelDescriptor model = synthetic::model_of({64, 8, 2, IndexKind::kMeanSpreadRuns, 3, 2});
  model.layers[1].kv_heads = 2;
  model.layers[1].k_dim = 128;
  const VectorsLayout layout(model, {});
  EXPECT_EQ(layout.offset(0, 2, 4), 2U * 772U);
  EXPECT_EQ(layout.offset(1, 0, 4), 3U * 772U);
  EXPECT_EQ(layout.offset(1, 1, 4), 3U * 772U + 1540U);
  EXPECT_EQ(layout.blob_bytes(4), 3U * 772U + 2U * 1540U);
}

// Goal: each statistic is what its name says, within what its code can express.
// Method: any shape, size and drift; everything recomputed in double precision.
RC_GTEST_PROP(Derive, ReconstructsItsKeys, ()) {
  Shape shape;
  shape.k_dim = 8 * *rc::gen::inRange(1U, 20U);
  shape.block_tokens = 4U << *rc::gen::inRange(0U, 3U);
  shape.run_tokens = *rc::gen::suchThat(rc::gen::element(1U, 2U, 4U, 8U, 16U), [&](uint32_t run) {
    return shape.block_tokens % run == 0;
  });
  const uint32_t blocks = *rc::gen::inRange(32U / shape.block_tokens, 64U / shape.block_tokens + 1);
  const uint32_t tokens = blocks * shape.block_tokens;
  const float size = *rc::gen::element(1e-6F, 0.01F, 1.0F, 50.0F, 5000.0F);
  const std::vector<float> keys = noisy_keys(shape, tokens, *rc::gen::arbitrary<uint64_t>(), size);
  const std::vector<std::byte> record = record_of(shape, blocks, keys);
  const uint32_t d_count = shape.k_dim;
  const double spread_m = double{half_to_float(half_at(record, 2 * d_count + 2))};
  const double scale_m = double{half_to_float(half_at(record, 2 * d_count))};

  for (uint32_t d = 0; d < d_count; ++d) {
    double mean = 0.0;
    for (uint32_t t = 0; t < tokens; ++t) mean += double{keys[size_t{t} * d_count + d]} / tokens;
    const double stored = double{half_to_float(half_at(record, size_t{2} * d))};
    RC_ASSERT(std::fabs(stored - mean) <=
              std::fabs(mean) * 0x1p-11 + 0x1p-25 + std::fabs(mean) * 1e-5);

    double variance = 0.0;
    for (uint32_t t = 0; t < tokens; ++t) {
      variance += std::pow(double{keys[size_t{t} * d_count + d]} - stored, 2) / tokens;
    }
    const auto spread_code = static_cast<int>(record[2 * d_count + 4 + d]);
    const double spread = spread_code == 0 ? 0.0 : spread_m * std::exp2((spread_code - 255) / 16.0);
    const double least = spread_m * std::exp2(-254 / 16.0);
    RC_ASSERT(std::fabs(spread - std::sqrt(variance)) <=
              std::sqrt(variance) * 0.0221 + std::max(least, 0x1p-24));
  }
  // A run comes back within half a step, or within what was cut off at 7.
  for (uint32_t run = 0; run < tokens / shape.run_tokens; ++run) {
    const std::vector<double> decoded = synthetic::decoded_run(shape, blocks, record, run);
    for (uint32_t d = 0; d < d_count; ++d) {
      double key = 0.0;
      for (uint32_t t = 0; t < shape.run_tokens; ++t) {
        key += double{keys[(size_t{run} * shape.run_tokens + t) * d_count + d]} / shape.run_tokens;
      }
      const auto code = static_cast<int>(record[3 * d_count + 4 + d]);
      const double step = code == 0 ? 0.0 : scale_m * std::exp2((code - 255) / 16.0);
      RC_ASSERT(std::fabs(decoded[d] - key) <= 0.501 * step + std::fabs(key) * 1e-5 + 0x1p-40);
    }
  }
}

// Goal: a record worked out by hand.
// Method: two channels' worth of thought: channel 0 is 1 in even tokens and 3 in odd ones, so its
// runs of 2 are all 2; channel 1 is +7 in the first half of the sentence and -7 in the second; the
// others are 0.
TEST(Derive, ByHand) {
  const Shape shape{8, 8, 2};
  std::vector<float> keys(size_t{32} * 8, 0.0F);
  for (uint32_t t = 0; t < 32; ++t) {
    keys[t * 8] = t % 2 == 0 ? 1.0F : 3.0F;
    keys[t * 8 + 1] = t < 16 ? 7.0F : -7.0F;
  }
  const std::vector<std::byte> record = record_of(shape, 4, keys);
  ASSERT_EQ(record.size(), 4U * 8 + 4 + 8 * 8);
  EXPECT_EQ(half_at(record, 0), 0x4000);   // 2
  EXPECT_EQ(half_at(record, 2), 0);        // 0
  EXPECT_EQ(half_at(record, 16), 0x3C00);  // scale_m = 1: residual 7 in steps of 1
  EXPECT_EQ(half_at(record, 18), 0x4700);  // spread_m = 7
  const auto byte = [&](size_t at) { return static_cast<int>(record[at]); };
  EXPECT_EQ(byte(20), 210);  // spread of channel 0 is 1: 7 * 2^(-45/16) = 0.997
  EXPECT_EQ(byte(21), 255);
  EXPECT_EQ(byte(22), 0);
  EXPECT_EQ(byte(28), 0);  // scale of channel 0: its runs are its mean
  EXPECT_EQ(byte(29), 255);
  EXPECT_EQ(byte(30), 0);
  for (size_t j = 0; j < 8; ++j) {
    EXPECT_EQ(byte(36 + j), 0);
    EXPECT_EQ(byte(44 + j), j < 4 ? 0x77 : 0x99);  // 7, then -7 = 9 in four bits
    EXPECT_EQ(byte(52 + j), 0);
  }
}

// Goal: the same keys in fp16, bf16 and fp32, and behind any strides, give the same record.
TEST(Derive, DtypeAndStridesDoNotMatter) {
  const Shape shape{24, 8, 2};
  const uint32_t blocks = 5;
  const uint32_t tokens = blocks * 8;
  std::vector<float> keys = noisy_keys(shape, tokens, 4, 1.0F);
  // Values with 8 significant bits are the same in all three.
  for (float& key : keys)
    key = bfloat_to_float(static_cast<uint16_t>(std::bit_cast<uint32_t>(key) >> 16));
  std::vector<uint16_t> halves;
  std::vector<uint16_t> bfloats;
  for (const float key : keys) {
    halves.push_back(float_to_half(key));
    ASSERT_EQ(half_to_float(halves.back()), key);
    bfloats.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(key) >> 16));
  }
  const std::vector<std::byte> want = record_of(shape, blocks, keys);
  EXPECT_EQ(
      record_of(shape, blocks, BodyDtype::kFp16, reinterpret_cast<const std::byte*>(halves.data())),
      want);
  EXPECT_EQ(record_of(shape, blocks, BodyDtype::kBf16,
                      reinterpret_cast<const std::byte*>(bfloats.data())),
            want);

  // Blocks with room for V, rows with a gap, at an odd address.
  KeyRows rows;
  rows.row_stride = 24 * 4 + 12;
  rows.block_stride = 3 * 8 * rows.row_stride;
  std::vector<std::byte> wide(blocks * rows.block_stride + 1, std::byte{0xFF});
  for (uint32_t t = 0; t < tokens; ++t) {
    std::memcpy(wide.data() + 1 + t / 8 * rows.block_stride + t % 8 * rows.row_stride,
                keys.data() + size_t{t} * 24, 24 * 4);
  }
  rows.blocks = wide.data() + 1;
  rows.dtype = BodyDtype::kFp32;
  rows.block_count = blocks;
  rows.block_tokens = 8;
  rows.k_dim = 24;
  std::vector<std::byte> record(want.size());
  DeriveScratch scratch;
  derive_record(rows, {}, nullptr, record, scratch);
  EXPECT_EQ(record, want);
}

// Goal: masked tokens are as if they were not there, for every statistic.
TEST(Derive, MaskedTokensDoNotCount) {
  const Shape shape{16, 8, 2};
  std::vector<float> keys = noisy_keys(shape, 32, 9, 1.0F);
  std::vector<uint8_t> mask(32, 1);
  for (const uint32_t t : {0U, 1U, 5U, 31U}) mask[t] = 0;
  const std::vector<std::byte> want = record_of(shape, 4, keys, mask.data());
  std::vector<float> spoilt = keys;
  for (uint32_t t = 0; t < 32; ++t) {
    if (mask[t] != 0) continue;
    for (uint32_t d = 0; d < 16; ++d) {
      spoilt[t * 16 + d] = d % 2 == 0 ? 1e20F : std::numeric_limits<float>::quiet_NaN();
    }
  }
  EXPECT_EQ(record_of(shape, 4, spoilt, mask.data()), want);
  EXPECT_NE(record_of(shape, 4, keys), want);
  // Run 0 has no token left: residual 0. Run 2 is its one remaining token.
  const std::vector<double> run0 = synthetic::decoded_run(shape, 4, want, 0);
  const std::vector<double> run2 = synthetic::decoded_run(shape, 4, want, 2);
  for (uint32_t d = 0; d < 16; ++d) {
    EXPECT_EQ(run0[d], double{half_to_float(half_at(want, size_t{2} * d))});
    EXPECT_NEAR(run2[d], double{keys[4 * 16 + d]}, 0.3);
  }
  const std::vector<uint8_t> none(32, 0);
  EXPECT_EQ(record_of(shape, 4, keys, none.data()), record_of(shape, 4, keys));
}

// Goal: a key that is not finite spoils its channel's mean and nothing else; huge keys saturate.
TEST(Derive, KeysThatAreNotFinite) {
  const Shape shape{16, 8, 2};
  const std::vector<float> keys = noisy_keys(shape, 32, 9, 1.0F);
  std::vector<float> spoilt = keys;
  spoilt[20 * 16 + 3] = std::numeric_limits<float>::infinity();
  spoilt[21 * 16 + 3] = -std::numeric_limits<float>::infinity();
  spoilt[7 * 16 + 9] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::byte> record = record_of(shape, 4, spoilt);
  std::vector<float> zeroed = keys;
  for (uint32_t t = 0; t < 32; ++t) zeroed[t * 16 + 3] = zeroed[t * 16 + 9] = 0.0F;
  std::vector<std::byte> want = record_of(shape, 4, zeroed);
  for (const size_t d : {size_t{3}, size_t{9}}) {
    EXPECT_EQ(half_at(record, 2 * d), kHalfNan);
    EXPECT_EQ(record[2 * 16 + 4 + d], std::byte{0});
    std::memcpy(want.data() + 2 * d, &kHalfNan, 2);
  }
  EXPECT_EQ(record, want);

  std::vector<float> huge(keys.size());
  for (size_t i = 0; i < huge.size(); ++i) {
    huge[i] = i % 3 == 0 ? std::numeric_limits<float>::max() : -std::numeric_limits<float>::max();
  }
  const VectorsLayout layout(synthetic::model_of(shape), {});
  EXPECT_TRUE(check_blob(layout, 4, record_of(shape, 4, huge)).ok());
}

// Goal: the mean alone is the first part of the default record.
TEST(Derive, MeanAloneIsThePrefix) {
  Shape shape{40, 8, 2};
  const std::vector<float> keys = noisy_keys(shape, 48, 2, 1.0F);
  const std::vector<std::byte> whole = record_of(shape, 6, keys);
  shape.kind = IndexKind::kMean;
  const std::vector<std::byte> mean = record_of(shape, 6, keys);
  ASSERT_EQ(mean.size(), 80U);
  EXPECT_TRUE(std::equal(mean.begin(), mean.end(), whole.begin()));
}

// Goal: derive_layers finds every head's keys in a chunk of a body, and touches no other record.
TEST(Derive, LayersOfAChunk) {
  ModelDescriptor model = synthetic::model_of({32, 8, 2, IndexKind::kMeanSpreadRuns, 3, 9});
  model.dtype = BodyDtype::kFp16;
  for (LayerDescriptor& layer : model.layers) layer.v_dim = 24;
  const BodyLayout body(model);
  const VectorsLayout vectors(model, {});
  ASSERT_GE(body.chunk_count(), 2U);
  const uint32_t blocks = 5;
  const uint32_t chunk = body.chunk_count() - 1;
  const LayerRange layers = body.chunk_layers(chunk);
  synthetic::Noise noise(3);
  std::vector<std::byte> bytes(body.chunk_bytes(chunk, blocks));
  for (size_t at = 0; at + 2 <= bytes.size(); at += 2) {
    const uint16_t half = float_to_half(noise.normal());
    std::memcpy(bytes.data() + at, &half, 2);
  }
  std::vector<std::byte> blob(vectors.blob_bytes(blocks), std::byte{0xAB});
  DeriveScratch scratch;
  derive_layers(body, vectors, {bytes.data(), layers, blocks, BodyDtype::kFp16, nullptr}, blob,
                scratch);
  for (uint64_t at = 0; at < vectors.offset(layers.first, 0, blocks); ++at) {
    ASSERT_EQ(blob[at], std::byte{0xAB});
  }
  for (uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    for (uint32_t head = 0; head < 3; ++head) {
      // The head's keys, gathered one block at a time.
      std::vector<std::byte> keys;
      for (uint32_t block = 0; block < blocks; ++block) {
        const std::byte* at = bytes.data() + body.block_offset(layer, head, block, blocks);
        keys.insert(keys.end(), at, at + size_t{8} * 32 * 2);
      }
      const std::vector<std::byte> want =
          record_of({32, 8, 2}, blocks, BodyDtype::kFp16, keys.data());
      const std::byte* got = blob.data() + vectors.offset(layer, head, blocks);
      ASSERT_TRUE(std::equal(want.begin(), want.end(), got)) << layer << " " << head;
    }
  }
}

// Goal: a client's blob with a wrong size or anything that is not a number is refused, by name.
TEST(CheckBlob, RefusesByName) {
  const Shape shape{16, 8, 2, IndexKind::kMeanSpreadRuns, 2, 2};
  const VectorsLayout layout(synthetic::model_of(shape), {});
  const std::vector<std::byte> good = synthetic::blob_of(shape, 4, noisy_keys(shape, 32, 1, 1.0F));
  EXPECT_TRUE(check_blob(layout, 4, good).ok());
  const Result<void> size = check_blob(layout, 5, good);
  ASSERT_FALSE(size.ok());
  EXPECT_EQ(size.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(size.error().message.find(std::to_string(good.size())), std::string::npos);

  const VectorRecordLayout record = layout.record(1, 4);
  const auto message_with = [&](uint32_t at, uint16_t half) {
    std::vector<std::byte> blob = good;
    std::memcpy(blob.data() + layout.offset(1, 1, 4) + at, &half, 2);
    const Result<void> result = check_blob(layout, 4, blob);
    return result.ok() ? std::string("ok") : result.error().message;
  };
  EXPECT_EQ(message_with(6, 0x7C00), "vectors: layer 1, kv head 1, channel 3: mean is not finite");
  EXPECT_EQ(message_with(record.scale_m, 0x7E01),
            "vectors: layer 1, kv head 1, scale_m: not a finite number >= 0");
  EXPECT_EQ(message_with(record.spread_m, 0xBC00),
            "vectors: layer 1, kv head 1, spread_m: not a finite number >= 0");
  EXPECT_NE(message_with(record.tiles, 0x0080).find("residual -8"), std::string::npos);
  EXPECT_EQ(message_with(record.tiles, 0x7979), "ok");
}

}  // namespace
}  // namespace skv
