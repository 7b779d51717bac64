#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "daemon/chunk_queue.h"
#include "daemon/leaf_queue.h"

namespace skv {
namespace {

// Nodes by chunk number, all of 4 KiB and one sentence.
class Chunks {
 public:
  void push(uint32_t chunk) { queue.push(entry(chunk), nodes[chunk]); }
  static ChunkQueue::Entry entry(uint32_t chunk) { return {SentenceUid{1}, chunk, 0, 4096}; }
  int next(const std::vector<uint32_t>& leased = {}) {
    ChunkQueue::Entry chosen;
    const bool found = queue.next(
        [this](const ChunkQueue::Entry& at) -> ChunkQueueNode* { return &nodes[at.chunk]; },
        [&](const ChunkQueue::Entry& at) {
          const bool held = std::find(leased.begin(), leased.end(), at.chunk) != leased.end();
          return held ? ChunkQueue::Verdict::kStay : ChunkQueue::Verdict::kGo;
        },
        chosen);
    return found ? static_cast<int>(chosen.chunk) : -1;
  }
  ChunkQueue queue;
  std::map<uint32_t, ChunkQueueNode> nodes;
};

TEST(ChunkQueue, FirstInFirstOutUnlessTouchedTwice) {
  Chunks chunks;
  for (uint32_t chunk = 0; chunk < 6; ++chunk) chunks.push(chunk);
  ChunkQueue::touch(chunks.nodes[0]);
  ChunkQueue::touch(chunks.nodes[1]);
  ChunkQueue::touch(chunks.nodes[1]);
  EXPECT_EQ(chunks.next(), 0);  // one touch is not enough
  EXPECT_EQ(chunks.next(), 2);  // 1 went on to the main queue
  EXPECT_EQ(chunks.next({3}), 4);
  EXPECT_EQ(chunks.next(), 5);
  EXPECT_EQ(chunks.next(), 3);
  EXPECT_EQ(chunks.next(), 1);
  EXPECT_EQ(chunks.next(), -1);
  EXPECT_EQ(chunks.queue.bytes(), 0U);
}

TEST(ChunkQueue, ForgottenAndPushedAgainCountsOnce) {
  Chunks chunks;
  chunks.push(1);
  chunks.push(2);
  chunks.queue.forget(chunks.nodes[1], 4096);
  EXPECT_EQ(chunks.queue.bytes(), 4096U);
  chunks.push(1);
  chunks.queue.push_front(Chunks::entry(1), chunks.nodes[1]);
  EXPECT_EQ(chunks.queue.bytes(), 8192U);
  EXPECT_EQ(chunks.next(), 1);
  EXPECT_EQ(chunks.next(), 2);
  EXPECT_EQ(chunks.next(), -1);
}

TEST(ChunkQueue, AllLeasedEndsWithNone) {
  Chunks chunks;
  for (uint32_t chunk = 0; chunk < 100; ++chunk) {
    chunks.push(chunk);
    for (int touches = 0; touches < 3; ++touches) ChunkQueue::touch(chunks.nodes[chunk]);
  }
  std::vector<uint32_t> all(100);
  for (uint32_t chunk = 0; chunk < 100; ++chunk) all[chunk] = chunk;
  EXPECT_EQ(chunks.next(all), -1);
  EXPECT_GE(chunks.next(), 0);
}

// Two chains from the root, put one after the other.
TEST(LeafQueue, OldChainsGoFromTheirLeavesTouchedOnesLast) {
  Directory directory(3);
  LeafQueue queue;
  class Watcher final : public Directory::LeafWatcher {
   public:
    explicit Watcher(LeafQueue& queue) : queue_(queue) {}
    void removable_changed(Sentence& sentence) override {
      if (sentence.state != SentenceState::kStored) return;
      if (sentence.order == 0) queue_.stored(sentence);
      queue_.update(sentence);
    }

   private:
    LeafQueue& queue_;
  } watcher(queue);
  directory.set_leaf_watcher(&watcher);

  BodyShape shape;
  shape.block_tokens = 8;
  shape.token_count = 32;
  shape.chunk_bytes = {4096};
  std::map<SentenceUid, int> names;
  const auto store = [&](int chain, uint32_t index) {
    Directory::NewSentence fresh;
    const auto digest = [&](uint8_t kind, uint32_t at) {
      Digest made;
      made.bytes[0] = kind;
      made.bytes[1] = static_cast<uint8_t>(at == 0 && kind == 2 ? 0 : chain);
      made.bytes[2] = static_cast<uint8_t>(at);
      return made;
    };
    fresh.key = digest(1, index);
    fresh.start_key = digest(2, index);
    fresh.end_key = digest(2, index + 1);
    fresh.first_position = index * 32;
    fresh.shape = directory.shape(shape);
    Sentence* sentence = directory.reserve(fresh);
    directory.commit(*sentence);
    names[sentence->uid] = chain * 10 + static_cast<int>(index);
    return sentence;
  };
  std::vector<int> order;
  for (uint32_t index = 0; index < 3; ++index) store(1, index);
  Sentence* touched = store(2, 0);
  for (uint32_t index = 0; index < 3; ++index) store(3, index);
  LeafQueue::touch(*touched);
  LeafQueue::touch(*touched);
  EXPECT_EQ(queue.leaf_count(), 3U);
  while (Sentence* leaf = queue.next([](const Sentence&) { return true; })) {
    order.push_back(names[leaf->uid]);
    const auto gone = directory.remove(leaf->uid);
    ASSERT_EQ(gone.size(), 1U);
    queue.removed(*gone[0]);
  }
  EXPECT_EQ(order, (std::vector<int>{12, 11, 10, 32, 31, 30, 20}));
  EXPECT_EQ(queue.leaf_count(), 0U);
}

}  // namespace
}  // namespace skv
