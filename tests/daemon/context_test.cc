#include "daemon/context.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/daemon/placement_world.h"

namespace skv {
namespace {

using test::World;

constexpr SessionId kA{1};
constexpr SessionId kB{2};

ContextAppend append_of(uint32_t first, uint32_t count, uint32_t seed = 0) {
  ContextAppend append;
  append.first_position = first;
  for (uint32_t token = first; token < first + count; ++token)
    append.tokens.push_back(seed + token);
  append.ends_final_to = first + count;
  return append;
}

Digest extra_of(uint8_t value) {
  Digest extra;
  extra.bytes[3] = value;
  return extra;
}

TEST(Context, DigestsFollowTheDefinition) {
  const World world({});
  Context context = world.context(kA);
  ContextAppend append = append_of(0, 12);
  append.extra = extra_of(7);
  ASSERT_TRUE(context.append(append).ok());
  ASSERT_TRUE(context.append(append_of(12, 6)).ok());
  ASSERT_EQ(context.closed_blocks(), 2U);
  Digest digest = root_digest(8);
  EXPECT_EQ(context.prefix_digest(0), digest);
  digest = next_digest(digest, std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7}, extra_of(7));
  EXPECT_EQ(context.prefix_digest(1), digest);
  // The second block holds a token of the first call, so it carries its extra.
  digest = next_digest(digest, std::vector<uint32_t>{8, 9, 10, 11, 12, 13, 14, 15}, extra_of(7));
  EXPECT_EQ(context.prefix_digest(2), digest);
  EXPECT_EQ(context.boundary(2), boundary_key({world.salt, world.model->fingerprint, digest, 16}));
}

// Goal: digests and boundaries do not depend on how appends are batched.
// Method: the same tokens, ends and extras per token, cut at random places.
TEST(Context, BatchingChangesNothing) {
  const World world({});
  std::mt19937_64 random(11);
  for (int round = 0; round < 20; ++round) {
    constexpr uint32_t kTokens = 400;
    std::vector<uint8_t> extras(kTokens);
    for (uint32_t token = 0; token < kTokens; ++token) {
      extras[token] = token == 0 || random() % 30 == 0 ? random() % 3 : extras[token - 1];
    }
    std::vector<uint32_t> ends;
    for (uint32_t end = 10; end < kTokens; end += 1 + random() % 60) ends.push_back(end);

    const auto build = [&](uint32_t most) {
      Context context = world.context(kA);
      std::vector<uint32_t> closed;
      for (uint32_t at = 0; at < kTokens;) {
        uint32_t count = 1 + random() % most;
        count = std::min(count, kTokens - at);
        uint32_t same = 1;  // a call has one extra
        while (same < count && extras[at + same] == extras[at]) ++same;
        ContextAppend append = append_of(at, same);
        append.extra = extras[at] == 0 ? Digest{} : extra_of(extras[at]);
        for (const uint32_t end : ends) {
          if (end > at && end <= at + same) append.ends.push_back(end);
        }
        const Result<ContextAppendReply> reply = context.append(append);
        EXPECT_TRUE(reply.ok()) << reply.error().message;
        EXPECT_EQ(reply.value().first_sentence, closed.size());
        for (const uint32_t blocks : reply.value().closed_blocks) closed.push_back(blocks);
        at += same;
      }
      EXPECT_EQ(closed.size(), context.sentence_count());
      return context;
    };
    const Context whole = build(kTokens);
    const Context pieces = build(9);
    ASSERT_EQ(whole.closed_blocks(), pieces.closed_blocks());
    for (uint32_t block = 0; block <= whole.closed_blocks(); ++block) {
      EXPECT_EQ(whole.prefix_digest(block), pieces.prefix_digest(block)) << block;
    }
    ASSERT_EQ(whole.sentence_count(), pieces.sentence_count());
    for (uint32_t index = 0; index < whole.sentence_count(); ++index) {
      EXPECT_EQ(whole.sentence(index).key, pieces.sentence(index).key);
    }
  }
}

TEST(Context, RefusalsNameFieldAndLimitAndChangeNothing) {
  const World world({});
  Context context = world.context(kA);
  ASSERT_TRUE(context.append(append_of(0, 10)).ok());

  const auto refused = [&](const ContextAppend& append) {
    const Result<ContextAppendReply> reply = context.append(append);
    EXPECT_FALSE(reply.ok());
    EXPECT_EQ(context.token_count(), 10U);
    return reply.ok() ? Error{} : reply.error();
  };
  Error error = refused(append_of(9, 4));
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(error.message.find("first_position 9"), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("10"), std::string::npos);

  error = refused(append_of(10, kAppendTokensMax + 1));
  EXPECT_EQ(error.code, ErrorCode::kTooLarge);
  EXPECT_NE(error.message.find(std::to_string(kAppendTokensMax)), std::string::npos);

  ContextAppend append = append_of(10, 20);
  append.ends = {20, 15};
  EXPECT_EQ(refused(append).code, ErrorCode::kInvalidArgument);
  append.ends = {5};  // final by the first call
  EXPECT_EQ(refused(append).code, ErrorCode::kInvalidArgument);
  append.ends = {kContextTokensMax + 1};
  EXPECT_EQ(refused(append).code, ErrorCode::kInvalidArgument);
  append.ends.clear();
  append.ends_final_to = kContextTokensMax + 1;
  EXPECT_EQ(refused(append).code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(context.append(append_of(10, 20)).ok());

  EXPECT_TRUE(context.check_range(0, 0).ok());
  EXPECT_FALSE(context.check_range(0, 1).ok());
  EXPECT_FALSE(context.check_range(1, ~0U).ok());
}

TEST(Context, AdoptsForeignBoundariesAndCutsAfterThem) {
  World world({});
  const Context theirs = world.chain(kA, 100, 5, 5);  // 40 tokens each
  world.put(theirs, 0, 5);
  Context mine = world.chain(kB, 100, 6, 4);  // the same tokens, 32 each
  ASSERT_GE(mine.sentence_count(), 6U);
  const Directory::Cover cover = mine.match(*world.directory);
  EXPECT_EQ(cover.hit_tokens, 200U);
  ASSERT_TRUE(mine.adopt(*world.directory, cover).ok());
  ASSERT_GE(mine.sentence_count(), 5U);
  for (uint32_t index = 0; index < 5; ++index) {
    EXPECT_EQ(mine.sentence(index).key, theirs.sentence(index).key);
    EXPECT_EQ(mine.sentence(index).span, (SentenceSpan{index * 5, 5}));
  }
  EXPECT_EQ(mine.stored_prefix(*world.directory, true), 5U);
  // It goes on from there.
  ASSERT_TRUE(mine.append(append_of(mine.token_count(), 200, 100)).ok());
  EXPECT_EQ(mine.sentence(5).span.first_block, 25U);

  Context used = world.chain(kB, 100, 6, 4);
  used.mark_used();
  const Result<void> busy = used.adopt(*world.directory, cover);
  ASSERT_FALSE(busy.ok());
  EXPECT_EQ(busy.error().code, ErrorCode::kBusy);
}

TEST(Context, ExtraKeepsInexactKvApart) {
  World world({});
  const Context exact = world.chain(kA, 100, 3);
  world.put(exact, 0, 3);
  Context inexact = world.context(kB);
  ContextAppend append = append_of(0, 64, 100);
  ASSERT_TRUE(inexact.append(append).ok());
  append = append_of(64, 40, 100);
  append.extra = extra_of(9);
  ASSERT_TRUE(inexact.append(append).ok());
  EXPECT_EQ(inexact.match(*world.directory).hit_tokens, 64U);
}

}  // namespace
}  // namespace skv
