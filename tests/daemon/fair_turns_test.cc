#include "daemon/data/fair_turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

namespace skv {
namespace {

// Gives one unit after the other to whoever is served least of those with work.
class FairTurnsTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSaved = 100;

  SessionId turn(uint64_t amount) {
    SessionId next{};
    uint64_t least = UINT64_MAX;
    for (const SessionId session : working_) {
      if (turns_.served(session) >= least) continue;
      next = session;
      least = turns_.served(session);
    }
    turns_.chosen(next);
    turns_.serve(next, amount);
    served_[next] += amount;
    return next;
  }

  FairTurns turns_{kSaved};
  std::vector<SessionId> working_{SessionId{1}};
  std::map<SessionId, uint64_t> served_;
};

TEST_F(FairTurnsTest, EqualSharesWhateverAUnitCosts) {
  working_ = {SessionId{1}, SessionId{2}, SessionId{3}};
  for (int i = 0; i < 3000; ++i) turn(i % 7 == 0 ? 50 : 3);
  for (const SessionId a : working_) {
    for (const SessionId b : working_) EXPECT_LE(served_[a], served_[b] + 50);
  }
}

// Goal: after a pause a session is served at once, for what it may save, not for its whole pause.
TEST_F(FairTurnsTest, APauseIsWorthWhatMayBeSaved) {
  for (int i = 0; i < 1000; ++i) turn(10);
  working_.push_back(SessionId{2});
  for (uint64_t served = 0; served < kSaved - 10; served += 10) EXPECT_EQ(turn(10), SessionId{2});
  served_.clear();
  for (int i = 0; i < 100; ++i) turn(10);
  EXPECT_NEAR(static_cast<double>(served_[SessionId{1}]), 500, 20);
  EXPECT_NEAR(static_cast<double>(served_[SessionId{2}]), 500, 20);
}

// Goal: many short pauses are worth no more than the time that passed in them.
TEST_F(FairTurnsTest, ComingAndGoingGainsNothing) {
  for (int i = 0; i < 1000; ++i) turn(10);
  served_.clear();
  for (int round = 0; round < 200; ++round) {
    working_ = {SessionId{1}, SessionId{2}};
    while (turn(10) == SessionId{2}) {
    }
    working_ = {SessionId{1}};
  }
  EXPECT_LE(served_[SessionId{2}], served_[SessionId{1}] + kSaved + 20);
}

TEST_F(FairTurnsTest, ASessionAloneOwesNothingLater) {
  for (int i = 0; i < 1000; ++i) turn(10);
  working_ = {SessionId{1}, SessionId{2}};
  served_.clear();
  for (int i = 0; i < 1000; ++i) turn(10);
  EXPECT_LE(served_[SessionId{2}], served_[SessionId{1}] + kSaved + 20);
}

}  // namespace
}  // namespace skv
