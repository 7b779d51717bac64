// Many threads on one session, tickets out of order, channels per thread, a forked child.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "tests/client/client_fixture.h"

namespace skv::test {
namespace {

using ::testing::HasSubstr;

class ThreadTest : public ClientTest {};

TEST_F(ThreadTest, ThreadsShareOneConnection) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        int code = 0;
        if (t % 4 == 0) {
          const std::vector<float> query(96, 1.0F);
          auto result = sized<skv_prefetch_result>();
          code = skv_prefetch(window, query.data(), 384, nullptr, &result);
        } else if (t % 4 == 1) {
          code = skv_put_reserve(context, 0, 2, nullptr);
        } else if (t % 4 == 2) {
          code = append(1);
        } else {
          uint64_t sentences = 0;
          code = skv_flush(session, SKV_FLUSH_HOST, 0, &sentences);
          if (sentences != 7) code = -99;
        }
        if (code != 0) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(token_count(), 64U + 2 * 50);
  auto info = sized<skv_session_info>();
  ASSERT_EQ(skv_session_get_info(session, &info), 0);
  EXPECT_EQ(info.connections, 1U);
}

// A slow answer for one thread does not hold up another's.
TEST_F(ThreadTest, RepliesOutOfOrder) {
  server.on(Verb::kFlush, {.late = true}, 1);
  int slow = 1;
  std::thread waits([&] { slow = skv_flush(session, SKV_FLUSH_HOST, 0, nullptr); });
  while (server.count(Verb::kFlush) == 0) std::this_thread::yield();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(append(1), 0) << skv_last_error();
  server.release_late();
  waits.join();
  EXPECT_EQ(slow, 0);
}

TEST_F(ThreadTest, ManyAsynchronousWrites) {
  ASSERT_EQ(append(64), 0);
  skv_memory memory = nullptr;
  ASSERT_EQ(skv_memory_create(session, 4096, &memory), 0);
  auto strided = sized<skv_strided_kv>();
  strided.memory = memory;
  auto options = sized<skv_put_write_options>();
  options.source = &strided;
  std::vector<skv_ticket> tickets(400);
  for (skv_ticket& ticket : tickets) {
    ASSERT_EQ(skv_put_write(context, &options, &ticket), 0) << skv_last_error();
  }
  for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) {
    EXPECT_EQ(skv_wait(session, *ticket, 5'000, nullptr), 0) << skv_last_error();
  }
  EXPECT_EQ(skv_memory_close(memory), 0) << skv_last_error();
}

TEST_F(ThreadTest, TheSixtyFifthThreadIsRefused) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  std::mutex mutex;
  std::condition_variable changed;
  int done = 0;
  bool leave = false;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 64; ++t) {
    threads.emplace_back([&] {
      const std::vector<float> query(96, 1.0F);
      auto result = sized<skv_prefetch_result>();
      if (skv_prefetch(window, query.data(), 384, nullptr, &result) != 0) ++failures;
      std::unique_lock lock(mutex);
      ++done;
      changed.notify_all();
      changed.wait(lock, [&] { return leave; });
    });
  }
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done == 64; });
  }
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(prefetch(window), SKV_E_TOO_LARGE);
  EXPECT_THAT(skv_last_error(), HasSubstr("64 threads"));
  {
    const std::lock_guard lock(mutex);
    leave = true;
    changed.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
  // Threads that exit give their channels back, here and at the daemon.
  EXPECT_EQ(prefetch(window), 0) << skv_last_error();
  EXPECT_EQ(server.count(Verb::kChannelClose), 64U);
  EXPECT_EQ(server.channels_open(), 1U);
}

// Whatever a restart cuts off ends as a miss, and every thread goes on afterwards.
TEST_F(ThreadTest, ThreadsGoOnOverRestarts) {
  ASSERT_EQ(append(64), 0);
  std::atomic<bool> stop{false};
  std::atomic<int> bad{0};
  std::array<std::atomic<int>, 4> steps{};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < steps.size(); ++t) {
    threads.emplace_back([&, t] {
      skv_window window = nullptr;
      const std::vector<float> query(96, 1.0F);
      while (!stop) {
        int code = 0;
        if (t == 0) {
          code = skv_flush(session, SKV_FLUSH_HOST, 0, nullptr);
        } else if (t == 1) {
          code = append(1);
        } else {
          auto options = sized<skv_window_options>();
          options.budget_blocks = 2;
          if (window == nullptr) code = skv_window_open(context, &options, &window);
          auto result = sized<skv_prefetch_result>();
          if (code == 0) code = skv_prefetch(window, query.data(), 384, nullptr, &result);
          if (code != 0 && window != nullptr) {
            (void)skv_window_close(window);
            window = nullptr;
          }
        }
        if (code == 0) ++steps[t];
        if (code != 0 && code != SKV_E_DISCONNECTED && code != SKV_E_STALE) ++bad;
      }
    });
  }
  for (int round = 0; round < 4; ++round) {
    std::array<int, 4> before{};
    for (size_t t = 0; t < steps.size(); ++t) before[t] = steps[t];
    for (size_t t = 0; t < steps.size(); ++t) {
      while (steps[t] < before[t] + 3 && bad == 0) std::this_thread::yield();
    }
    if (round < 3) {
      server.stop();
      server.start();
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0) << skv_last_error();
  EXPECT_EQ(context_info().changes, 0U);
}

TEST_F(ThreadTest, EachThreadHasItsOwnErrorText) {
  EXPECT_EQ(skv_context_close(nullptr), SKV_E_UNKNOWN_HANDLE);
  std::thread([] { EXPECT_STREQ(skv_last_error(), ""); }).join();
  EXPECT_THAT(skv_last_error(), HasSubstr("context"));
}

#if !defined(__SANITIZE_THREAD__)  // fork with threads is not what tsan follows
TEST_F(ThreadTest, AForkedChildHasNoSession) {
  ASSERT_EQ(append(64), 0);
  skv_window window = open_window();
  ASSERT_EQ(prefetch(window), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    int bad = 0;
    bad += append(1) != SKV_E_DENIED ? 1 : 0;
    bad += std::string(skv_last_error()).find("forked") == std::string::npos ? 2 : 0;
    bad += prefetch(window) != SKV_E_DENIED ? 4 : 0;
    bad += skv_session_close(session) != SKV_E_DENIED ? 8 : 0;
    // One of its own works; what it inherited stays refused.
    auto options = sized<skv_session_options>();
    options.socket_path = server.path().c_str();
    skv_session own = nullptr;
    bad += skv_session_open(&options, &own) != 0 ? 16 : 0;
    bad += skv_context_close(context) != SKV_E_DENIED ? 32 : 0;
    bad += skv_session_close(own) != 0 ? 64 : 0;
    ::_exit(bad);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(prefetch(window), 0) << skv_last_error();
  EXPECT_EQ(append(1), 0) << skv_last_error();
}
#endif

}  // namespace
}  // namespace skv::test
