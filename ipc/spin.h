#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdint>

namespace skv {

// Cores that this process may run on; 1 where the system does not say.
inline uint32_t cores_allowed() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (::sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
  return static_cast<uint32_t>(CPU_COUNT(&cores));
}

// One turn of a loop that looks at memory another core writes.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a waiter looks before it sleeps: all of its limit while waits have been shorter than
// that, not at all while they are longer, but for one in sixteen, so that a change of pace is
// noticed.
//
// Thread  the waiter's.
class AdaptiveSpin {
 public:
  explicit AdaptiveSpin(uint64_t limit_ns = 0) : limit_ns_(limit_ns) {}

  uint64_t budget_ns() {
    if (average_ns_ <= limit_ns_) return limit_ns_;
    return limit_ns_ != 0 && ++skipped_ % kProbe == 0 ? limit_ns_ : 0;
  }
  // How long the wait took in all, sleep included.
  void waited(uint64_t ns) { average_ns_ = (7 * average_ns_ + std::min(ns, 4 * limit_ns_)) / 8; }

 private:
  static constexpr uint32_t kProbe = 16;
  uint64_t limit_ns_;
  uint64_t average_ns_ = 0;
  uint32_t skipped_ = 0;
};

}  // namespace skv
