#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "kernels/cut.h"
#include "kernels/rank.h"
#include "tests/kernels/synthetic.h"

namespace skv {
namespace {

// The lines of tests/data/ranking_golden.txt by their first word ("record" with its number).
std::map<std::string, std::string> golden() {
  std::ifstream file(std::string(SKV_SOURCE_DIR) + "/tests/data/ranking_golden.txt");
  std::map<std::string, std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t begin = line.rfind("record ", 0) == 0 ? 7 : 0;
    const size_t end = line.find(' ', begin);
    lines[line.substr(0, end)] = line.substr(end + 1);
  }
  return lines;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += "0123456789abcdef"[static_cast<int>(byte) >> 4];
    text += "0123456789abcdef"[static_cast<int>(byte) & 15];
  }
  return text;
}
std::string hex(float value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", std::bit_cast<uint32_t>(value));
  return text;
}
template <typename T>
std::string joined(std::span<const T> values) {
  std::string text;
  for (const T value : values) {
    if (!text.empty()) text += ' ';
    if constexpr (std::is_same_v<T, float>) {
      text += hex(value);
    } else {
      text += std::to_string(value);
    }
  }
  return text;
}

// The keys and queries of make_golden.py.
synthetic::Context golden_context() {
  synthetic::Context context;
  context.shape = {16, 8, 2};
  context.pages = synthetic::empty_pages(context.shape);
  for (uint32_t s = 0; s < 40; ++s) {
    const uint32_t blocks = 4 + s * 3 % 5;
    std::vector<float> keys;
    for (uint32_t t = 0; t < blocks * 8; ++t) {
      for (uint32_t d = 0; d < 16; ++d) {
        const uint32_t value = (s * 37 + t * 31 + d * 17 + t * d % 7 + s * d % 11) % 64;
        keys.push_back((static_cast<float>(value) - 32.0F) / 16.0F);
      }
    }
    synthetic::append(context, blocks, std::move(keys));
  }
  return context;
}

// Goal: records, scores and read sets are those of an independent implementation of the text, and
// stay so: stored vectors outlive the code that made them.
TEST(Golden, RecordsScoresAndReadSet) {
  std::map<std::string, std::string> want = golden();
  ASSERT_EQ(want.size(), 10U);
  const synthetic::Context context = golden_context();
  for (const uint32_t s : {0U, 1U, 2U, 39U}) {
    EXPECT_EQ(hex(context.blobs[s]), want["record " + std::to_string(s)]);
  }
  std::vector<float> queries;
  for (uint32_t q = 0; q < 3; ++q) {
    for (uint32_t d = 0; d < 16; ++d) {
      queries.push_back((static_cast<float>((q * 29 + d * 13 + q * d % 5) % 32) - 16.0F) / 8.0F);
    }
  }
  RankOptions options;
  options.coarse_blocks = 60;
  options.full_scan_blocks = 0;
  options.sink_blocks = 2;
  options.recent_blocks = 3;
  for (auto* function : {&rank, &rank_reference}) {
    RankScratch scratch;
    const RankResult got = function(context.view(), {queries.data(), 3, 0.25F}, options, scratch);
    EXPECT_EQ(joined(got.sentences), want["sentences"]);
    EXPECT_EQ(joined(got.scores), want["scores"]);
    std::vector<float> normalisers;
    for (const RankNormaliser& n : got.normalisers) {
      normalisers.insert(normalisers.end(), {n.log2_max, n.sum});
    }
    EXPECT_EQ(joined(std::span<const float>(normalisers)), want["normalisers"]);
    EXPECT_EQ(hex(got.skipped_mass), want["skipped_mass"]);
    CutScratch cut_scratch;
    const ReadSet set = cut(got, {CutUnit::kBlock, 24}, cut_scratch);
    EXPECT_EQ(joined(set.blocks), want["read_set"]);
    EXPECT_EQ(hex(set.unread_mass), want["unread_mass"]);
  }
}

}  // namespace
}  // namespace skv
