#include "tiers/move_copier.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>

#include "tiers/copy.h"

namespace skv {
namespace {

// Waking a thread takes as long as copying this much: 10 us at 10 GB/s, twice for good measure.
constexpr uint64_t kBytesPerHelper = 256ULL << 10;
// Below, what was copied is still in a cache when the reader comes.
constexpr uint64_t kCachedBytesMax = 1ULL << 20;
// Shorter copies around the caches leave lines half written.
constexpr uint32_t kStreamedMoveBytesMin = 512;
constexpr size_t kMovesPerTake = 16;

}  // namespace

MoveCopier::MoveCopier(uint32_t threads) {
  for (uint32_t i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
}

MoveCopier::~MoveCopier() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    called_.notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

uint32_t MoveCopier::default_threads(uint32_t cores) { return std::clamp(cores / 4, 1U, 8U); }

void MoveCopier::run(std::span<const SlotPool::Move> moves, const std::byte* from, std::byte* to) {
  uint64_t bytes = 0;
  for (const SlotPool::Move& move : moves) bytes += move.bytes;
  const Batch batch{moves, from, to, bytes > kCachedBytesMax};
  const auto wanted =
      static_cast<uint32_t>(std::min<uint64_t>(helpers_.size(), bytes / kBytesPerHelper));
  next_.store(0, std::memory_order_relaxed);
  if (wanted == 0) return work(batch);
  {
    const std::lock_guard lock(mutex_);
    batch_ = batch;
    calls_ = wanted;
    called_.notify_all();
  }
  work(batch);
  std::unique_lock lock(mutex_);
  calls_ = 0;  // who has not come by now is not needed
  left_.wait(lock, [this] { return inside_ == 0; });
}

void MoveCopier::help() {
  ::pthread_setname_np(::pthread_self(), "skvd-moves");
  std::unique_lock lock(mutex_);
  for (;;) {
    called_.wait(lock, [this] { return stop_ || calls_ > 0; });
    if (stop_) return;
    --calls_;
    ++inside_;
    const Batch batch = batch_;
    lock.unlock();
    work(batch);
    lock.lock();
    if (--inside_ == 0) left_.notify_all();
  }
}

void MoveCopier::work(const Batch& batch) {
  for (;;) {
    const size_t first = next_.fetch_add(kMovesPerTake, std::memory_order_relaxed);
    if (first >= batch.moves.size()) break;
    const size_t count = std::min(kMovesPerTake, batch.moves.size() - first);
    for (const SlotPool::Move& move : batch.moves.subspan(first, count)) {
      std::byte* const to = batch.to + move.to;
      const std::byte* const from = batch.from + move.from;
      if (batch.around_caches && move.bytes >= kStreamedMoveBytesMin) {
        copy_around_caches(to, from, move.bytes);
      } else {
        std::memcpy(to, from, move.bytes);
      }
    }
  }
  stores_done();
}

}  // namespace skv
