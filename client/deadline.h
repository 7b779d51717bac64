#pragma once

#include <chrono>
#include <cstdint>

namespace skv::client {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

inline Deadline after_ms(uint64_t ms) { return Clock::now() + std::chrono::milliseconds(ms); }

// For poll(): what is left, rounded up so that a wait never ends just before its deadline.
inline int poll_ms(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  if (left <= 0) return 0;
  return left > 1'000'000 ? 1'000'000 : static_cast<int>(left);
}

}  // namespace skv::client
