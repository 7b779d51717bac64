#include "daemon/directory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "daemon/shared_directories.h"
#include "ipc/shared_directory.h"
#include "tests/daemon/placement_world.h"

namespace skv {
namespace {

constexpr SessionId kA{1};
constexpr SessionId kB{2};

Digest key_of(uint64_t number, uint8_t kind) {
  Digest digest;
  std::memcpy(digest.bytes.data(), &number, sizeof number);
  digest.bytes[31] = kind;
  return digest;
}

// A graph over one line of tokens: boundary i is the edge after i blocks of 8.
class Line {
 public:
  Sentence* reserve(uint32_t start, uint32_t end, SessionId owner = kA) {
    BodyShape shape;
    shape.block_tokens = 8;
    shape.token_count = (end - start) * 8;
    shape.chunk_bytes = {4096};
    Directory::NewSentence fresh;
    fresh.owner = owner;
    fresh.first_position = start * 8;
    fresh.key = key_of(start * 1000 + end, 1);
    fresh.start_key = key_of(start, 0);
    fresh.end_key = key_of(end, 0);
    fresh.shape = directory.shape(shape);
    return directory.reserve(fresh);
  }
  Sentence* store(uint32_t start, uint32_t end) {
    Sentence* sentence = reserve(start, end);
    if (sentence != nullptr) directory.commit(*sentence);
    return sentence;
  }
  Directory::Cover match(uint32_t blocks, SessionId session = kA) const {
    std::vector<Digest> keys;
    for (uint32_t block = 0; block <= blocks; ++block) keys.push_back(key_of(block, 0));
    return directory.match({session, 8, keys});
  }
  // "0-4 4-10": the path in blocks.
  std::string path(const Directory::Cover& cover) const {
    std::string text;
    for (const SentenceUid uid : cover.path) {
      const Sentence* sentence = directory.find(uid);
      text += (text.empty() ? "" : " ") + std::to_string(sentence->first_position / 8) + "-" +
              std::to_string(sentence->end_position() / 8);
    }
    return text;
  }

  Directory directory{7};
};

TEST(Directory, LongestCoverThenLongestFirstEdge) {
  Line line;
  line.store(0, 4);
  line.store(0, 5);
  line.store(0, 8);
  line.store(4, 8);
  line.store(5, 10);
  line.store(8, 12);
  line.store(10, 14);
  EXPECT_EQ(line.path(line.match(20)), "0-5 5-10 10-14");
  EXPECT_EQ(line.match(20).hit_tokens, 14 * 8U);
  EXPECT_EQ(line.path(line.match(13)), "0-8 8-12");  // both covers end at 12
  EXPECT_EQ(line.path(line.match(8)), "0-8");
  EXPECT_EQ(line.path(line.match(7)), "0-5");
  EXPECT_EQ(line.path(line.match(3)), "");
  EXPECT_EQ(line.match(3).hit_tokens, 0U);
}

TEST(Directory, PendingCountsWhatOthersReserved) {
  Line line;
  line.store(0, 4);
  line.reserve(4, 8, kA);
  line.store(8, 12);  // waits for 4-8
  EXPECT_EQ(line.match(20, kB).hit_tokens, 32U);
  EXPECT_EQ(line.match(20, kB).pending_tokens, 96U);
  EXPECT_EQ(line.match(20, kA).pending_tokens, 32U);
}

class Events final : public DirectoryListener {
 public:
  void sentence_stored(const Sentence& sentence) override {
    log += "+" + std::to_string(sentence.first_position / 8);
  }
  void sentence_removed(const Sentence& sentence) override {
    log += "-" + std::to_string(sentence.first_position / 8);
  }
  std::string log;
};

TEST(Directory, WaitingSentencesFollowTheirPath) {
  Line line;
  Events events;
  line.directory.add_listener(&events);
  line.store(8, 12);
  line.store(4, 8);
  EXPECT_EQ(events.log, "");
  EXPECT_EQ(line.match(20).hit_tokens, 0U);
  line.store(0, 4);
  EXPECT_EQ(events.log, "+0+4+8");
  EXPECT_EQ(line.match(20).hit_tokens, 96U);
}

TEST(Directory, RemovalTakesWhatIsNotReachableAnyMore) {
  Line line;
  const SentenceUid first = line.store(0, 4)->uid;
  line.store(4, 8);
  line.store(0, 8);
  line.store(8, 12);
  line.store(4, 9);
  line.store(9, 13);
  line.reserve(13, 17);
  Events events;
  line.directory.add_listener(&events);
  const auto gone = line.directory.remove(first);
  // 0-4 went, and with it 4-8, 4-9, 9-13; 8-12 is still reached over 0-8.
  EXPECT_EQ(gone.size(), 4U);
  EXPECT_EQ(gone.front()->uid, first);
  for (const auto& sentence : gone) EXPECT_EQ(sentence->state, SentenceState::kRemoved);
  EXPECT_EQ(line.path(line.match(20)), "0-8 8-12");
  EXPECT_EQ(line.directory.sentence_count(), 3U);  // with the open put
  EXPECT_EQ(std::count(events.log.begin(), events.log.end(), '-'), 4);
}

TEST(Directory, OnlyLeavesAreRemovable) {
  Line line;
  Sentence* first = line.store(0, 4);
  EXPECT_TRUE(Directory::removable(*first));
  Sentence* second = line.reserve(4, 8);
  EXPECT_FALSE(Directory::removable(*first));  // somebody is putting what continues it
  EXPECT_FALSE(Directory::removable(*second));
  line.directory.commit(*second);
  EXPECT_FALSE(Directory::removable(*first));
  EXPECT_TRUE(Directory::removable(*second));
  Sentence* third = line.store(8, 12);
  EXPECT_FALSE(Directory::removable(*second));
  Sentence* around = line.store(0, 8);
  EXPECT_TRUE(Directory::removable(*second));  // 8-12 is also reached over 0-8
  EXPECT_TRUE(Directory::removable(*around));
  line.directory.remove(around->uid);
  EXPECT_FALSE(Directory::removable(*second));
  line.directory.remove(third->uid);
  EXPECT_TRUE(Directory::removable(*second));
}

TEST(Directory, EmptyAgainWhenAllIsRemoved) {
  Line line;
  std::vector<SentenceUid> all;
  for (uint32_t block = 0; block < 40; block += 4) {
    all.push_back(line.store(block, block + 4)->uid);
    all.push_back(line.reserve(block, block + 5)->uid);
  }
  EXPECT_EQ(line.reserve(0, 4), nullptr);  // taken
  for (const SentenceUid uid : all) line.directory.remove(uid);
  EXPECT_EQ(line.directory.sentence_count(), 0U);
  EXPECT_EQ(line.directory.boundary_count(), 0U);
}

// Goal: match finds what an exhaustive search finds.
// Method: random graphs over one line of 40 blocks; the oracle tries every chain of stored edges by
// their ends alone.
TEST(Directory, MatchEqualsExhaustiveSearch) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    std::mt19937_64 random(seed);
    Line line;
    std::vector<std::pair<uint32_t, uint32_t>> edges;
    for (uint32_t start = 0; start < 36; ++start) {
      for (uint32_t length = 4; length <= 8; ++length) {
        if (random() % 100 >= 25) continue;
        line.store(start, start + length);
        edges.emplace_back(start, start + length);
      }
    }
    const uint32_t blocks = 20 + random() % 20;
    // best[p]: the furthest end from p on; then the path by the longest first edge.
    std::vector<uint32_t> best(blocks + 1);
    for (uint32_t at = blocks + 1; at-- > 0;) {
      best[at] = at;
      for (const auto& [start, end] : edges) {
        if (start == at && end <= blocks) best[at] = std::max(best[at], best[end]);
      }
    }
    std::string expected;
    for (uint32_t at = 0; at != best[0];) {
      uint32_t next = at;
      for (const auto& [start, end] : edges) {
        if (start == at && end <= blocks && best[end] == best[0]) next = std::max(next, end);
      }
      expected += (expected.empty() ? "" : " ") + std::to_string(at) + "-" + std::to_string(next);
      at = next;
    }
    const Directory::Cover cover = line.match(blocks);
    EXPECT_EQ(line.path(cover), expected) << "seed " << seed;
    EXPECT_EQ(cover.hit_tokens, best[0] * 8) << "seed " << seed;
  }
}

TEST(Directory, ASentenceIsSmall) {
  // bench_directory measures what a sentence takes (<= 256 bytes); this guards against growth by
  // accident.
  EXPECT_LE(sizeof(Sentence), 128U);
  EXPECT_LE(sizeof(Boundary), 64U);
}

// Goal: what clients see in the shared directory gives the cover that match gives.
// Method: random graphs over one line, with sentences that others put, that wait for their path,
// that are in host memory and that leave again; both are asked for every length of the line.
TEST(Directory, TheSharedOneGivesTheSameCover) {
  constexpr SpaceId kSpace{0};
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    std::mt19937_64 random(seed);
    Line line;
    SharedDirectories shared(1U << 20);
    ASSERT_TRUE(shared.add_space(kSpace).ok());
    line.directory.set_edge_mirror(&shared);
    const SharedDirectoryWriter& writer = *shared.find(kSpace);
    const SharedDirectoryReader reader =
        SharedDirectoryReader::open(MappedMemory::map(writer.read_only_fd(), writer.bytes(),
                                                      MappedMemory::Access::kReadOnly)
                                        .value())
            .value();
    std::vector<SentenceUid> all;
    for (int step = 0; step < 120; ++step) {
      const auto start = static_cast<uint32_t>(random() % 36);
      const auto length = static_cast<uint32_t>(4 + random() % 5);
      // One session puts what ends at a boundary: of several, each may see its own as pending.
      Sentence* made = line.reserve(start, start + length, (start + length) % 2 == 0 ? kA : kB);
      if (made != nullptr) {
        all.push_back(made->uid);
        made->in_host = random() % 2 == 0;
        if (random() % 4 != 0) line.directory.commit(*made);
      }
      if (random() % 6 == 0) line.directory.remove(all[random() % all.size()]);
      Sentence* some = line.directory.find(all[random() % all.size()]);
      if (some != nullptr) {
        some->in_host = !some->in_host;
        line.directory.residency_changed(*some);
      }
    }
    SharedDirectoryReader::Scratch scratch;
    for (uint32_t blocks = 0; blocks <= 44; ++blocks) {
      for (const SessionId session : {kA, kB}) {
        const Directory::Cover expected = line.match(blocks, session);
        std::vector<uint64_t> tags;
        for (uint32_t block = 1; block <= blocks; ++block) {
          tags.push_back(shared_directory_tag(key_of(block, 0)));
        }
        const SharedDirectoryReader::Cover cover = reader.match({tags, 8, raw(session)}, scratch);
        uint32_t host_tokens = 0;
        for (const SentenceUid uid : expected.path) {
          const Sentence& sentence = *line.directory.find(uid);
          host_tokens += sentence.in_host ? sentence.token_count() : 0;
        }
        ASSERT_EQ(cover.hit_tokens, expected.hit_tokens) << "seed " << seed << " " << blocks;
        ASSERT_EQ(cover.pending_tokens, expected.pending_tokens)
            << "seed " << seed << " " << blocks;
        ASSERT_EQ(cover.host_tokens, host_tokens) << "seed " << seed << " " << blocks;
      }
    }
    for (const SentenceUid uid : all) line.directory.remove(uid);
    EXPECT_EQ(writer.live(), 0U);
    line.directory.set_edge_mirror(nullptr);
  }
}

TEST(Directory, ASharedOneHasItsOwnSpaceAlone) {
  SharedDirectories shared(1U << 20);
  ASSERT_TRUE(shared.add_space(SpaceId{1}).ok());
  ASSERT_TRUE(shared.add_space(SpaceId{2}).ok());
  shared.edges_changed(SpaceId{1}, key_of(7, 0), {.stored = 1});
  shared.edges_changed(SpaceId{3}, key_of(8, 0), {.stored = 1});  // one without a shared directory
  EXPECT_EQ(shared.find(SpaceId{1})->live(), 1U);
  EXPECT_EQ(shared.find(SpaceId{2})->live(), 0U);
  EXPECT_EQ(shared.find(SpaceId{3}), nullptr);
  EXPECT_NE(shared.find(SpaceId{1})->read_only_fd(), shared.find(SpaceId{2})->read_only_fd());
}

// Goal: a uid names one sentence for ever, although its place is used again.
TEST(Directory, AUidIsNotUsedAgain) {
  Line line;
  std::set<SentenceUid> seen;
  for (int round = 0; round < 5; ++round) {
    const SentenceUid uid = line.store(0, 4)->uid;
    EXPECT_TRUE(seen.insert(uid).second);
    for (const SentenceUid known : seen) {
      EXPECT_EQ(line.directory.find(known) != nullptr, known == uid);
    }
    line.directory.remove(uid);
  }
}

// Goal: the table finds what is in it, and nothing else, through growth and erasure.
// Method: random inserts and erasures of keys that share few hashes, against a set.
TEST(IndexTable, FindsWhatIsThere) {
  struct Traits {
    size_t hash(uint32_t index) const { return index % 61; }
    bool is(uint32_t index, uint32_t key) const { return index == key; }
  };
  IndexTable<Traits> table{Traits{}};
  std::set<uint32_t> known;
  std::mt19937 random(5);
  for (int step = 0; step < 20'000; ++step) {
    const uint32_t key = 1 + random() % 300;
    ASSERT_EQ(table.find(Traits{}.hash(key), key), known.contains(key) ? key : 0U);
    if (known.insert(key).second) {
      table.insert(Traits{}.hash(key), key);
    } else {
      known.erase(key);
      table.erase(Traits{}.hash(key), key);
    }
    ASSERT_EQ(table.size(), known.size());
  }
}

}  // namespace
}  // namespace skv
