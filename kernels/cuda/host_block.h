#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels/cuda/block_shared.h"

namespace skv::cuda {

// A thread block with one thread: each phase is a loop. Runs the kernels' bodies on a CPU, for
// their conformance suite on machines without a GPU. The loops run backwards, so that a body which
// depends on the order inside a phase is found.
class HostBlock {
 public:
  HostBlock() : shared_(std::make_unique<BlockShared>()) {}

  BlockShared& shared() { return *shared_; }

  template <typename F>
  void for_each(uint32_t count, F f) {
    for (uint32_t i = count; i-- > 0;) f(i);
  }
  template <typename F>
  auto broadcast(F f) {
    return f();
  }
  template <typename F>
  float max_of(uint32_t count, float least, F value) {
    for (uint32_t i = 0; i < count; ++i) least = std::max(least, value(i));
    return least;
  }
  template <typename Value, typename Sink>
  uint32_t scan(uint32_t count, Value value, Sink sink) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t own = value(i);
      sink(i, total);
      total += own;
    }
    return total;
  }
  static void add(uint32_t& to, uint32_t value) { to += value; }

 private:
  std::unique_ptr<BlockShared> shared_;
};

}  // namespace skv::cuda
