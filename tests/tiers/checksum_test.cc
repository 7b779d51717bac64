#include "tiers/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace skv {
namespace {

std::vector<std::byte> pattern(size_t bytes) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    data[i] = static_cast<std::byte>((i * 131) >> 3);
  }
  return data;
}

// The published test vector of XXH3-128 for no bytes: the format must not change with the library.
TEST(Checksum, IsXxh3_128) {
  const ChunkSum empty = checksum({});
  EXPECT_EQ(empty.high, 0x99aa06d3014798d8U);
  EXPECT_EQ(empty.low, 0x6001c324468d497fU);
}

TEST(Checksum, StreamInAnyPiecesIsTheSumOfTheWhole) {
  const std::vector<std::byte> data = pattern(100'003);
  const ChunkSum whole = checksum(data);
  for (const size_t step : {size_t{1}, size_t{63}, size_t{4096}, data.size()}) {
    ChecksumStream stream;
    for (size_t at = 0; at < data.size(); at += step) {
      stream.update(std::span(data).subspan(at, std::min(step, data.size() - at)));
    }
    EXPECT_EQ(stream.sum(), whole) << step;
  }
}

TEST(Checksum, EveryFlippedByteShows) {
  std::vector<std::byte> data = pattern(700);
  const ChunkSum good = checksum(data);
  for (std::byte& byte : data) {
    byte ^= std::byte{0x40};
    EXPECT_NE(checksum(data), good);
    byte ^= std::byte{0x40};
  }
  EXPECT_EQ(checksum(data), good);
}

}  // namespace
}  // namespace skv
