#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/tiers/nvme_fixture.h"

namespace skv {
namespace {

constexpr uint64_t kKeys = 60;

const SampleBody& body(uint64_t key) {
  static std::map<uint64_t, SampleBody> made;
  auto at = made.find(key);
  if (at == made.end()) {
    std::mt19937_64 random(key);
    std::vector<uint64_t> chunks(1 + random() % 4);
    for (uint64_t& bytes : chunks) {
      bytes = 1 + random() % (key % 7 == 0 ? 200'000 : 60'000);
    }
    at = made.emplace(key, SampleBody::make(key, chunks, random() % 6'000)).first;
  }
  return at->second;
}

struct Life {
  uint64_t seed = 0;
  bool honest = true;  // what the disk says is written is written
  SimulatedFaults faults;
};

// Goal: whatever is put, erased, cleaned, restarted, and whatever the disk does: what is found is
// what was put; on an honest disk what was flushed is found after a power cut. Method: random steps
// from a seed, beside a model that knows three sets of keys. Same run each time.
class Model {
 public:
  explicit Model(const Life& life) : life_(life), random_(life.seed), disk_(/*segments=*/9) {
    disk_.open(life.seed, life.faults);
  }

  void step() {
    const uint64_t key = 1 + random_() % kKeys;
    const uint64_t what = random_() % 100;
    if (what < 45) {
      put(key);
    } else if (what < 65) {
      read(key);
    } else if (what < 78) {
      erase(key);
    } else if (what < 82) {
      purge(key);
    } else if (what < 92) {
      flush();
    } else if (what < 96) {
      burst();
    } else {
      restart(/*power_cut=*/what % 2 == 0);
    }
  }
  void finish() {
    if (!testing::Test::HasFatalFailure()) {
      restart(/*power_cut=*/true);
    }
    copied += disk_.store().stats().copied_records;
  }

  uint64_t found = 0;
  uint64_t full = 0;
  uint64_t copied = 0;
  uint64_t resurrected = 0;
  uint64_t purged = 0;

 private:
  void put(uint64_t key) {
    const PutAnswer answer = put_now(disk_.store(), body(key));
    if (answer.outcome == StoreOutcome::kExists) {
      EXPECT_TRUE(stored_.contains(key)) << "a key that was never put exists";
    } else if (answer.ok()) {
      EXPECT_FALSE(stored_.contains(key) && life_.honest) << "stored twice";
      stored_.insert(key);
      flushed_.erase(key);
    } else if (answer.outcome == StoreOutcome::kFull || answer.code() == ErrorCode::kNoSpace) {
      ++full;
      if (!stored_.empty()) {
        erase(*std::next(stored_.begin(), static_cast<std::ptrdiff_t>(random_() % stored_.size())));
      }
    } else {
      EXPECT_FALSE(life_.honest) << "outcome " << static_cast<int>(answer.outcome) << ": "
                                 << answer.result.error().message;
      // An error may have come after all that matters was written.
      erased_.insert(key);
    }
  }

  void read(uint64_t key) {
    const SampleBody& want = body(key);
    const auto count = static_cast<uint32_t>(want.chunks.size());
    const auto first = static_cast<uint32_t>(random_() % count);
    const auto take = static_cast<uint32_t>(1 + random_() % (count - first));
    const ReadAnswer answer = read_now(disk_.store(), want, first, take);
    if (answer.outcome == BodyReadOutcome::kUnknown) {
      EXPECT_FALSE(stored_.contains(key) && life_.honest) << key << " was lost";
      forget(key);
      return;
    }
    if (!answer.ok()) {
      EXPECT_FALSE(life_.honest) << answer.result.error().message;
      if (answer.code() == ErrorCode::kCorrupt) {
        forget(key);
      }
      return;
    }
    ++found;
    EXPECT_TRUE(stored_.contains(key)) << key << " is found and was not put";
    for (uint32_t i = 0; i < take; ++i) {
      ASSERT_TRUE(want.chunk_equals(first + i, answer.chunks[i].span()))
          << "wrong bytes of " << key << ", chunk " << first + i;
    }
  }

  void erase(uint64_t key) {
    disk_.store().erase(body(key).record.key);
    forget(key);
  }

  // No restart may bring it back, from whichever of its copies.
  void purge(uint64_t key) {
    const Result<void> result = purge_now(disk_.store(), {body(key).record.key});
    forget(key);
    if (result.ok() && life_.honest) {
      erased_.erase(key);
      ++purged;
    }
  }

  // Erased, or dropped because a lying disk could not read it back: it may well be on the medium.
  void forget(uint64_t key) {
    if (stored_.erase(key) > 0) {
      erased_.insert(key);
    }
    flushed_.erase(key);
  }

  void flush() {
    const Result<void> result = flush_now(disk_.store());
    if (result.ok()) {
      flushed_ = stored_;
    } else {
      EXPECT_FALSE(life_.honest);
    }
  }

  // Several at once: puts and reads overtake each other, some puts are erased under way.
  void burst() {
    size_t open = 0;
    std::vector<AlignedBuffer> buffers;
    buffers.reserve(8);
    for (int i = 0; i < 8; ++i) {
      const uint64_t key = 1 + random_() % kKeys;
      if (random_() % 2 == 0) {
        BodyPut put = body(key).put([this, key, &open](const Result<void>& result) {
          --open;
          if (result.ok()) {
            stored_.insert(key);
          } else {
            erased_.insert(key);  // cancelled or failed: it may be complete on the disk
          }
        });
        if (const auto outcome = disk_.store().put(put);
            outcome.ok() && outcome.value() == StoreOutcome::kAccepted) {
          ++open;
          if (random_() % 4 == 0) {
            disk_.store().erase(body(key).record.key);
          }
        }
      } else {
        BodyRead read;
        read.key = body(key).record.key;
        buffers.emplace_back(body(key).record.chunk_bytes[0]);
        read.chunks = {buffers.back().span()};
        read.done = [&open, key, memory = buffers.back().span()](const Result<void>& result) {
          --open;
          if (result.ok()) {
            EXPECT_TRUE(body(key).chunk_equals(0, memory)) << "wrong bytes of " << key;
          }
        };
        if (const auto outcome = disk_.store().read(read);
            outcome.ok() && outcome.value() == BodyReadOutcome::kAccepted) {
          ++open;
        }
      }
    }
    drain_until(disk_.store(), [&] { return open == 0; });
    if (!life_.honest) {
      for (uint64_t key = 1; key <= kKeys; ++key) {
        if (disk_.store().find(body(key).record.key) == nullptr) {
          forget(key);
        }
      }
    }
  }

  void restart(bool power_cut) {
    copied += disk_.store().stats().copied_records;
    if (power_cut) {
      disk_.cut_power(random_());
    } else {
      disk_.close();
    }
    disk_.open(random_(), life_.faults);
    ASSERT_FALSE(testing::Test::HasFatalFailure());
    std::set<uint64_t> now;
    for (uint64_t key = 1; key <= kKeys; ++key) {
      const BodyRecordRef record = disk_.store().find(body(key).record.key);
      if (record == nullptr) {
        EXPECT_FALSE(life_.honest && flushed_.contains(key)) << key << " was flushed and is lost";
        EXPECT_FALSE(life_.honest && !power_cut && stored_.contains(key))
            << key << " was stored before an orderly stop and is lost";
        continue;
      }
      EXPECT_TRUE(stored_.contains(key) || erased_.contains(key))
          << key << " was never stored and is found";
      resurrected += stored_.contains(key) ? 0 : 1;
      EXPECT_EQ(record->chunk_sums, body(key).record.chunk_sums);
      now.insert(key);
      if (life_.honest) {
        EXPECT_TRUE(holds(disk_.store(), body(key))) << key;
      }
    }
    // What a lying disk hid may show again: the next record over it may be lost too.
    erased_.insert(stored_.begin(), stored_.end());
    stored_ = now;
    std::erase_if(flushed_, [&now](uint64_t key) { return !now.contains(key); });
    // What a restart found is on the medium, and was verified or sealed.
    flushed_.insert(now.begin(), now.end());
  }

  Life life_;
  std::mt19937_64 random_;
  NvmeOnSimulatedDisk disk_;
  std::set<uint64_t> stored_;
  std::set<uint64_t> flushed_;  // subset of stored_: survives a power cut
  std::set<uint64_t> erased_;   // was stored once, or written: may be back after a restart
};

// SKV_TEST_SEED replays one life, SKV_TEST_LIVES asks for more.
std::vector<uint64_t> seeds(uint64_t first, uint64_t count) {
  if (const char* const one = std::getenv("SKV_TEST_SEED")) {
    return {std::strtoull(one, nullptr, 10)};
  }
  if (const char* const more = std::getenv("SKV_TEST_LIVES")) {
    count = std::strtoull(more, nullptr, 10);
  }
  std::vector<uint64_t> all;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    all.push_back(seed);
  }
  return all;
}

TEST(NvmeModel, HonestDiskKeepsItsWord) {
  uint64_t found = 0;
  uint64_t full = 0;
  uint64_t copied = 0;
  uint64_t resurrected = 0;
  uint64_t purged = 0;
  for (const uint64_t seed : seeds(1, 8)) {
    SCOPED_TRACE("SKV_TEST_SEED=" + std::to_string(seed));
    Model model({.seed = seed,
                 .honest = true,
                 .faults = {.shorter = 60, .late = 300, .interrupted = 60, .full = 100}});
    for (int step = 0; step < 250 && !HasFailure(); ++step) {
      model.step();
    }
    model.finish();
    found += model.found;
    full += model.full;
    copied += model.copied;
    resurrected += model.resurrected;
    purged += model.purged;
    if (HasFailure()) {
      return;
    }
  }
  EXPECT_GT(found, 50U);
  EXPECT_GT(full, 0U);
  EXPECT_GT(copied, 0U) << "cleaning was never tried";
  EXPECT_GT(resurrected, 0U) << "what is erased only never came back: purging proves nothing";
  EXPECT_GT(purged, 20U);
}

TEST(NvmeModel, LyingDiskIsNeverBelieved) {
  uint64_t found = 0;
  for (const uint64_t seed : seeds(1000, 8)) {
    SCOPED_TRACE("SKV_TEST_SEED=" + std::to_string(seed));
    Model model({.seed = seed,
                 .honest = false,
                 .faults = {.read_error = 20,
                            .write_error = 15,
                            .sync_error = 2,
                            .shorter = 60,
                            .read_flip = 20,
                            .media_flip = 15,
                            .lost_write = 15,
                            .late = 300,
                            .interrupted = 60,
                            .full = 100}});
    for (int step = 0; step < 250 && !HasFailure(); ++step) {
      model.step();
    }
    model.finish();
    found += model.found;
    if (HasFailure()) {
      return;
    }
  }
  EXPECT_GT(found, 50U);
}

}  // namespace
}  // namespace skv
