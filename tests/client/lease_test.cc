// Leases in place on a real skvd: without a message where bodies are in host memory.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "client/skv.h"
#include "tests/bench/put_engine.h"
#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/raw_client.h"

namespace skv::test {
namespace {

using bench::PutEngine;

constexpr uint64_t kBytes = 256 << 10;  // of a body: 4 layers in 2 chunks
constexpr PutEngine::Shape kShape{kBytes, 4, 2};
constexpr uint32_t kSentences = 8;
constexpr uint64_t kHost = 4ULL << 20;  // 16 bodies

class LeaseTest : public testing::Test {
 protected:
  LeaseTest() : daemon_({.host_budget = "4MiB", .host_slab = "256KiB", .nvme_size = "64MiB"}) {}
  void SetUp() override {
    ASSERT_TRUE(daemon_.start()) << daemon_.log();
    ASSERT_TRUE(watcher_.open(daemon_.socket(), "watcher"));
  }

  // An engine on the sentences of `salt`, put or not.
  std::unique_ptr<PutEngine> engine(uint32_t salt, bool puts) {
    auto made = std::make_unique<PutEngine>();
    EXPECT_TRUE(made->open(daemon_.socket(), kShape, kSentences, kSentences, salt));
    if (!puts) return made;
    for (uint32_t i = 0; i < kSentences; ++i) {
      std::memset(made->slot(i), static_cast<int>(value(salt, i)), kBytes);
    }
    EXPECT_TRUE(made->reserve());
    for (uint32_t i = 0; i < kSentences; ++i) EXPECT_TRUE(made->write(i, nullptr));
    EXPECT_TRUE(made->commit(false));
    return made;
  }
  static uint8_t value(uint32_t salt, uint32_t sentence) {
    return static_cast<uint8_t>(salt * 16 + sentence + 1);
  }
  // Puts other bodies through host memory, three times its size.
  void press() {
    for (uint32_t i = 0; i < 3 * kHost / (kSentences * kBytes); ++i) (void)engine(++salt_, true);
  }
  // 0: every byte of the lease is the sentence's; else how many layers are not, or the error.
  static int wrong(skv_lease lease, uint32_t salt, uint32_t sentence) {
    int bad = 0;
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      auto at = PutEngine::sized<skv_leased_layer>();
      if (const int code = skv_lease_get_layer(lease, 0, layer, &at); code != SKV_OK) return code;
      const uint64_t bytes = uint64_t{at.kv_heads} * at.blocks * at.block_bytes;
      const std::vector<uint8_t> expected(bytes, value(salt, sentence));
      bad += std::memcmp(at.pointer, expected.data(), bytes) == 0 ? 0 : 1;
    }
    return bad;
  }
  // Until no session but the watcher and `more` is left.
  nlohmann::json settled(uint32_t more) {
    return watcher_.wait_status(
        [more](const nlohmann::json& seen) { return seen["sessions"]["open"] == 1 + more; });
  }
  uint64_t requests() { return watcher_.stat()["requests"]["total"]; }

  DaemonProcess daemon_;
  RawClient watcher_;
  uint32_t salt_ = 100;
};

TEST_F(LeaseTest, WhatIsInHostMemoryCostsNoMessage) {
  const auto writer = engine(1, true);
  const auto reader = engine(1, false);
  skv_lease lease = nullptr;
  ASSERT_TRUE(reader->lease(0, &lease));  // opens the map
  ASSERT_EQ(skv_lease_release(lease), SKV_OK);
  const uint64_t before = requests();
  for (uint32_t i = 0; i < 200; ++i) {
    auto options = PutEngine::sized<skv_load_options>();
    auto result = PutEngine::sized<skv_load_result>();
    options.first_sentence = i % kSentences;
    options.sentence_count = 1;
    options.layer_count = kShape.layers;
    ASSERT_EQ(skv_load_in_place(reader->context(), &options, &lease, &result), SKV_OK);
    EXPECT_EQ(result.bytes, kBytes);
    EXPECT_EQ(result.host_chunks, 2U);
    EXPECT_EQ(result.nvme_chunks, 0U);
    EXPECT_EQ(wrong(lease, 1, i % kSentences), 0);
    ASSERT_EQ(skv_lease_release(lease), SKV_OK);
    EXPECT_EQ(skv_lease_release(lease), SKV_E_UNKNOWN_HANDLE);
  }
  EXPECT_EQ(requests() - before, 1U);  // the watcher's own
  // Ranges: all of it in one lease, and some layers only.
  auto options = PutEngine::sized<skv_load_options>();
  options.sentence_count = kSentences;
  options.first_layer = 1;
  options.layer_count = 2;
  auto result = PutEngine::sized<skv_load_result>();
  ASSERT_EQ(skv_load_in_place(reader->context(), &options, &lease, &result), SKV_OK);
  EXPECT_EQ(result.bytes, kSentences * kBytes / 2);
  EXPECT_EQ(result.host_chunks, kSentences * 2U);
  auto at = PutEngine::sized<skv_leased_layer>();
  for (uint32_t sentence = 0; sentence < kSentences; ++sentence) {
    ASSERT_EQ(skv_lease_get_layer(lease, sentence, 2, &at), SKV_OK);
    EXPECT_EQ(*static_cast<const uint8_t*>(at.pointer), value(1, sentence));
  }
  EXPECT_EQ(skv_lease_get_layer(lease, 0, 3, &at), SKV_E_INVALID_ARGUMENT);
  ASSERT_EQ(skv_lease_release(lease), SKV_OK);
  const nlohmann::json status = watcher_.stat();
  EXPECT_EQ(status["sessions"]["lease_maps"], 1);
  EXPECT_EQ(status["sessions"]["in_place_bytes"], 2 * kHost / 4);  // half of the tier
  EXPECT_GE(status["sessions"]["in_place_leases"], 201);
  EXPECT_EQ(status["sessions"]["loans"], 0);
}

TEST_F(LeaseTest, WhatIsColdIsAskedForAndThenLeasedWithoutAMessage) {
  (void)engine(1, true);
  press();
  const auto reader = engine(1, false);
  skv_lease lease = nullptr;
  ASSERT_TRUE(reader->lease(0, &lease));
  EXPECT_EQ(wrong(lease, 1, 0), 0);
  EXPECT_EQ(watcher_.stat()["sessions"]["loans"], 1);  // it came from NVMe
  ASSERT_EQ(skv_lease_release(lease), SKV_OK);
  const uint64_t before = requests();
  ASSERT_TRUE(reader->lease(0, &lease));
  EXPECT_EQ(wrong(lease, 1, 0), 0);
  ASSERT_EQ(skv_lease_release(lease), SKV_OK);
  EXPECT_LE(requests() - before, 2U);  // the watcher's own, and perhaps the release before
}

// Two sessions read the same sentence, one of them after its context was closed, while others are
// put through host memory: every byte stays; then it makes room.
TEST_F(LeaseTest, LeasesHoldUnderPressureAndBeyondTheirContext) {
  const auto writer = engine(1, true);
  const auto one = engine(1, false);
  const auto two = engine(1, false);
  skv_lease of_one = nullptr;
  skv_lease of_two = nullptr;
  ASSERT_TRUE(one->lease(2, &of_one) && two->lease(2, &of_two));
  ASSERT_EQ(skv_context_close(one->context()), SKV_OK);
  EXPECT_EQ(watcher_.stat()["sessions"]["loans"], 0);
  press();
  EXPECT_EQ(wrong(of_one, 1, 2), 0);
  EXPECT_EQ(wrong(of_two, 1, 2), 0);
  ASSERT_EQ(skv_lease_release(of_two), SKV_OK);
  EXPECT_EQ(skv_session_close(two->session()), SKV_OK);
  press();
  EXPECT_EQ(wrong(of_one, 1, 2), 0);
  ASSERT_EQ(skv_lease_release(of_one), SKV_OK);
  // The last lease by it and its context are gone, and so is the map.
  const nlohmann::json now = watcher_.wait_status(
      [](const nlohmann::json& seen) { return seen["sessions"]["lease_maps"] == 0; });
  EXPECT_EQ(now["sessions"]["lease_maps"], 0);
  EXPECT_EQ(now["sessions"]["in_place_bytes"], 0);
}

// Goal: whatever moves meanwhile, what a lease that is still good showed are the bytes that were
// put. Method: two threads of one session lease, read and release single sentences and ranges, cold
// and warm, while another session puts three times the host tier through it.
TEST_F(LeaseTest, LeasesAreGoodWhileOthersMakeRoom) {
  const auto writer = engine(1, true);
  const auto reader = engine(1, false);
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> good{0};
  std::atomic<uint32_t> bad{0};
  const auto read = [&](uint32_t salt) {
    std::minstd_rand random(salt);
    while (!stop.load()) {
      auto options = PutEngine::sized<skv_load_options>();
      options.first_sentence = static_cast<uint32_t>(random() % kSentences);
      options.sentence_count = 1;
      options.layer_count = kShape.layers;
      skv_lease lease = nullptr;
      if (skv_load_in_place(reader->context(), &options, &lease, nullptr) != SKV_OK) continue;
      (wrong(lease, 1, options.first_sentence) == 0 ? good : bad).fetch_add(1);
      (void)skv_lease_release(lease);
    }
  };
  std::thread one(read, 1);
  std::thread two(read, 2);
  press();
  stop.store(true);
  one.join();
  two.join();
  EXPECT_EQ(bad.load(), 0U);
  EXPECT_GT(good.load(), 0U);
  const nlohmann::json status = watcher_.stat();
  EXPECT_GT(status["sessions"]["in_place_leases"], 0);
  EXPECT_GT(status["placement"]["demotions"], 0);
}

TEST_F(LeaseTest, DropKeepsWhatIsLeasedWithoutAMessage) {
  const auto writer = engine(1, true);
  const auto reader = engine(1, false);
  skv_lease lease = nullptr;
  ASSERT_TRUE(reader->lease(5, &lease));
  uint32_t dropped = 0;
  uint32_t kept = 0;
  ASSERT_EQ(skv_drop(writer->context(), 0, &dropped, &kept), SKV_OK);
  EXPECT_EQ(dropped, 2U);  // those after it
  EXPECT_EQ(kept, 6U);
  EXPECT_EQ(wrong(lease, 1, 5), 0);
  ASSERT_EQ(skv_lease_release(lease), SKV_OK);
  ASSERT_EQ(skv_drop(writer->context(), 0, &dropped, &kept), SKV_OK);
  EXPECT_EQ(dropped, 6U);
  ASSERT_FALSE(reader->lease(5, &lease));
}

#if !defined(__SANITIZE_THREAD__)  // fork with threads is not what tsan follows
TEST_F(LeaseTest, AForkedChildNeitherLeasesNorReleases) {
  const auto writer = engine(1, true);
  const auto reader = engine(1, false);
  skv_lease lease = nullptr;
  ASSERT_TRUE(reader->lease(3, &lease));
  const pid_t child = ::fork();
  if (child == 0) {
    int bad = 0;
    auto options = PutEngine::sized<skv_load_options>();
    options.sentence_count = 1;
    options.layer_count = 1;
    skv_lease own = nullptr;
    bad += skv_load_in_place(reader->context(), &options, &own, nullptr) != SKV_E_DENIED ? 1 : 0;
    (void)skv_lease_release(lease);
    ::_exit(bad);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  press();
  EXPECT_EQ(wrong(lease, 1, 3), 0);
  EXPECT_EQ(skv_lease_release(lease), SKV_OK);
}
#endif

TEST_F(LeaseTest, ARestartMakesLeasesStaleAndTheNextOnesWork) {
  const auto writer = engine(1, true);
  const auto reader = engine(1, false);
  ASSERT_EQ(skv_flush(writer->session(), SKV_FLUSH_DURABLE, 0, nullptr), SKV_OK);
  skv_lease lease = nullptr;
  ASSERT_TRUE(reader->lease(3, &lease));
  watcher_.close();
  daemon_.kill();
  ASSERT_TRUE(daemon_.start()) << daemon_.log();
  // What was read before is as good as it was; nothing is after.
  skv_lease again = nullptr;
  ASSERT_TRUE(reader->lease(3, &again)) << skv_last_error();
  EXPECT_EQ(wrong(lease, 1, 3), SKV_E_STALE);
  EXPECT_EQ(skv_lease_release(lease), SKV_OK);
  EXPECT_EQ(wrong(again, 1, 3), 0);
  EXPECT_EQ(skv_lease_release(again), SKV_OK);
  ASSERT_TRUE(watcher_.open(daemon_.socket(), "watcher"));
  const uint64_t before = requests();
  ASSERT_TRUE(reader->lease(3, &again));
  EXPECT_EQ(wrong(again, 1, 3), 0);
  EXPECT_LE(requests() - before, 2U);
  EXPECT_EQ(watcher_.stat()["sessions"]["lease_maps"], 1);
  EXPECT_EQ(skv_lease_release(again), SKV_OK);
}

TEST_F(LeaseTest, AClosedSessionGivesBackWhatItHeld) {
  const auto writer = engine(1, true);
  skv_lease lease = nullptr;
  {
    const auto reader = engine(1, false);
    ASSERT_TRUE(reader->lease(0, &lease));
  }
  auto at = PutEngine::sized<skv_leased_layer>();
  EXPECT_NE(skv_lease_get_layer(lease, 0, 0, &at), SKV_OK);
  std::ifstream maps("/proc/self/maps");
  const std::string mapped{std::istreambuf_iterator<char>(maps), {}};
  EXPECT_EQ(mapped.find("skv-words"), std::string::npos);  // of the one that is closed
  const nlohmann::json now = settled(1);
  EXPECT_EQ(now["sessions"]["lease_maps"], 0);
  EXPECT_EQ(now["sessions"]["charges_left"], 0);
}

}  // namespace
}  // namespace skv::test
