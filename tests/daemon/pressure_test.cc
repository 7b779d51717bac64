#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/engine_process.h"
#include "tests/daemon/test_engine.h"
#include "tests/daemon/window_reader.h"

namespace skv::test {
namespace {

// 43 sentences of 40 tokens and an open tail: 215 closed blocks of 48 KiB over all layers and
// heads, so 10 MiB of bodies; 1 MiB is a tenth.
constexpr uint32_t kTokens = 1724;
constexpr uint32_t kSentences = 43;
constexpr uint32_t kCovered = 1720;  // tokens
constexpr uint64_t kBodyBytes = 215ULL * 48 * 1024;
constexpr uint64_t kTenth = 1ULL << 20;
constexpr uint32_t kPiece = 3;  // sentences per put: 720 KiB
constexpr uint32_t kSteps = 36;

constexpr uint32_t kReadBlocks = 6;
static_assert(kReadBlocks * 100 <= 3 * 215, "a step reads at most 3 %");

WindowOpen three_percent_window() {
  WindowOpen counts;
  counts.budget_blocks = 4;
  counts.sink_blocks = 1;
  counts.recent_blocks = 1;
  counts.resident_blocks = kReadBlocks * 5 / 2;
  return counts;
}

DaemonProcess::Options ample(const char* device = "emulated") {
  return {.host_budget = "64MiB", .nvme_size = "64MiB", .device_kind = device};
}

// A walk: a few steps near one place, one of them twice, then a jump.
uint32_t token_of(uint32_t step) {
  const uint32_t local = step % 4 == 3 ? 2 : step % 4;
  return (step / 4 * 709 + local * 13) % kCovered;
}

bool all_are(const Result<PutOutcomes>& result, PutOutcome outcome) {
  return result.ok() &&
         std::all_of(result.value().outcomes.begin(), result.value().outcomes.end(),
                     [&](uint8_t each) { return each == static_cast<uint8_t>(outcome); });
}

// Sentences [first, end) in pieces, as an engine prefills; "" or what went wrong.
std::string put_pieces(TestEngine& engine, uint32_t first, uint32_t end) {
  for (uint32_t at = first; at < end; at += kPiece) {
    const Result<PutOutcomes> put = engine.put(at, std::min(kPiece, end - at));
    if (!put.ok()) {
      return "put at " + std::to_string(at) + ": " + put.error().message;
    }
    if (!all_are(put, PutOutcome::kCommitted)) {
      return "put at " + std::to_string(at) + ": outcomes " +
             testing::PrintToString(put.value().outcomes);
    }
  }
  return "";
}

// "" or what went wrong.
std::string open_engine(TestEngine& engine, const DaemonProcess& daemon, const char* name) {
  if (!engine.open(daemon.socket(), name)) {
    return std::string(name) + " cannot open: " + engine.client().error().message;
  }
  if (!engine.append_all() || engine.sentence_count() != kSentences ||
      engine.end_token(kSentences - 1) != kCovered) {
    return std::string(name) + ": the cut is not as expected";
  }
  return "";
}

// The readings of the steps in the order given; `failed` is what went wrong, if something did.
struct Readings {
  std::vector<Reading> of_step = std::vector<Reading>(kSteps);
  std::string failed;
};
std::vector<uint32_t> all_steps() {
  std::vector<uint32_t> steps(kSteps);
  std::iota(steps.begin(), steps.end(), 0U);
  return steps;
}
Readings read_steps(WindowReader& reader, const std::vector<uint32_t>& steps) {
  Readings readings;
  for (const uint32_t step : steps) {
    Result<Reading> reading = reader.read(token_of(step));
    if (!reading.ok()) {
      readings.failed = "step " + std::to_string(step) + ": " + reading.error().message;
      return readings;
    }
    readings.of_step[step] = std::move(reading).value();
  }
  return readings;
}

void expect_same(const Readings& got, const Readings& expected) {
  ASSERT_EQ(got.failed, "");
  for (uint32_t step = 0; step < kSteps; ++step) {
    ASSERT_EQ(got.of_step[step], expected.of_step[step]) << "step " << step;
  }
}

constexpr uint32_t kOldSeed = 5;
constexpr uint32_t kSeed = 1;

// The readings of the document when every tier holds all of it.
Readings reference() {
  Readings readings;
  DaemonProcess daemon(ample());
  TestEngine engine(kTokens, kSeed);
  if (!daemon.start() || !open_engine(engine, daemon, "ample").empty()) {
    readings.failed = daemon.log();
    return readings;
  }
  engine.compute();
  readings.failed = put_pieces(engine, 0, kSentences);
  if (!readings.failed.empty()) {
    return readings;
  }
  Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
  if (!reader.ok()) {
    readings.failed = reader.error().message;
    return readings;
  }
  readings = read_steps(reader.value(), all_steps());
  const nlohmann::json status = engine.client().stat();
  EXPECT_EQ(status["placement"]["demotions"], 0);
  EXPECT_EQ(reader.value().hits().nvme, 0U);
  return readings;
}

void expect_no_errors(const nlohmann::json& status) {
  for (const char* key :
       {"/requests/errors", "/requests/protocol_errors", "/tiers/nvme/corrupt",
        "/tiers/nvme/io_errors", "/tiers/device/lost", "/prefetch/failed", "/prefetch/busy",
        "/prefetch/hits/miss", "/placement/promotion_failures", "/placement/nvme_write_failures",
        "/placement/evictions_corrupt", "/placement/evictions_unreachable",
        "/placement/chunk_misses", "/placement/reserves_full"}) {
    EXPECT_EQ(status[nlohmann::json::json_pointer(key)], 0) << key;
  }
}

// Goal: with a tenth of the data in the device and host tiers each, and less NVMe than was ever
// put, an engine reads what it would read if everything fitted, bit by bit, while the tiers below
// work and two old documents make way from their ends.
TEST(PressureTest, BudgetsOfATenthReadTheSame) {
  const Readings expected = reference();
  ASSERT_EQ(expected.failed, "");

  DaemonProcess daemon({.host_budget = "1MiB",
                        .host_slab = "64KiB",
                        .nvme_size = "24MiB",
                        .nvme_segment = "1MiB",
                        .device_kind = "emulated",
                        .device_budget = "1MiB"});
  ASSERT_LE(kTenth, kBodyBytes / 9);
  ASSERT_TRUE(daemon.start()) << daemon.log();
  for (const uint32_t seed : {kOldSeed, kOldSeed + 1}) {
    TestEngine old(kTokens, seed);
    ASSERT_EQ(open_engine(old, daemon, "old"), "") << daemon.log();
    old.compute();
    ASSERT_EQ(put_pieces(old, 0, kSentences), "") << old.client().stat().dump(1);
    ASSERT_TRUE(old.client().call<Empty>(Verb::kContextClose, ContextClose{old.context_id()}).ok());
  }

  TestEngine engine(kTokens, kSeed);
  ASSERT_EQ(open_engine(engine, daemon, "new"), "") << daemon.log();
  engine.compute();
  ASSERT_EQ(put_pieces(engine, 0, kPiece), "") << daemon.log();
  // The window leases what it covers, and grows as more is put.
  Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
  ASSERT_TRUE(reader.ok()) << reader.error().message << daemon.log();
  ASSERT_EQ(put_pieces(engine, kPiece, kSentences), "") << daemon.log();
  expect_same(read_steps(reader.value(), all_steps()), expected);
  // And again from the end, which other places have left the slots for.
  std::vector<uint32_t> backwards = all_steps();
  std::reverse(backwards.begin(), backwards.end());
  expect_same(read_steps(reader.value(), backwards), expected);

  const nlohmann::json status = engine.client().stat();
  SCOPED_TRACE(status.dump(1));
  EXPECT_GT(status["prefetch"]["hits"]["device"], 0);
  EXPECT_GT(status["prefetch"]["hits"]["host"], 0);
  EXPECT_GT(status["prefetch"]["hits"]["nvme"], 0);
  EXPECT_GT(status["placement"]["demotions"], 0);
  EXPECT_GT(status["placement"]["evictions_nvme"], 0);
  EXPECT_GT(status["copies"]["bytes_put"], status["tiers"]["nvme"]["budget_bytes"]);
  EXPECT_LE(status["tiers"]["nvme"]["used_bytes"], status["tiers"]["nvme"]["budget_bytes"]);
  EXPECT_LE(status["tiers"]["host"]["peak_bytes"], kTenth);
  EXPECT_LE(status["tiers"]["device"]["used_bytes"], kTenth);
  EXPECT_GT(status["tiers"]["device"]["used_bytes"], 0);
  expect_no_errors(status);

  // The new document is whole; of the old ones a beginning is left, and that is whole.
  engine.clear();
  const Result<LoadReply> load = engine.load(0, kSentences);
  ASSERT_TRUE(load.ok()) << load.error().message << daemon.log();
  EXPECT_EQ(engine.wrong_values(0, kCovered), 0U);
  uint32_t left = 0;  // tokens
  for (const uint32_t seed : {kOldSeed, kOldSeed + 1}) {
    TestEngine again(kTokens, seed);
    ASSERT_EQ(open_engine(again, daemon, "again"), "");
    const Result<MatchReply> match = again.match(/*adopt=*/false);
    ASSERT_TRUE(match.ok()) << match.error().message;
    const uint32_t hit = match.value().hit_tokens;
    left += hit;
    if (hit > 0) {
      const Result<LoadReply> rest = again.load(0, hit / 40);
      ASSERT_TRUE(rest.ok()) << rest.error().message << daemon.log();
      EXPECT_EQ(again.wrong_values(0, hit), 0U);
    }
  }
  EXPECT_GT(left, 0U);
  EXPECT_LT(left, 2 * kCovered);
  EXPECT_EQ(status["directory"]["sentences"], kSentences + left / 40) << "all are reachable";
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
  EXPECT_THAT(daemon.log(), testing::Not(testing::HasSubstr("critical")));
}

// Goal: without a device tier blocks are read in place in host memory, half of the document's
// size, and the read sets are the same.
TEST(PressureTest, WithoutADeviceTheReadSetsAreTheSame) {
  const Readings expected = reference();
  ASSERT_EQ(expected.failed, "");
  DaemonProcess daemon(
      {.host_budget = "6MiB", .host_slab = "64KiB", .nvme_size = "32MiB", .device_kind = "none"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(kTokens, kSeed);
  ASSERT_EQ(open_engine(engine, daemon, "none"), "") << daemon.log();
  engine.compute();
  ASSERT_EQ(put_pieces(engine, 0, kSentences), "") << daemon.log();
  Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/1);
  ASSERT_TRUE(reader.ok()) << reader.error().message << daemon.log();
  expect_same(read_steps(reader.value(), all_steps()), expected);
  EXPECT_GT(reader.value().hits().nvme, 0U);
  EXPECT_GT(reader.value().hits().host, 0U);
  expect_no_errors(engine.client().stat());
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// Goal: what was flushed is there after a kill, comes back from NVMe, and reads the same.
TEST(RestartTest, KilledAfterFlushReadsTheSame) {
  DaemonProcess daemon({.host_budget = "4MiB",
                        .host_slab = "64KiB",
                        .nvme_size = "32MiB",
                        .device_kind = "emulated"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  Readings expected;
  {
    TestEngine engine(kTokens, kSeed);
    ASSERT_EQ(open_engine(engine, daemon, "first"), "") << daemon.log();
    engine.compute();
    ASSERT_EQ(put_pieces(engine, 0, kSentences), "") << daemon.log();
    Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
    ASSERT_TRUE(reader.ok()) << reader.error().message;
    expected = read_steps(reader.value(), all_steps());
    ASSERT_EQ(expected.failed, "") << daemon.log();
    const Result<FlushReply> durable = engine.client().call<FlushReply>(
        Verb::kFlush, Flush{static_cast<uint8_t>(FlushLevel::kDurable)});
    ASSERT_TRUE(durable.ok()) << durable.error().message << daemon.log();
    EXPECT_EQ(durable.value().sentences, kSentences);
    // A second document, put and not flushed: it may be lost, whole or from its end.
    TestEngine other(kTokens, kOldSeed);
    ASSERT_EQ(open_engine(other, daemon, "other"), "");
    other.compute();
    ASSERT_EQ(put_pieces(other, 0, 4 * kPiece), "") << daemon.log();
    daemon.kill();
  }

  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(kTokens, kSeed);
  ASSERT_EQ(open_engine(engine, daemon, "second"), "") << daemon.log();
  const Result<MatchReply> match = engine.match(/*adopt=*/true);
  ASSERT_TRUE(match.ok()) << match.error().message;
  EXPECT_EQ(match.value().outcome, static_cast<uint8_t>(MatchOutcome::kHit));
  EXPECT_EQ(match.value().hit_tokens, kCovered);
  EXPECT_EQ(match.value().nvme_tokens, kCovered);
  Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
  ASSERT_TRUE(reader.ok()) << reader.error().message << daemon.log();
  expect_same(read_steps(reader.value(), all_steps()), expected);
  EXPECT_GT(reader.value().hits().nvme, 0U);

  TestEngine other(kTokens, kOldSeed);
  ASSERT_EQ(open_engine(other, daemon, "other again"), "");
  const Result<MatchReply> left = other.match(/*adopt=*/false);
  ASSERT_TRUE(left.ok());
  EXPECT_LE(left.value().hit_tokens, 4 * kPiece * 40);
  if (left.value().hit_tokens > 0) {
    ASSERT_TRUE(other.load(0, left.value().hit_tokens / 40).ok()) << daemon.log();
    EXPECT_EQ(other.wrong_values(0, left.value().hit_tokens), 0U);
  }
  expect_no_errors(engine.client().stat());
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// --- two engine processes ------------------------------------------------------------------------

void say_match(Line& line, TestEngine& engine) {
  const Result<MatchReply> match = engine.match(/*adopt=*/false);
  line.say(match.ok() ? std::vector<uint64_t>{match.value().outcome, match.value().hit_tokens,
                                              match.value().pending_tokens}
                      : std::vector<uint64_t>{});
}

// The other engine's process: finds the document while it is being put, then reads it backwards.
void follow(Line& line, const DaemonProcess& daemon) {
  TestEngine engine(kTokens, kSeed);
  std::string failed = open_engine(engine, daemon, "follower");
  line.say_text(failed);
  uint64_t go = 0;
  line.hear(go);  // some sentences are reserved
  say_match(line, engine);
  const Result<PutOutcomes> reserved = engine.reserve(0, kPiece);
  line.say(reserved.ok() ? reserved.value().outcomes : std::vector<uint8_t>{});
  line.hear(go);  // and committed
  say_match(line, engine);

  uint32_t hit = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (failed.empty() && hit < kCovered) {
    const Result<MatchReply> match = engine.match(/*adopt=*/false);
    if (!match.ok() || match.value().hit_tokens < hit ||
        std::chrono::steady_clock::now() > deadline) {
      failed = "match after a hit of " + std::to_string(hit) + " tokens: " +
               (match.ok() ? std::to_string(match.value().hit_tokens) : match.error().message);
      break;
    }
    hit = match.value().hit_tokens;
  }
  Readings readings;
  if (failed.empty()) {
    Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
    failed = reader.ok() ? "" : reader.error().message;
    if (reader.ok()) {
      line.say_text("");  // ready
      std::vector<uint32_t> backwards = all_steps();
      std::reverse(backwards.begin(), backwards.end());
      readings = read_steps(reader.value(), backwards);
      failed = readings.failed;
    }
  }
  line.say_text(failed);
  for (const Reading& reading : readings.of_step) {
    line.say(reading.covered_to);
    line.say(reading.entries);
    line.say(reading.unread_bits);
    line.say(reading.bytes_hash);
  }
}

Readings hear_readings(Line& line) {
  Readings readings;
  readings.failed = line.hear_text();
  for (Reading& reading : readings.of_step) {
    uint64_t covered = 0;
    if (!line.hear(covered) || !line.hear(reading.entries) || !line.hear(reading.unread_bits) ||
        !line.hear(reading.bytes_hash)) {
      readings.failed += " and the process is gone";
      return readings;
    }
    reading.covered_to = static_cast<uint32_t>(covered);
  }
  return readings;
}

// Goal: two engine processes on one document at once: one puts it, the other sees it come, both
// read it at the same time through a host tier that holds a fifth of it, and read the same.
TEST(TwoProcessesTest, OnePutsTheOtherFollowsBothRead) {
  DaemonProcess daemon({.host_budget = "2MiB",
                        .host_slab = "64KiB",
                        .nvme_size = "32MiB",
                        .device_kind = "emulated",
                        .device_budget = "2MiB"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  EngineProcess other([&](Line& line) { follow(line, daemon); });
  Line& line = other.line();
  ASSERT_EQ(line.hear_text(), "") << daemon.log();

  TestEngine engine(kTokens, kSeed);
  ASSERT_EQ(open_engine(engine, daemon, "putter"), "") << daemon.log();
  engine.compute();
  ASSERT_TRUE(all_are(engine.reserve(0, kPiece), PutOutcome::kReserved));
  line.say(1);
  std::vector<uint64_t> match;
  ASSERT_TRUE(line.hear(match));
  EXPECT_THAT(match, testing::ElementsAre(static_cast<uint64_t>(MatchOutcome::kPending), 0U,
                                          engine.end_token(kPiece - 1)));
  std::vector<uint8_t> outcomes;
  ASSERT_TRUE(line.hear(outcomes));
  EXPECT_THAT(outcomes, testing::AllOf(testing::SizeIs(kPiece),
                                       testing::Each(static_cast<uint8_t>(PutOutcome::kPending))));
  ASSERT_TRUE(engine.write(0, kPiece, {0, 6}).ok());
  ASSERT_TRUE(all_are(engine.commit(0, kPiece), PutOutcome::kCommitted));
  line.say(1);
  ASSERT_TRUE(line.hear(match));
  EXPECT_THAT(match, testing::ElementsAre(static_cast<uint64_t>(MatchOutcome::kHit),
                                          engine.end_token(kPiece - 1), testing::_));

  ASSERT_EQ(put_pieces(engine, kPiece, kSentences), "") << daemon.log();
  Result<WindowReader> reader = WindowReader::open(engine, three_percent_window(), /*lag=*/2);
  ASSERT_TRUE(reader.ok()) << reader.error().message << daemon.log();
  ASSERT_EQ(line.hear_text(), "") << daemon.log();  // it is ready too
  const Readings ours = read_steps(reader.value(), all_steps());
  ASSERT_EQ(ours.failed, "") << daemon.log();
  expect_same(hear_readings(line), ours);
  const nlohmann::json status = engine.client().stat();
  SCOPED_TRACE(status.dump(1));
  EXPECT_GT(status["prefetch"]["hits"]["nvme"], 0);
  EXPECT_EQ(status["directory"]["sentences"], kSentences);
  expect_no_errors(status);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// The process of another user: nothing of the first user's is there.
void stranger(Line& line, const DaemonProcess& daemon) {
  if (::setgid(65534) != 0 || ::setuid(65534) != 0) {
    line.say_text("cannot become another user");
    return;
  }
  TestEngine engine(kTokens, kSeed);
  line.say_text(open_engine(engine, daemon, "stranger"));
  struct stat arena {};
  ::fstat(engine.client().hello_fds()[1].get(), &arena);
  line.say(arena.st_ino);
  say_match(line, engine);
  const Result<PutOutcomes> reserved = engine.reserve(0, kPiece);
  line.say(reserved.ok() ? reserved.value().outcomes : std::vector<uint8_t>{});
  engine.compute();
  std::string failed;
  if (!engine.write(0, kPiece, {0, 6}).ok() ||
      !all_are(engine.commit(0, kPiece), PutOutcome::kCommitted)) {
    failed = "the stranger cannot put";
  }
  say_match(line, engine);
  engine.clear();
  const Result<LoadReply> load = engine.load(0, kPiece);
  if (!load.ok() || engine.wrong_values(0, engine.end_token(kPiece - 1)) != 0) {
    failed += " the stranger does not get back what it put";
  }
  const nlohmann::json contexts = engine.client().stat(StatKind::kContexts);
  line.say_text(failed + (contexts.size() == 1 ? "" : contexts.dump()));
}

// Goal: what one user stored, no other user finds, sees pending or reads; each has host memory of
// its own.
TEST(TwoProcessesTest, UsersDoNotShare) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root, to become another user";
  }
  DaemonProcess daemon(
      {.host_budget = "4MiB", .host_slab = "64KiB", .nvme_size = "32MiB", .device_kind = "none"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  ASSERT_EQ(::chmod(daemon.directory().c_str(), 0711), 0);
  ASSERT_EQ(::chmod(daemon.socket().c_str(), 0666), 0);
  TestEngine engine(kTokens, kSeed);
  ASSERT_EQ(open_engine(engine, daemon, "first user"), "") << daemon.log();
  engine.compute();
  ASSERT_EQ(put_pieces(engine, 0, 4 * kPiece), "") << daemon.log();
  ASSERT_TRUE(all_are(engine.reserve(4 * kPiece, kPiece), PutOutcome::kReserved));

  EngineProcess other([&](Line& line) { stranger(line, daemon); });
  Line& line = other.line();
  ASSERT_EQ(line.hear_text(), "") << daemon.log();
  struct stat arena {};
  ASSERT_EQ(::fstat(engine.client().hello_fds()[1].get(), &arena), 0);
  uint64_t inode = 0;
  ASSERT_TRUE(line.hear(inode));
  EXPECT_NE(inode, arena.st_ino);
  std::vector<uint64_t> match;
  ASSERT_TRUE(line.hear(match));
  EXPECT_THAT(match, testing::ElementsAre(static_cast<uint64_t>(MatchOutcome::kMiss), 0U, 0U));
  std::vector<uint8_t> outcomes;
  ASSERT_TRUE(line.hear(outcomes));
  EXPECT_THAT(outcomes, testing::AllOf(testing::SizeIs(kPiece),
                                       testing::Each(static_cast<uint8_t>(PutOutcome::kReserved))));
  ASSERT_TRUE(line.hear(match));
  EXPECT_THAT(match, testing::ElementsAre(static_cast<uint64_t>(MatchOutcome::kHit),
                                          engine.end_token(kPiece - 1), testing::_));
  EXPECT_EQ(line.hear_text(), "");
  const Result<MatchReply> mine = engine.match(/*adopt=*/false);
  ASSERT_TRUE(mine.ok());
  EXPECT_EQ(mine.value().hit_tokens, engine.end_token(4 * kPiece - 1));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

}  // namespace
}  // namespace skv::test
