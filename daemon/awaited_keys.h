#pragma once

#include <unordered_map>

#include "ipc/types/ids.h"

namespace skv {

// Who waits for which sentence key. A waiter waits for one at a time, the next of its context, and
// has it in its own `awaits` (zero: for none).
//
// Thread  one.
template <typename Waiter>
class AwaitedKeys {
 public:
  // From now on for this one alone; zero: for none.
  void await(Waiter waiter, Digest& awaits, const Digest& key) {
    if (awaits == key) return;
    const auto [first, last] = waiters_.equal_range(awaits);
    for (auto it = first; it != last; ++it) {
      if (it->second != waiter) continue;
      waiters_.erase(it);
      break;
    }
    awaits = key;
    if (key != Digest{}) waiters_.emplace(key, waiter);
  }
  // `use` changes nothing here.
  template <typename Use>
  void each(const Digest& key, const Use& use) const {
    const auto [first, last] = waiters_.equal_range(key);
    for (auto it = first; it != last; ++it) use(it->second);
  }

 private:
  std::unordered_multimap<Digest, Waiter, DigestHash> waiters_;
};

}  // namespace skv
