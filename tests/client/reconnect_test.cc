// A daemon that goes away, comes back, keeps silent or comes back with something else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>

#include "tests/client/client_fixture.h"

namespace skv::test {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

class ReconnectTest : public ClientTest {
 protected:
  void restart() {
    server.stop();
    server.start();
    server.forget_received();
  }
  uint32_t connections() {
    auto info = sized<skv_session_info>();
    EXPECT_EQ(skv_session_get_info(session, &info), 0);
    return info.connections;
  }
};

TEST_F(ReconnectTest, AContextIsReplayedOnItsNextUse) {
  const std::array<uint8_t, 32> extra = {1, 2, 3};
  ASSERT_EQ(append(20, 10), 0);
  ASSERT_EQ(append(20, 30), 0);
  ASSERT_EQ(append(10, 40, extra.data()), 0);
  restart();
  ASSERT_EQ(append(1, 51, extra.data()), 0) << skv_last_error();

  EXPECT_EQ(server.count(Verb::kHello), 1U);
  EXPECT_EQ(server.count(Verb::kModelOpen), 1U);
  EXPECT_EQ(server.count(Verb::kMatch), 0U);  // nothing was stored or adopted
  const auto appends = server.received<ContextAppend>(Verb::kContextAppend);
  ASSERT_EQ(appends.size(), 3U);
  EXPECT_EQ(appends[0].tokens.size(), 40U);  // one run of the same extra
  EXPECT_EQ(appends[0].ends_final_to, 40U);
  EXPECT_EQ(appends[0].extra, Digest{});
  EXPECT_EQ(appends[1].first_position, 40U);
  EXPECT_EQ(appends[1].tokens.size(), 10U);
  EXPECT_EQ(appends[1].ends_final_to, 40U);
  EXPECT_EQ(appends[1].extra.bytes[2], 3);
  EXPECT_EQ(appends[2].tokens, (std::vector<uint32_t>{50}));
  EXPECT_EQ(context_info().changes, 0U);
  EXPECT_EQ(connections(), 2U);
}

// A context that stored sentences takes the stored boundaries again; those differ here.
TEST_F(ReconnectTest, ChangedSentencesAreStaleUntilLookedAt) {
  ASSERT_EQ(append(64), 0);
  ASSERT_EQ(skv_put_commit(context, 0, 2, 1, nullptr), 0);
  server.set_path_blocks({8});
  restart();
  EXPECT_EQ(skv_put_reserve(context, 0, 1, nullptr), SKV_E_STALE);
  EXPECT_THAT(skv_last_error(), HasSubstr("sentences of this context changed"));
  EXPECT_EQ(append(1), SKV_E_STALE);
  auto options = sized<skv_window_options>();
  options.budget_blocks = 1;
  skv_window window = nullptr;
  EXPECT_EQ(skv_window_open(context, &options, &window), SKV_E_STALE);
  const skv_context_info info = context_info();
  EXPECT_EQ(info.changes, 1U);
  EXPECT_EQ(info.sentence_count, 1U);
  EXPECT_EQ(info.closed_blocks, 8U);
  EXPECT_EQ(skv_put_reserve(context, 0, 1, nullptr), 0) << skv_last_error();
}

TEST_F(ReconnectTest, UnchangedSentencesGoOn) {
  ASSERT_EQ(append(64), 0);
  ASSERT_EQ(skv_put_commit(context, 0, 2, 1, nullptr), 0);
  server.set_path_blocks({4, 4});
  restart();
  EXPECT_EQ(skv_put_reserve(context, 0, 1, nullptr), 0) << skv_last_error();
  EXPECT_EQ(server.received<Match>(Verb::kMatch).at(0).adopt, 1);
  EXPECT_EQ(context_info().changes, 0U);
}

TEST_F(ReconnectTest, WindowsLeasesAndStagingEndWithTheirConnection) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  ASSERT_EQ(prefetch(window), 0) << skv_last_error();
  auto table = sized<skv_table>();
  ASSERT_EQ(skv_window_table(window, 0, &table), 0);
  auto load = sized<skv_load_options>();
  load.sentence_count = 1;
  load.layer_count = 1;
  skv_lease lease = nullptr;
  ASSERT_EQ(skv_load_in_place(context, &load, &lease, nullptr), 0) << skv_last_error();
  skv_memory staging = nullptr;
  ASSERT_EQ(skv_session_staging(session, &staging), 0);

  restart();
  EXPECT_EQ(prefetch(window), SKV_E_DISCONNECTED);  // found out here
  EXPECT_EQ(prefetch(window), SKV_E_STALE);
  EXPECT_EQ(append(1), 0) << skv_last_error();  // connects again
  EXPECT_EQ(prefetch(window), SKV_E_STALE);
  auto newer = sized<skv_table>();
  EXPECT_EQ(skv_window_table(window, 0, &newer), SKV_E_STALE);
  EXPECT_EQ(table.slot[0], 0U);  // what was mapped is still readable
  auto where = sized<skv_leased_layer>();
  EXPECT_EQ(skv_lease_get_layer(lease, 0, 0, &where), SKV_E_STALE);
  EXPECT_EQ(skv_lease_release(lease), 0);
  EXPECT_EQ(server.count(Verb::kRelease), 0U);
  auto strided = sized<skv_strided_kv>();
  strided.memory = staging;
  auto write = sized<skv_put_write_options>();
  write.source = &strided;
  EXPECT_EQ(skv_put_write(context, &write, nullptr), SKV_E_STALE);
  EXPECT_EQ(skv_memory_close(staging), 0);
  EXPECT_EQ(skv_window_close(window), 0);
  EXPECT_EQ(server.count(Verb::kWindowClose), 0U);

  window = open_window();
  EXPECT_EQ(prefetch(window), 0) << skv_last_error();
}

// A thread that has a channel and sits idle keeps nothing of a daemon that is gone.
TEST_F(ReconnectTest, HostMemoryIsLetGoOnceConnectedAgain) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  std::atomic<int> served{-1};
  std::atomic<bool> leave{false};
  std::thread idle([&] {
    served = prefetch(window);
    served.notify_all();
    leave.wait(false);
  });
  served.wait(-1);
  EXPECT_EQ(served, 0);
  EXPECT_EQ(skv_window_close(window), 0);
  auto info = sized<skv_session_info>();
  ASSERT_EQ(skv_session_get_info(session, &info), 0);
  auto* const host = const_cast<void*>(info.host);
  skv_hold hold = nullptr;
  ASSERT_EQ(skv_session_hold(session, &hold), 0);

  restart();
  EXPECT_EQ(append(1), 0) << skv_last_error();
  unsigned char resident = 0;
  EXPECT_EQ(::mincore(host, 4096, &resident), 0);  // the hold
  EXPECT_EQ(skv_hold_release(hold), 0);
  EXPECT_EQ(::mincore(host, 4096, &resident), -1);
  EXPECT_EQ(errno, ENOMEM);
  leave = true;
  leave.notify_all();
  idle.join();
}

TEST_F(ReconnectTest, MemoryIsRegisteredAgainWhenItIsUsed) {
  ASSERT_EQ(append(64), 0);
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 8192, &memory), 0);
  restart();
  auto strided = sized<skv_strided_kv>();
  strided.memory = memory;
  auto write = sized<skv_put_write_options>();
  write.source = &strided;
  EXPECT_EQ(skv_put_write(context, &write, nullptr), 0) << skv_last_error();
  const auto registered = server.received<MemoryRegister>(Verb::kMemoryRegister);
  ASSERT_EQ(registered.size(), 1U);
  EXPECT_EQ(registered[0].bytes, 8192U);
}

TEST_F(ReconnectTest, ACallThatTheDaemonDiesUnderIsAMiss) {
  ASSERT_EQ(append(64), 0);
  server.on(Verb::kFlush, {.hang_up = true}, 1);
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, nullptr), SKV_E_DISCONNECTED);
  uint64_t sentences = 0;
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, &sentences), 0) << skv_last_error();
  EXPECT_EQ(sentences, 7U);
  EXPECT_EQ(connections(), 2U);
}

TEST_F(ReconnectTest, AppendsHitByARestartCanBeRepeated) {
  server.on(Verb::kContextAppend, {.hang_up = true}, 1);
  std::vector<uint32_t> tokens(40, 9);
  auto options = sized<skv_append_options>();
  options.first_position = 0;
  options.tokens = tokens.data();
  options.token_count = 40;
  EXPECT_EQ(skv_context_append(context, &options, nullptr), SKV_E_DISCONNECTED);
  EXPECT_EQ(context_info().token_count, 0U);
  EXPECT_EQ(skv_context_append(context, &options, nullptr), 0) << skv_last_error();
  EXPECT_EQ(skv_context_append(context, &options, nullptr), 0) << skv_last_error();
  EXPECT_EQ(context_info().token_count, 40U);
}

TEST_F(ReconnectTest, AnAppendAnsweredLateIsCountedOnce) {
  ASSERT_EQ(skv_session_close(session), 0);
  open_session(/*call_timeout_ms=*/100);
  ASSERT_EQ(skv_model_open(session, &model_description.descriptor, &model), 0);
  ASSERT_EQ(skv_context_open(model, nullptr, &context), 0);
  server.on(Verb::kContextAppend, {.late = true}, 1);
  std::vector<uint32_t> tokens(40, 9);
  auto options = sized<skv_append_options>();
  options.first_position = 0;
  options.tokens = tokens.data();
  options.token_count = 40;
  EXPECT_EQ(skv_context_append(context, &options, nullptr), SKV_E_TIMEOUT);
  EXPECT_EQ(skv_context_append(context, &options, nullptr), SKV_E_TIMEOUT);  // still unsettled
  server.release_late();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(skv_context_append(context, &options, nullptr), 0) << skv_last_error();
  EXPECT_EQ(context_info().token_count, 40U);
  EXPECT_EQ(context_info().sentence_count, 1U);
}

TEST_F(ReconnectTest, WhatATimedOutCallOpenedIsClosedAgain) {
  ASSERT_EQ(skv_session_close(session), 0);
  open_session(/*call_timeout_ms=*/100);
  ASSERT_EQ(skv_model_open(session, &model_description.descriptor, &model), 0);
  server.on(Verb::kContextOpen, {.late = true}, 1);
  EXPECT_EQ(skv_context_open(model, nullptr, &context), SKV_E_TIMEOUT);
  server.release_late();
  for (int i = 0; i < 100 && server.count(Verb::kContextClose) == 0; ++i) {
    ASSERT_EQ(skv_flush(session, SKV_FLUSH_HOST, 5'000, nullptr), 0) << skv_last_error();
  }
  EXPECT_EQ(server.count(Verb::kContextClose), 1U);
}

TEST_F(ReconnectTest, ASilentDaemonIsATimeout) {
  server.on(Verb::kFlush, {.silent = true}, 1);
  const Clock::time_point start = Clock::now();
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 100, nullptr), SKV_E_TIMEOUT);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 5'000, nullptr), 0) << skv_last_error();
}

TEST_F(ReconnectTest, AnUnansweredPrefetchIsATimeoutAndTheNextOneWorks) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  ASSERT_EQ(prefetch(window), 0) << skv_last_error();
  server.set_prefetch_silent(true);
  EXPECT_EQ(prefetch(window, 50), SKV_E_TIMEOUT);
  server.set_prefetch_silent(false);
  EXPECT_EQ(prefetch(window, 5'000), 0) << skv_last_error();
}

TEST_F(ReconnectTest, APrefetchThatTheDaemonDiesUnder) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  server.set_prefetch_silent(true);
  std::thread killer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    server.stop();
  });
  EXPECT_EQ(prefetch(window), SKV_E_DISCONNECTED);
  killer.join();
}

TEST_F(ReconnectTest, AbsenceCostsOneTimeoutThenFailsAtOnce) {
  ASSERT_EQ(skv_session_close(session), 0);
  open_session(10'000, /*connect_timeout_ms=*/200);
  server.stop();
  Clock::time_point start = Clock::now();
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, nullptr), SKV_E_DISCONNECTED);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  start = Clock::now();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, nullptr), SKV_E_DISCONNECTED);
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(2));
  EXPECT_EQ(skv_session_reconnect(session, 0), SKV_E_DISCONNECTED);
  server.start();
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, nullptr), 0) << skv_last_error();
}

TEST_F(ReconnectTest, ADaemonThatComesBackWithinTheTimeoutIsWaitedFor) {
  server.stop();
  std::thread starter([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    server.start();
  });
  EXPECT_EQ(append(40), 0) << skv_last_error();
  starter.join();
}

TEST_F(ReconnectTest, ARefusalIsNotTriedAgain) {
  server.stop();
  server.start();
  server.on(Verb::kHello, {.error = Error{ErrorCode::kTooLarge, "129 sessions, the limit is 128"}});
  const size_t before = server.count(Verb::kHello);
  EXPECT_EQ(append(1), SKV_E_TOO_LARGE);
  EXPECT_STREQ(skv_last_error(), "129 sessions, the limit is 128");
  EXPECT_EQ(server.count(Verb::kHello), before + 1);
}

TEST_F(ReconnectTest, ClosingTheSessionEndsABlockedCall) {
  server.on(Verb::kFlush, {.silent = true});
  std::thread closer([this] {
    while (server.count(Verb::kFlush) == 0) std::this_thread::yield();
    EXPECT_EQ(skv_session_close(session), 0);
  });
  EXPECT_EQ(skv_flush(session, SKV_FLUSH_HOST, 0, nullptr), SKV_E_CANCELLED);
  closer.join();
}

}  // namespace
}  // namespace skv::test
