#include "tiers/arena_warmer.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "ipc/shared_memory.h"

namespace skv {
namespace {

// Behind everything that somebody waits for.
constexpr int kWarmerNice = 10;

constexpr uint64_t kPageBytes = 4096;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

bool advise(std::span<std::byte> memory, int advice) {
  return ::madvise(memory.data(), memory.size(), advice) == 0;
}

// MADV_COLLAPSE makes huge pages whatever transparent_hugepage/shmem_enabled says ("never" on most
// systems), of ranges that have at least one page.
bool make_huge(std::span<std::byte> memory) {
  if (reinterpret_cast<uintptr_t>(memory.data()) % kHugePageBytes != 0) return false;
  if (memory.size() % kHugePageBytes != 0) return false;
  for (uint64_t at = 0; at < memory.size(); at += kHugePageBytes) {
    if (!advise(memory.subspan(at, kPageBytes), MADV_POPULATE_WRITE)) return false;
  }
  return advise(memory, MADV_COLLAPSE);
}

// Best effort: on an older system or without memory, first touches pay as ever.
void populate(std::span<std::byte> memory) {
  if (!make_huge(memory)) (void)advise(memory, MADV_POPULATE_WRITE);
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

bool ArenaWarmer::forget_locked(std::span<std::byte> memory) {
  std::erase_if(queue_, [&](const auto& each) { return each.data() == memory.data(); });
  return current_.data() != memory.data();
}

bool ArenaWarmer::forget(std::span<std::byte> memory) {
  const std::lock_guard lock(mutex_);
  return forget_locked(memory);
}

void ArenaWarmer::drop(std::span<std::byte> memory) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return forget_locked(memory); });
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
