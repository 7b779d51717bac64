#include "tiers/arena_warmer.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace skv {
namespace {

// Behind everything that somebody waits for.
constexpr int kWarmerNice = 10;

// Best effort: without the call (before Linux 5.14) or without memory, first touches pay as ever.
void populate(std::span<std::byte> memory) {
#ifdef MADV_POPULATE_WRITE
  (void)::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE);
#else
  (void)memory;
#endif
}

}  // namespace

ArenaWarmer::ArenaWarmer() : thread_([this] { run(); }) {}

ArenaWarmer::~ArenaWarmer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void ArenaWarmer::add(std::span<std::byte> memory) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(memory);
  changed_.notify_all();
}

bool ArenaWarmer::forget(std::span<std::byte> memory) {
  const std::lock_guard lock(mutex_);
  std::erase_if(queue_, [&](const auto& each) { return each.data() == memory.data(); });
  return current_.data() != memory.data();
}

void ArenaWarmer::settle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty() && current_.empty(); });
}

void ArenaWarmer::run() {
  ::pthread_setname_np(::pthread_self(), "skvd-warm");
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kWarmerNice);
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (queue_.empty()) {
      changed_.wait(lock);
      continue;
    }
    current_ = queue_.front();
    queue_.pop_front();
    lock.unlock();
    populate(current_);
    lock.lock();
    current_ = {};
    changed_.notify_all();
  }
}

}  // namespace skv
