#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/daemon/data_harness.h"

namespace skv::data_test {
namespace {

// One session with prefetches of one layer, one after the other, and one greedy session, on a clock
// that moves only when it is looked at: the same numbers each run.
class PrefetchTurns : public ::testing::Test {
 protected:
  static constexpr SessionId kModest{10};
  static constexpr SessionId kGreedy{11};
  static constexpr uint32_t kGreedyWindows = 8;
  static constexpr uint64_t kTickNs = 2'000;

  PrefetchTurns() : harness_(setup()) {
    harness_.add_sentences(20);
    harness_.open_feed();
    harness_.feed(0, 20);
    open(kModest, 0);
    for (uint32_t i = 1; i <= kGreedyWindows; ++i) open(kGreedy, i);
  }

  // The clock's time from the submission of a modest prefetch to its completion, the longest of
  // some; with `greedy`, every window of the other session has a prefetch of all layers in flight.
  uint64_t longest_ns(bool greedy) {
    std::vector<uint64_t> times;
    for (int round = 0; round < 20; ++round) {
      if (greedy) {
        for (uint32_t i = 1; i <= kGreedyWindows; ++i) ask(i, {0, 3});
        for (int i = 0; i < round % 5; ++i) step();  // comes at another moment each time
      }
      const uint64_t begun = harness_.core().now_ns();
      ask(0, {1, 1});
      while (ends_[0].in_flight) step(greedy);
      times.push_back(ends_[0].ended_ns - begun);
      while (
          std::any_of(ends_.begin(), ends_.end(), [](const End& end) { return end.in_flight; })) {
        step();
      }
    }
    return *std::max_element(times.begin(), times.end());
  }

 private:
  struct End {
    SessionId session{};
    std::unique_ptr<WindowReader> window;
    std::unique_ptr<ClientChannel> channel;
    bool in_flight = false;
    uint64_t ended_ns = 0;  // the last one
  };

  static HarnessSetup setup() {
    HarnessSetup setup;
    setup.tick_ns = kTickNs;
    return setup;
  }
  void open(SessionId session, uint32_t index) {
    OpenWindow options = harness_.window_options();
    options.session = session;
    options.window = WindowId{100 + index};
    End end;
    end.session = session;
    end.window = harness_.open_window(options).value();
    end.channel = harness_.open_channel(ChannelId{200 + index}, session);
    ends_.push_back(std::move(end));
  }
  void ask(uint32_t index, LayerRange layers) {
    if (ends_[index].in_flight) return;
    auto submission = harness_.entry(layers);
    submission.window = 100 + index;
    harness_.submit(*ends_[index].channel, submission, harness_.make_query(layers));
    ends_[index].in_flight = true;
  }
  // What completes is read at once; the greedy session asks again if `again`.
  void step(bool again = false) {
    harness_.core().step();
    for (uint32_t i = 0; i < ends_.size(); ++i) {
      if (!ends_[i].in_flight) continue;
      const auto done = harness_.completion(*ends_[i].channel);
      if (!done) continue;
      ASSERT_EQ(done->status, 0);
      ends_[i].in_flight = false;
      ends_[i].ended_ns = done->entry.taken_ns + done->entry.daemon_ns;
      ends_[i].window->done(done->version);
      if (again && i > 0) ask(i, {0, 3});
    }
  }

  DataHarness harness_;
  std::vector<End> ends_;
};

// Goal: a session with many large prefetches in flight takes from another what one turn takes,
// again and again, not its share of all prefetches: no more than twice the time.
// Method: the longest of 20 on the virtual clock, alone and beside 8 windows of 3 layers.
TEST_F(PrefetchTurns, AGreedySessionDoublesAnothersPrefetchAtMost) {
  const uint64_t alone = longest_ns(false);
  const uint64_t beside = longest_ns(true);
  // The turn that is under way when it comes: its time, and the unit that it was in.
  const uint64_t turn = PrefetchRunner::kTurnNs + 40'000;
  // Taking and beginning the others' submissions: this clock is slow for what only looks at it.
  const uint64_t beginning = kGreedyWindows * 8 * kTickNs;
  EXPECT_LE(beside, 2 * alone + turn + beginning) << "alone: " << alone;
  EXPECT_GT(beside, alone) << "they do share";
}

// Goal: a prefetch alone is worked on until it is done, and for one turn only while the loop calls.
TEST(PrefetchAlone, WorksOnUntilTheLoopCalls) {
  bool called = false;
  HarnessSetup setup;
  setup.device = false;
  setup.tick_ns = 20'000;  // a (layer, head) is a turn
  setup.called = [&] { return called; };
  DataHarness harness(setup);
  harness.add_sentences(12);
  harness.open_feed();
  harness.feed(0, 12);
  const std::unique_ptr<WindowReader> reader =
      harness.open_window(harness.window_options()).value();
  const std::unique_ptr<ClientChannel> channel = harness.open_channel();
  const auto steps_of_a_prefetch = [&] {
    const LayerRange layers{0, 3};
    harness.submit(*channel, harness.entry(layers), harness.make_query(layers));
    for (int steps = 1; steps < 100; ++steps) {
      harness.core().step();
      const std::optional<TestCompletion> done = harness.completion(*channel);
      if (!done) continue;
      EXPECT_EQ(done->status, 0);
      reader->done(done->version);
      return steps;
    }
    return 0;
  };
  const int alone = steps_of_a_prefetch();
  EXPECT_GE(alone, 1);
  EXPECT_LE(alone, 2);
  called = true;
  EXPECT_GE(steps_of_a_prefetch(), 6);  // 3 layers of 2 heads
}

}  // namespace
}  // namespace skv::data_test
