#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ipc/types/ids.h"

namespace skv {

// Whose turn it is, of sessions that share one thread's time (or bandwidth): of those with work,
// the one that was served least. Start-time fair queueing: a session that comes back after a pause
// is put where the others are, less what it may have saved up, so a small request is served at once
// and whole though others have a queue; nobody saves more than that, so nobody waits longer for it.
//
// Units   the caller's: nanoseconds, bytes.
// Thread  one. Sessions that had no work for long cost nothing.
class FairTurns {
 public:
  explicit FairTurns(uint64_t saved_max) : saved_max_(saved_max) {}

  // What the session was served; only comparisons mean something.
  uint64_t served(SessionId session) { return account_of(session).served; }
  // The one with work that was served least: its turn.
  void chosen(SessionId session) { now_ = std::max(now_, account_of(session).served); }
  void serve(SessionId session, uint64_t amount) { account_of(session).served += amount; }

 private:
  struct Account {
    SessionId session{};
    uint64_t served = 0;
  };

  uint64_t least() const { return now_ > saved_max_ ? now_ - saved_max_ : 0; }
  Account& account_of(SessionId session) {
    for (Account& account : accounts_) {
      if (account.session != session) continue;
      account.served = std::max(account.served, least());
      return account;
    }
    // One that is where a new one begins need not be remembered.
    std::erase_if(accounts_, [this](const Account& each) { return each.served <= least(); });
    return accounts_.emplace_back(Account{session, least()});
  }

  const uint64_t saved_max_;
  uint64_t now_ = 0;  // what the session whose turn it is was served before it
  std::vector<Account> accounts_;
};

}  // namespace skv
