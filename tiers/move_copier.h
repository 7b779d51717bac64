#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "tiers/slot_pool.h"

namespace skv {

// Copies the moves of a batch, on the calling thread and, where the batch is large enough to pay
// for waking them, on helpers. Large batches go around the caches: their reader wants the first
// block when the last one is written, and those before it would be gone.
//
// Thread  run(): one at a time. Nothing is allocated after construction.
// Owns    threads - 1 helpers, which sleep between batches.
class MoveCopier {
 public:
  explicit MoveCopier(uint32_t threads);  // at least 1
  ~MoveCopier();
  MoveCopier(const MoveCopier&) = delete;
  MoveCopier& operator=(const MoveCopier&) = delete;

  // Returns when all is copied. Requires: the ranges were checked, no two moves write one byte.
  void run(std::span<const SlotPool::Move> moves, const std::byte* from, std::byte* to);

  // For a machine of `cores`, where the configuration leaves it open.
  static uint32_t default_threads(uint32_t cores);

 private:
  struct Batch {
    std::span<const SlotPool::Move> moves;
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    bool around_caches = false;
  };
  void help();
  void work(const Batch& batch);

  // Per batch, never per move: what hands a batch to helpers and knows when they have left it.
  std::mutex mutex_;
  std::condition_variable called_;
  std::condition_variable left_;
  Batch batch_;
  uint32_t calls_ = 0;  // helpers wanted that have not come yet
  uint32_t inside_ = 0;
  bool stop_ = false;
  std::atomic<size_t> next_{0};  // first move that nobody has taken
  std::vector<std::thread> helpers_;
};

}  // namespace skv
