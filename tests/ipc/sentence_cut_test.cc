#include "ipc/identity/sentence_cut.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace skv {
namespace {

// The rule of docs/architecture.md read literally, from the state alone: no memory of calls.
std::vector<SentenceSpan> cut_by_the_rule(uint32_t block_tokens,
                                          const std::vector<uint32_t>& ends,
                                          uint32_t final_to,
                                          uint32_t token_count,
                                          uint32_t first_block = 0) {
  std::vector<SentenceSpan> spans;
  const int64_t half = block_tokens / 2;
  int64_t start = static_cast<int64_t>(first_block) * block_tokens;
  for (int64_t edge = start + 32; edge + half <= std::min(token_count, final_to);
       edge += block_tokens) {
    bool closes = edge - start == 64;
    for (const int64_t end : ends) closes = closes || (end > edge - half && end <= edge + half);
    if (!closes) continue;
    spans.push_back({static_cast<uint32_t>(start / block_tokens),
                     static_cast<uint32_t>((edge - start) / block_tokens)});
    start = edge;
    edge = start + 32 - block_tokens;
  }
  return spans;
}

std::string text_of(const std::vector<SentenceSpan>& spans) {
  std::string text;
  for (const SentenceSpan& span : spans) {
    if (!text.empty()) text += ' ';
    text += std::to_string(span.first_block) + "+" + std::to_string(span.block_count);
  }
  return text.empty() ? "none" : text;
}

std::vector<uint32_t> numbers(const std::string& text) {
  std::istringstream in(text);
  std::vector<uint32_t> values;
  for (uint32_t value = 0; in >> value;) values.push_back(value);
  return values;
}

// tests/data/sentence_cut.golden: block_tokens | tokens | ends final to | ends | spans
TEST(SentenceCutGolden, File) {
  std::ifstream file(SKV_SOURCE_DIR "/tests/data/sentence_cut.golden");
  ASSERT_TRUE(file.is_open());
  int cases = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> parts;
    std::istringstream in(line);
    for (std::string part; std::getline(in, part, '|');) parts.push_back(part);
    ASSERT_EQ(parts.size(), 5U) << line;
    const uint32_t block_tokens = numbers(parts[0]).at(0);
    const uint32_t token_count = numbers(parts[1]).at(0);
    const uint32_t final_to = numbers(parts[2]).at(0);
    const std::vector<uint32_t> ends = numbers(parts[3]);
    SentenceCut cut(block_tokens);
    const auto spans = cut.extend(ends, final_to, token_count);
    ASSERT_TRUE(spans.ok()) << line;
    const std::string expected = parts[4].substr(parts[4].find_first_not_of(' '));
    EXPECT_EQ(text_of(spans.value()), expected) << line;
    ++cases;
  }
  EXPECT_GE(cases, 20);
}

struct Scenario {
  uint32_t block_tokens;
  uint32_t token_count;
  uint32_t final_to;
  std::vector<uint32_t> ends;
};

Scenario random_scenario() {
  Scenario scenario{};
  scenario.block_tokens = *rc::gen::element(4U, 8U, 16U);
  scenario.token_count = *rc::gen::inRange(0U, 600U);
  scenario.final_to = *rc::gen::inRange(0U, 600U);
  // Dense, usual and sparse texts.
  const uint32_t step_max = *rc::gen::element(6U, 40U, 150U);
  uint32_t end = 0;
  for (;;) {
    end += *rc::gen::inRange(1U, step_max);
    if (end > 600) break;
    scenario.ends.push_back(end);
  }
  return scenario;
}

TEST(SentenceCut, FollowsTheRule) {
  EXPECT_TRUE(rc::check("one call equals the rule read literally", [] {
    const Scenario s = random_scenario();
    SentenceCut cut(s.block_tokens);
    const auto spans = cut.extend(s.ends, s.final_to, s.token_count).value();
    RC_ASSERT(spans == cut_by_the_rule(s.block_tokens, s.ends, s.final_to, s.token_count));
    uint32_t next = 0;
    for (const SentenceSpan& span : spans) {
      RC_ASSERT(span.first_block == next);
      RC_ASSERT(span.block_count * s.block_tokens >= 32);
      RC_ASSERT(span.block_count * s.block_tokens <= 64);
      next = span.end_block();
    }
    RC_ASSERT(cut.closed_blocks() == next);
  }));
}

// Goal: however appends are batched, and however early or late ends are declared within what is
// allowed, the same sentences come out.
TEST(SentenceCut, BatchingNeverChangesTheCut) {
  EXPECT_TRUE(rc::check("any split equals one call", [] {
    const Scenario s = random_scenario();
    SentenceCut cut(s.block_tokens);
    std::vector<SentenceSpan> spans;
    std::vector<uint32_t> left = s.ends;
    uint32_t tokens = 0;
    uint32_t final_to = 0;
    const auto call = [&](const std::vector<uint32_t>& now) {
      const auto closed = cut.extend(now, final_to, tokens);
      RC_ASSERT(closed.ok());
      spans.insert(spans.end(), closed.value().begin(), closed.value().end());
    };
    while (tokens < s.token_count || final_to < s.final_to || !left.empty()) {
      tokens = std::min(s.token_count, tokens + *rc::gen::inRange(0U, 90U));
      final_to = std::min(s.final_to, final_to + *rc::gen::inRange(1U, 90U));
      // Whatever becomes final must be declared now; any later end may be, too.
      std::vector<uint32_t> now;
      std::vector<uint32_t> later;
      const bool all = tokens == s.token_count && final_to == s.final_to;
      for (const uint32_t end : left) {
        const bool declare = all || end <= final_to || *rc::gen::inRange(0, 3) == 0;
        (declare ? now : later).push_back(end);
      }
      left = later;
      call(now);
    }
    RC_ASSERT(spans == cut_by_the_rule(s.block_tokens, s.ends, s.final_to, s.token_count));
  }));
}

TEST(SentenceCut, RestartsAtAnAdoptedBoundary) {
  EXPECT_TRUE(rc::check("what follows is cut as from a start there", [] {
    const Scenario s = random_scenario();
    SentenceCut cut(s.block_tokens);
    RC_ASSERT(cut.extend(s.ends, s.final_to, s.token_count).ok());
    const uint32_t first = *rc::gen::inRange(0U, s.token_count / s.block_tokens + 1);
    RC_ASSERT(cut.restart_at(first) ==
              cut_by_the_rule(s.block_tokens, s.ends, s.final_to, s.token_count, first));
  }));
}

TEST(SentenceCut, RefusesWhatContradictsWithoutATrace) {
  SentenceCut cut(8);
  ASSERT_TRUE(cut.extend(std::vector<uint32_t>{20}, 30, 30).ok());
  const auto message = [&](std::vector<uint32_t> ends, uint32_t final_to, uint32_t tokens) {
    const auto result = cut.extend(ends, final_to, tokens);
    return result.ok() ? std::string("taken") : result.error().message;
  };
  EXPECT_EQ(message({}, 30, 29), "token_count 29 is below the 30 tokens already known");
  EXPECT_EQ(message({30}, 40, 40), "end 30 lies in the 30 tokens whose ends are final");
  EXPECT_EQ(message({35, 35}, 40, 40), "ends must ascend from 1: 35 follows 35");
  EXPECT_EQ(message({36, 35}, 40, 40), "ends must ascend from 1: 35 follows 36");
  EXPECT_EQ(message({0}, 40, 40), "ends must ascend from 1: 0 follows 0");
  // Had any of them been kept, edge 32 would close.
  const auto spans = cut.extend({}, 100, 40);
  ASSERT_TRUE(spans.ok());
  EXPECT_EQ(text_of(spans.value()), "none");
}

TEST(SentenceCut, LargePositionsDoNotWrap) {
  SentenceCut cut(16);
  EXPECT_TRUE(cut.restart_at(0xFFFFFFFFU / 16 - 1).empty());
  EXPECT_TRUE(cut.extend(std::vector<uint32_t>{0xFFFFFFFFU}, 0xFFFFFFFFU, 100).value().empty());
}

}  // namespace
}  // namespace skv
