#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/daemon/daemon_fixture.h"
#include "tests/daemon/test_engine.h"

namespace skv::test {
namespace {

constexpr auto kCommitted = static_cast<uint8_t>(PutOutcome::kCommitted);
constexpr auto kExists = static_cast<uint8_t>(PutOutcome::kExists);

size_t count_of(const PutOutcomes& outcomes, uint8_t value) {
  return static_cast<size_t>(std::count(outcomes.outcomes.begin(), outcomes.outcomes.end(), value));
}

WindowOpen quarter_window() {
  WindowOpen counts;
  counts.budget_blocks = 12;
  counts.sink_blocks = 1;
  counts.recent_blocks = 2;
  counts.resident_blocks = 40;
  return counts;
}

// Goal: the whole path in a real process, on every kind of device: what one engine puts, another
// finds, reads through a window and by load; after a restart it comes back from NVMe, every byte
// as it was put.
class EndToEndTest : public testing::TestWithParam<const char*> {};

TEST_P(EndToEndTest, PutMatchWindowLoadFlushRestart) {
  DaemonProcess daemon({.nvme_size = "64MiB", .device_kind = GetParam()});
  ASSERT_TRUE(daemon.start()) << daemon.log();

  constexpr uint32_t kTokens = 820;
  uint32_t covered = 0;
  {
    TestEngine first(kTokens);
    ASSERT_TRUE(first.open(daemon.socket())) << daemon.log();
    ASSERT_TRUE(first.append_all());
    ASSERT_GT(first.sentence_count(), 15U);
    covered = first.end_token(first.sentence_count() - 1);
    const Result<MatchReply> miss = first.match(/*adopt=*/false);
    ASSERT_TRUE(miss.ok()) << miss.error().message;
    EXPECT_EQ(miss.value().outcome, static_cast<uint8_t>(MatchOutcome::kMiss));

    first.compute();
    const Result<PutOutcomes> put = first.put(0, first.sentence_count());
    ASSERT_TRUE(put.ok()) << put.error().message << daemon.log();
    EXPECT_EQ(count_of(put.value(), kCommitted), first.sentence_count());
    // Again: all there already.
    const Result<PutOutcomes> again = first.reserve(0, first.sentence_count());
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(count_of(again.value(), kExists), first.sentence_count());

    // A second engine at the same time.
    TestEngine second(kTokens);
    ASSERT_TRUE(second.open(daemon.socket()));
    ASSERT_TRUE(second.append_all());
    const Result<MatchReply> hit = second.match(/*adopt=*/true);
    ASSERT_TRUE(hit.ok()) << hit.error().message;
    EXPECT_EQ(hit.value().outcome, static_cast<uint8_t>(MatchOutcome::kHit));
    EXPECT_EQ(hit.value().hit_tokens, covered);
    EXPECT_EQ(hit.value().host_tokens, covered);

    const Result<TestEngine::Window> window = second.open_window(quarter_window());
    ASSERT_TRUE(window.ok()) << window.error().message << daemon.log();
    Result<ClientChannel> channel = second.open_channel();
    ASSERT_TRUE(channel.ok()) << channel.error().message;
    const Result<PrefetchRow> done = second.prefetch(channel.value(), window.value(), 300);
    ASSERT_TRUE(done.ok()) << done.error().message << daemon.log();
    EXPECT_EQ(done.value().status, 0);
    EXPECT_EQ(done.value().covered_to, covered);
    EXPECT_EQ(done.value().misses, 0U);
    const Result<uint32_t> checked = second.check_tables(window.value());
    ASSERT_TRUE(checked.ok()) << checked.error().message;
    EXPECT_EQ(checked.value(), done.value().read_blocks);
    EXPECT_EQ(checked.value(), 6U * 2 * 15);

    // Whole sentences back, copied and in place.
    second.clear();
    const Result<LoadReply> load = second.load(0, second.sentence_count());
    ASSERT_TRUE(load.ok()) << load.error().message;
    EXPECT_EQ(second.wrong_values(0, covered), 0U);
    const Result<LoadReply> in_place = second.load(3, 1, /*in_place=*/true);
    ASSERT_TRUE(in_place.ok()) << in_place.error().message;
    EXPECT_NE(in_place.value().lease, 0U);
    Result<MappedMemory> arena =
        MappedMemory::map(second.client().hello_fds()[1].get(), second.client().hello().host_bytes,
                          MappedMemory::Access::kReadOnly);
    ASSERT_TRUE(arena.ok()) << arena.error().message;
    const BodyLayout& layout = second.layout();
    const SentenceSpan span = second.spans()[3];
    for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
      const uint64_t chunk = in_place.value().extents[layout.chunk_of(layer)];
      for (uint32_t block = 0; block < span.block_count; ++block) {
        EXPECT_TRUE(second.block_is(
            arena.value().data() + chunk + layout.block_offset(layer, 1, block, span.block_count),
            layer, 1, span.first_block + block));
      }
    }
    EXPECT_TRUE(second.client().call<Empty>(Verb::kRelease, Release{in_place.value().lease}).ok());

    const Result<FlushReply> durable = second.client().call<FlushReply>(
        Verb::kFlush, Flush{static_cast<uint8_t>(FlushLevel::kDurable)});
    ASSERT_TRUE(durable.ok()) << durable.error().message;
    EXPECT_EQ(durable.value().sentences, first.sentence_count());
  }
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
  EXPECT_THAT(daemon.log(), testing::Not(testing::HasSubstr("critical")));

  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine third(kTokens);
  ASSERT_TRUE(third.open(daemon.socket())) << daemon.log();
  ASSERT_TRUE(third.append_all());
  const Result<MatchReply> restarted = third.match(/*adopt=*/true);
  ASSERT_TRUE(restarted.ok());
  EXPECT_EQ(restarted.value().hit_tokens, covered);
  EXPECT_EQ(restarted.value().nvme_tokens, covered);
  third.clear();
  const Result<LoadReply> load = third.load(0, third.sentence_count());
  ASSERT_TRUE(load.ok()) << load.error().message << daemon.log();
  EXPECT_GT(load.value().nvme_chunks, 0U);
  EXPECT_EQ(third.wrong_values(0, covered), 0U);
  const Result<TestEngine::Window> window = third.open_window(quarter_window());
  ASSERT_TRUE(window.ok()) << window.error().message;
  Result<ClientChannel> channel = third.open_channel();
  ASSERT_TRUE(channel.ok());
  const Result<PrefetchRow> done = third.prefetch(channel.value(), window.value(), 300);
  ASSERT_TRUE(done.ok()) << done.error().message << daemon.log();
  EXPECT_EQ(done.value().covered_to, covered);
  const Result<uint32_t> checked = third.check_tables(window.value());
  ASSERT_TRUE(checked.ok()) << checked.error().message;
  EXPECT_EQ(checked.value(), 6U * 2 * 15);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

INSTANTIATE_TEST_SUITE_P(Devices, EndToEndTest, testing::Values("none", "emulated"));

// Goal: an open window of one session is fed by what another session commits.
TEST(SharedTest, WindowGrowsByAnotherSessionsCommit) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine writer(820);
  TestEngine reader(820);
  ASSERT_TRUE(writer.open(daemon.socket()));
  ASSERT_TRUE(reader.open(daemon.socket()));
  ASSERT_TRUE(writer.append_all());
  ASSERT_TRUE(reader.append_all());
  writer.compute();
  ASSERT_TRUE(writer.put(0, 5).ok());

  const Result<TestEngine::Window> window = reader.open_window(quarter_window());
  ASSERT_TRUE(window.ok()) << window.error().message;
  Result<ClientChannel> channel = reader.open_channel();
  ASSERT_TRUE(channel.ok());
  const Result<PrefetchRow> before = reader.prefetch(channel.value(), window.value(), 10);
  ASSERT_TRUE(before.ok());
  EXPECT_EQ(before.value().covered_to, reader.end_token(4));

  ASSERT_TRUE(writer.put(5, writer.sentence_count() - 5).ok());
  const Result<PrefetchRow> after = reader.prefetch(channel.value(), window.value(), 500);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after.value().covered_to, reader.end_token(reader.sentence_count() - 1));
  const Result<uint32_t> checked = reader.check_tables(window.value());
  EXPECT_TRUE(checked.ok()) << checked.error().message;
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// Goal: budgets of a tenth of the data: the same bytes through all tiers, with hits of host and
// NVMe and demotions above zero.
TEST(SharedTest, SmallHostBudgetReadsTheSameBytes) {
  DaemonProcess daemon({.host_budget = "2MiB",
                        .host_slab = "128KiB",
                        .nvme_size = "64MiB",
                        .device_kind = "emulated"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  constexpr uint32_t kTokens = 2020;  // 12 MiB of bodies
  TestEngine engine(kTokens);
  ASSERT_TRUE(engine.open(daemon.socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  for (uint32_t first = 0; first < engine.sentence_count(); first += 3) {
    const uint32_t count = std::min(3U, engine.sentence_count() - first);
    const Result<PutOutcomes> put = engine.put(first, count);
    ASSERT_TRUE(put.ok()) << put.error().message << daemon.log();
    ASSERT_EQ(count_of(put.value(), kCommitted), count) << "at " << first << daemon.log();
  }
  const uint32_t covered = engine.end_token(engine.sentence_count() - 1);
  WindowOpen counts = quarter_window();
  counts.resident_blocks = 30;
  const Result<TestEngine::Window> window = engine.open_window(counts);
  ASSERT_TRUE(window.ok()) << window.error().message << daemon.log();
  Result<ClientChannel> channel = engine.open_channel();
  ASSERT_TRUE(channel.ok());
  for (uint32_t token = 50; token < covered; token += 400) {
    const Result<PrefetchRow> done = engine.prefetch(channel.value(), window.value(), token);
    ASSERT_TRUE(done.ok()) << done.error().message << daemon.log();
    EXPECT_EQ(done.value().status, 0);
    EXPECT_EQ(done.value().misses, 0U);
    EXPECT_EQ(done.value().covered_to, covered);
    const Result<uint32_t> checked = engine.check_tables(window.value());
    ASSERT_TRUE(checked.ok()) << checked.error().message;
    auto* header = reinterpret_cast<WindowHeader*>(window.value().tables.data());
    header->readers_done.store(done.value().version);
  }
  engine.clear();
  const Result<LoadReply> load = engine.load(0, engine.sentence_count());
  ASSERT_TRUE(load.ok()) << load.error().message << daemon.log();
  EXPECT_EQ(engine.wrong_values(0, covered), 0U);
  const nlohmann::json status = engine.client().stat();
  EXPECT_GT(status["prefetch"]["hits"]["host"].get<uint64_t>() +
                status["prefetch"]["hits"]["device"].get<uint64_t>(),
            0U);
  EXPECT_GT(status["prefetch"]["hits"]["nvme"], 0U) << status.dump(1);
  EXPECT_GT(status["placement"]["demotions"], 0U);
  EXPECT_LE(status["tiers"]["host"]["peak_bytes"], 2U << 20);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// Goal: vectors made by the engine are checked and used like derived ones.
TEST(SharedTest, VectorsPutIsValidatedAndFeedsWindows) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(420);
  ASSERT_TRUE(engine.open(daemon.socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  const uint32_t count = engine.sentence_count();
  ASSERT_TRUE(engine.reserve(0, count).ok());
  ASSERT_TRUE(engine.write(0, count, {0, 6}).ok());
  const Result<PutOutcomes> committed = engine.commit(0, count, /*derive=*/false);
  ASSERT_TRUE(committed.ok());
  ASSERT_EQ(count_of(committed.value(), kCommitted), count);

  const auto vectors_put = [&](uint64_t bytes, uint32_t first) {
    VectorsPut message;
    message.context = engine.context_id();
    message.first_sentence = first;
    message.sentence_count = 1;
    message.memory = engine.memory_id();
    message.bytes = bytes;
    return engine.client().call<PutOutcomes>(Verb::kVectorsPut, message);
  };
  const Result<PutOutcomes> wrong_size = vectors_put(17, 0);
  ASSERT_FALSE(wrong_size.ok());
  EXPECT_EQ(wrong_size.error().code, ErrorCode::kInvalidArgument);

  // All derived but the first; a window covers nothing until that has vectors too.
  const Result<PutOutcomes> derived = engine.client().call<PutOutcomes>(
      Verb::kVectorsDerive, VectorsDerive{engine.context_id(), 1, count - 1});
  ASSERT_TRUE(derived.ok()) << derived.error().message;
  EXPECT_EQ(count_of(derived.value(), kCommitted), count - 1);
  const Result<TestEngine::Window> window = engine.open_window(quarter_window());
  ASSERT_TRUE(window.ok());
  Result<ClientChannel> channel = engine.open_channel();
  ASSERT_TRUE(channel.ok());
  Result<PrefetchRow> done = engine.prefetch(channel.value(), window.value(), 10);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(done.value().covered_to, 0U);

  const Result<PutOutcomes> first = engine.client().call<PutOutcomes>(
      Verb::kVectorsDerive, VectorsDerive{engine.context_id(), 0, count});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(count_of(first.value(), kCommitted), 1U);
  EXPECT_EQ(count_of(first.value(), kExists), count - 1);
  done = engine.prefetch(channel.value(), window.value(), 10);
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(done.value().covered_to, engine.end_token(count - 1));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// Goal: what nothing needs goes; what a window reads stays.
TEST(SharedTest, DropKeepsWhatIsLeased) {
  DaemonProcess daemon;
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(420);
  ASSERT_TRUE(engine.open(daemon.socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  const uint32_t count = engine.sentence_count();
  ASSERT_TRUE(engine.put(0, count).ok());
  const Result<TestEngine::Window> window = engine.open_window(quarter_window());
  ASSERT_TRUE(window.ok());
  const Result<DropReply> kept =
      engine.client().call<DropReply>(Verb::kDrop, Drop{engine.context_id(), 0});
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept.value().dropped, 0U);
  EXPECT_EQ(kept.value().kept, count);
  ASSERT_TRUE(engine.client()
                  .call<Empty>(Verb::kWindowClose, WindowClose{window.value().reply.window})
                  .ok());
  const Result<DropReply> dropped =
      engine.client().call<DropReply>(Verb::kDrop, Drop{engine.context_id(), 2});
  ASSERT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.value().dropped, count - 2);
  const Result<MatchReply> match = engine.match(/*adopt=*/false);
  ASSERT_TRUE(match.ok());
  EXPECT_EQ(match.value().hit_tokens, engine.end_token(1));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// The device worker of a daemon, its only child; -1 while there is none.
pid_t worker_of(pid_t daemon) {
  pid_t child = -1;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(daemon) + "/task")) {
    std::ifstream children(task.path() / "children");
    pid_t found = -1;
    if (children >> found) {
      child = found;
    }
  }
  return child;
}

// Goal: the death of the device costs its windows, named in an event, and nothing else: bodies
// stay, and the next window starts the device again.
TEST(SharedTest, DeviceDeathCostsWindowsOnly) {
  DaemonProcess daemon({.device_kind = "emulated"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(420);
  ASSERT_TRUE(engine.open(daemon.socket()));
  ASSERT_TRUE(engine.append_all());
  engine.compute();
  ASSERT_TRUE(engine.put(0, engine.sentence_count()).ok());
  Result<ClientChannel> channel = engine.open_channel();
  ASSERT_TRUE(channel.ok());
  const Result<TestEngine::Window> lost = engine.open_window(quarter_window());
  ASSERT_TRUE(lost.ok()) << lost.error().message;
  ASSERT_TRUE(engine.prefetch(channel.value(), lost.value(), 100).ok());

  const pid_t worker = worker_of(daemon.pid());
  ASSERT_GT(worker, 0);
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  const Result<Frame> event = engine.client().receive();
  ASSERT_TRUE(event.ok()) << event.error().message << daemon.log();
  ASSERT_EQ(event.value().header.verb, static_cast<uint16_t>(Verb::kWindowLost));
  const Result<WindowLost> which = decode_body<WindowLost>(event.value().body);
  ASSERT_TRUE(which.ok());
  EXPECT_EQ(which.value().window, lost.value().reply.window);
  const Result<PrefetchRow> stale = engine.prefetch(channel.value(), lost.value(), 100);
  ASSERT_TRUE(stale.ok()) << stale.error().message;
  EXPECT_EQ(stale.value().status, static_cast<int32_t>(ErrorCode::kStale));
  EXPECT_TRUE(
      engine.client().call<Empty>(Verb::kWindowClose, WindowClose{lost.value().reply.window}).ok());

  const Result<TestEngine::Window> window = engine.open_window(quarter_window());
  ASSERT_TRUE(window.ok()) << window.error().message << daemon.log();
  const Result<PrefetchRow> done = engine.prefetch(channel.value(), window.value(), 100);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(done.value().status, 0);
  const Result<uint32_t> checked = engine.check_tables(window.value());
  EXPECT_TRUE(checked.ok()) << checked.error().message;
  EXPECT_EQ(engine.client().stat()["tiers"]["device"]["lost"], 1);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// Goal: a window that the tier cannot hold is refused with both numbers, and costs nothing.
TEST(SharedTest, WindowBeyondTheDeviceBudgetIsRefused) {
  DaemonProcess daemon({.device_kind = "emulated", .device_budget = "1MiB"});
  ASSERT_TRUE(daemon.start()) << daemon.log();
  TestEngine engine(420);
  ASSERT_TRUE(engine.open(daemon.socket()));
  ASSERT_TRUE(engine.append_all());
  WindowOpen counts = quarter_window();
  counts.resident_blocks = 4000;  // x 12 x 4 KiB
  const Result<TestEngine::Window> refused = engine.open_window(counts);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
  EXPECT_THAT(refused.error().message, testing::HasSubstr("1048576"));
  const nlohmann::json session = engine.client().stat(StatKind::kSession);
  EXPECT_EQ(session["windows"], 0);
  EXPECT_EQ(session["feeds"], 0);
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

}  // namespace
}  // namespace skv::test
