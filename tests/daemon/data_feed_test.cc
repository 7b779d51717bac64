#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <random>
#include <vector>

#include "daemon/data/feed.h"
#include "daemon/data/vector_arena.h"

namespace skv {
namespace {

ModelDescriptor model_of(uint32_t layers) {
  ModelDescriptor model;
  model.weights_id = "feed-test";
  model.dtype = BodyDtype::kFp16;
  for (uint32_t i = 0; i < layers; ++i) {
    LayerDescriptor layer;
    layer.kv_heads = 2;
    layer.queries_per_kv_head = 1;
    layer.k_dim = 64;
    layer.v_dim = 64;
    layer.softmax_scale = 0.125F;
    model.layers.push_back(layer);
  }
  return model;
}

// Sentences of 4 to 8 blocks with vectors of random bytes; none of their chunks on the host.
class FeedTest : public testing::Test {
 protected:
  void make_sentences(uint32_t count, uint32_t layers = 2) {
    model_ = std::make_shared<const DataModel>(model_of(layers));
    const VectorsLayout vectors(model_->descriptor, IndexDescriptor{});
    std::mt19937 random(7);
    uint32_t first_block = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t blocks = 4 + static_cast<uint32_t>(random() % 5);
      auto blob = std::make_shared<std::vector<std::byte>>(vectors.blob_bytes(blocks));
      for (std::byte& byte : *blob) byte = static_cast<std::byte>(random());
      sentences_.push_back({SentenceUid{100 + i},
                            {first_block, blocks},
                            blob,
                            std::vector<HostChunk>(model_->layout.chunk_count())});
      first_block += blocks;
    }
  }

  std::unique_ptr<Feed> open(uint64_t id, const std::shared_ptr<VectorArena>& arena) {
    return std::make_unique<Feed>(OpenFeed{FeedId{id}, SpaceId{1}, model_, IndexDescriptor{}},
                                  residency_, arena);
  }
  static void append_all(Feed& feed) {
    while (feed.pending()) feed.append_next();
  }
  std::vector<FeedSentence> first(uint32_t count) const {
    return {sentences_.begin(), sentences_.begin() + count};
  }

  std::shared_ptr<ArenaWarmer> warmer_ = std::make_shared<ArenaWarmer>();
  DataModelPtr model_;
  std::vector<FeedSentence> sentences_;
  Residency residency_;
};

// Goal: contexts that go over one stored chain share its full pages of vectors, and own what
// differs; a shared page outlives the feed that made it.
TEST_F(FeedTest, ContextsOfOneChainShareFullPages) {
  make_sentences(150);
  const std::shared_ptr<VectorArena> arena = VectorArena::create(32ULL << 20, warmer_).value();
  std::unique_ptr<Feed> one = open(1, arena);
  one->queue(first(140));
  append_all(*one);
  std::unique_ptr<Feed> two = open(2, arena);
  two->queue(first(150));
  append_all(*two);

  ASSERT_EQ(one->sentence_count(), 140U);
  ASSERT_EQ(two->sentence_count(), 150U);
  for (uint32_t layer = 0; layer < 2; ++layer) {
    const RankView a = one->view(layer, 1, 140);
    const RankView b = two->view(layer, 1, 150);
    EXPECT_EQ(a.pages[0], b.pages[0]);
    EXPECT_EQ(a.pages[1], b.pages[1]);
    EXPECT_NE(a.pages[2], b.pages[2]);
    for (uint32_t i = 0; i < 140; ++i) {
      EXPECT_EQ(a.sentences[i].first_block, b.sentences[i].first_block);
      EXPECT_EQ(a.sentences[i].fine_unit, b.sentences[i].fine_unit);
    }
  }
  const std::byte kept = *two->view(1, 1, 150).pages[1];
  one.reset();
  EXPECT_EQ(*two->view(1, 1, 150).pages[1], kept);

  // The first page is someone's still: a third context takes it from there.
  std::unique_ptr<Feed> three = open(3, arena);
  three->queue(first(64));
  append_all(*three);
  EXPECT_EQ(three->view(0, 0, 64).pages[0], two->view(0, 0, 64).pages[0]);
}

// Goal: all pages go back when the last feed closes, whatever the warmer works on just then, and
// the memory is free for others.
TEST_F(FeedTest, PagesGoWithTheLastFeed) {
  make_sentences(130);
  const std::shared_ptr<VectorArena> arena = VectorArena::create(32ULL << 20, warmer_).value();
  for (int round = 0; round < 50; ++round) {
    const std::unique_ptr<Feed> one = open(1, arena);
    one->queue(first(130));
    append_all(*one);
    EXPECT_EQ(one->sentence_count(), 130U);
    EXPECT_GT(arena->charged_bytes(), 0U);
  }
  EXPECT_EQ(arena->charged_bytes(), 0U);
  EXPECT_EQ(residency_.sentence_count(), 0U);
  warmer_->settle();
  struct stat status {};
  ASSERT_EQ(::fstat(arena->read_only_fd(), &status), 0);
  EXPECT_EQ(status.st_blocks, 0);
}

// Goal: a full arena is no error: the feed covers what it has, lets go of the rest, and later
// sentences are not taken either. Whoever reads the map is told that there is no more to come.
TEST_F(FeedTest, AFullArenaEndsTheCover) {
  make_sentences(200, /*layers=*/8);
  const std::shared_ptr<VectorArena> arena = VectorArena::create(2ULL << 20, warmer_).value();
  std::unique_ptr<Feed> feed = open(1, arena);
  const std::shared_ptr<FeedMap> map = FeedMap::create(1000, model_->layout.chunk_count()).value();
  feed->share(map);
  feed->queue(first(150));
  append_all(*feed);
  EXPECT_FALSE(feed->pending());
  const uint32_t covered = feed->sentence_count();
  EXPECT_LT(covered, 150U);
  EXPECT_EQ(covered % kPageSentences, 0U);
  feed->queue({sentences_.begin() + 150, sentences_.end()});
  EXPECT_FALSE(feed->pending());
  EXPECT_EQ(feed->queued_count(), 200U);
  EXPECT_EQ(residency_.sentence_count(), covered);

  const MappedMemory read =
      MappedMemory::map(map->read_only_fd(), map->bytes(), MappedMemory::Access::kReadOnly).value();
  const auto* header = reinterpret_cast<const FeedHeader*>(read.data());
  EXPECT_EQ(header->sentence_count.load(), covered);
  EXPECT_EQ(header->ended.load(), 1U);
}

// Goal: a client reads of the map what the feed has: spans, pages, and where chunks lie as they
// come and go.
TEST_F(FeedTest, TheMapShowsWhatTheFeedHas) {
  make_sentences(70);
  const uint32_t chunks = model_->layout.chunk_count();
  sentences_[3].chunks[0] = {8192, Origin::kHost};
  const std::shared_ptr<VectorArena> arena = VectorArena::create(32ULL << 20, warmer_).value();
  std::unique_ptr<Feed> feed = open(1, arena);
  feed->queue(first(10));
  append_all(*feed);
  const std::shared_ptr<FeedMap> map = FeedMap::create(100, chunks).value();
  feed->share(map);
  feed->queue({sentences_.begin() + 10, sentences_.end()});
  append_all(*feed);

  const MappedMemory read =
      MappedMemory::map(map->read_only_fd(), map->bytes(), MappedMemory::Access::kReadOnly).value();
  const FeedLayout at = FeedLayout::of(100, chunks);
  const auto* header = reinterpret_cast<const FeedHeader*>(read.data());
  const auto* pages = reinterpret_cast<const uint64_t*>(read.data() + at.pages);
  const auto* entries = reinterpret_cast<const FeedSentenceEntry*>(read.data() + at.sentences);
  const auto* host = reinterpret_cast<const uint32_t*>(read.data() + at.host_pages);
  ASSERT_EQ(header->sentence_count.load(), 70U);
  for (uint32_t i = 0; i < 70; ++i) {
    EXPECT_EQ(entries[i].first_block, sentences_[i].span.first_block);
    EXPECT_EQ(entries[i].block_count, sentences_[i].span.block_count);
  }
  EXPECT_EQ(pages[0], arena->offset_of(feed->view(0, 0, 70).pages[0]));
  EXPECT_EQ(pages[1], arena->offset_of(feed->view(0, 0, 70).pages[1]));

  EXPECT_EQ(host[3], 3U);
  EXPECT_EQ(host[65], 0U);
  residency_.arrived({sentences_[65].uid, 0}, 40960, Origin::kNvme);
  EXPECT_EQ(host[65], 11U);
  residency_.withdraw({sentences_[65].uid, 0});
  EXPECT_EQ(host[65], 0U);
}

}  // namespace
}  // namespace skv
